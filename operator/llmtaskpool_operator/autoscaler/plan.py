"""From decisions to actions, in order, each with its reason: data that a backend applies. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmtaskpool_worker.contract import LaneName

from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.api.scaling import ScalingMode
from llmtaskpool_operator.autoscaler.decide import PoolDecision
from llmtaskpool_operator.autoscaler.observation import PodObservation, PoolObservation
from llmtaskpool_operator.autoscaler.reasons import reason_of


@dataclass(frozen=True, slots=True)
class SetThreads:
    """Set N of some lanes of one pod, absolute, with the generation after the observed one."""

    pod: str
    generation: int
    threads: dict[LaneName, int]
    reason: str


@dataclass(frozen=True, slots=True)
class SetReplicas:
    """Ask for so many replicas. ``victims`` go first, in this order, when that is fewer."""

    replicas: int
    victims: tuple[str, ...]
    reason: str


Action = SetThreads | SetReplicas


def plan(spec: LLMTaskPoolSpec, seen: PoolObservation, decided: PoolDecision) -> tuple[Action, ...]:
    """What to do now. Threads come first: they help within a second, pods need a start."""
    actions: list[Action] = []
    if spec.scaling.mode is not ScalingMode.ADVISE:
        actions += _threads(seen, decided)
        actions += _replicas(spec, seen, decided)
    return tuple(actions)


def victims(pods: Sequence[PodObservation], count: int) -> tuple[str, ...]:
    """The ``count`` pods that lose least: those that don't serve yet, then the least busy.

    Ties go by name, so that the same pods are named until they have gone.
    """
    ordered = sorted(pods, key=lambda pod: (pod.ready, _held(pod), pod.name))
    return tuple(pod.name for pod in ordered[: max(0, count)])


def _held(pod: PodObservation) -> int:
    """Tasks that would have to finish or move if the pod went."""
    if pod.state is None:
        return 0
    return sum(lane.active + lane.queued for lane in pod.state.lanes.values())


def given_replicas(spec: LLMTaskPoolSpec) -> int:
    """What a pool asks for in the modes Fixed and External; within its bounds in External."""
    scaling = spec.scaling
    given = scaling.min_replicas if spec.replicas is None else spec.replicas
    if scaling.mode is ScalingMode.FIXED:
        return given
    return min(max(given, scaling.min_replicas), scaling.max_replicas)


def _given(spec: LLMTaskPoolSpec, wanted: int) -> str:
    if spec.replicas in (None, wanted):
        return "spec.replicas"
    bound = "maxReplicas" if wanted < (spec.replicas or 0) else "minReplicas"
    return f"spec.replicas is {spec.replicas}, scaling.{bound} is {wanted}"


def _threads(seen: PoolObservation, decided: PoolDecision) -> list[Action]:
    pods = {pod.name: pod for pod in seen.staying}
    actions: list[Action] = []
    for name, pod in pods.items():
        if pod.state is None:
            continue
        lanes = pod.state.lanes
        moved = [
            d
            for d in decided.threads
            if d.pod == name and d.decision.desired != lanes[d.lane].threads
        ]
        if moved:
            actions.append(
                SetThreads(
                    pod=name,
                    generation=pod.state.threads_generation + 1,
                    threads={d.lane: d.decision.desired for d in moved},
                    reason="; ".join(f"{d.lane}: {reason_of(d.decision)}" for d in moved),
                )
            )
    return actions


def _replicas(spec: LLMTaskPoolSpec, seen: PoolObservation, decided: PoolDecision) -> list[Action]:
    scaling = spec.scaling
    if scaling.paused or not seen.scalable:
        return []
    if scaling.mode in (ScalingMode.FIXED, ScalingMode.EXTERNAL):
        wanted = given_replicas(spec)
        reason = f"{wanted} replicas: {_given(spec, wanted)}, scaling.mode is {scaling.mode}"
        if seen.rival is not None:
            reason += f"; {seen.rival} had asked for {seen.replicas}"
    elif decided.replicas is not None:
        wanted, reason = decided.replicas.desired, reason_of(decided.replicas)
    else:
        return []
    if wanted == seen.replicas:
        return []
    return [SetReplicas(wanted, victims(seen.staying, seen.replicas - wanted), reason)]
