"""From decisions to actions, in order, each with its reason: data that a backend applies. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmtaskpool_worker.contract import MOST_WORKERS, LaneName

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


@dataclass(frozen=True, slots=True)
class TellGate:
    """Tell a gate which workers are ready, absolute: addresses of what they serve."""

    pod: str
    workers: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Route:
    """Lead the pool's Service to its gate, or to its workers."""

    to_gate: bool
    reason: str


Action = SetThreads | SetReplicas | TellGate | Route


def plan(spec: LLMTaskPoolSpec, seen: PoolObservation, decided: PoolDecision) -> tuple[Action, ...]:
    """What to do now. Threads come first: they help within a second, pods need a start."""
    actions: list[Action] = []
    if spec.scaling.mode is not ScalingMode.ADVISE:
        actions += _gate(seen, decided)
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


def _gate(seen: PoolObservation, decided: PoolDecision) -> list[Action]:
    """Who is in the path of requests: a worker while one is ready, else the gate.

    The gate comes in before the last worker goes, so that there is always somebody.
    """
    if (gate := seen.gate) is None:
        return []
    ready = [pod for pod in seen.staying if pod.ready]
    known = tuple(pod.address for pod in ready if pod.address is not None)[:MOST_WORKERS]
    told: list[Action] = [
        TellGate(pod.name, known, f"{len(known)} workers are ready")
        for pod in gate.pods
        if pod.fresh and pod.state is not None and pod.state.gate is not None
        if set(pod.state.gate.workers) != set(known)
    ]
    to_gate = gate.ready and (not ready or (decided.sleeps and gate.stands))
    if to_gate != gate.routed and (ready or gate.ready):
        why = "no worker is ready" if not ready else "the pool is about to sleep"
        reason = f"requests go to the gate: {why}" if to_gate else "requests go to the workers"
        told.append(Route(to_gate, reason))
    return told


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
    if wanted == 0 and seen.gate is not None and not (seen.gate.ready and seen.gate.routed):
        return []  # the last worker goes once the gate is in its place
    return [SetReplicas(wanted, victims(seen.staying, seen.replicas - wanted), reason)]
