"""The status of a pool from what was observed, decided and planned. Pure.

Conditions follow kstatus: Reconciling and Stalled are there only to say that the pool is not yet,
or can't become, what its spec asks for. A transition time changes only with the status.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from llmtaskpool_worker.contract import LaneName

from llmtaskpool_operator.api.pool import LLMTaskPool
from llmtaskpool_operator.api.rules import Wire
from llmtaskpool_operator.api.scaling import ScalingMode
from llmtaskpool_operator.api.status import (
    Condition,
    ConditionType,
    LaneStatus,
    LLMTaskPoolStatus,
    RecordedDecision,
)
from llmtaskpool_operator.autoscaler.decide import PoolDecision
from llmtaskpool_operator.autoscaler.gpu import gpu_status, idle_gpu
from llmtaskpool_operator.autoscaler.law import Bound
from llmtaskpool_operator.autoscaler.model_trouble import model_trouble
from llmtaskpool_operator.autoscaler.observation import PoolObservation, Problem, lacking, of_pool
from llmtaskpool_operator.autoscaler.plan import Action, SetReplicas, SetThreads, given_replicas
from llmtaskpool_operator.autoscaler.reasons import reason_of

DEAD_BAND = 0.05
"""Utilization is written anew only when it moved by more: a status write per tick is noise."""
KEPT_DECISIONS = 10
Known = TypeVar("Known", bound=Wire)
_BOUNDS = (Bound.MINIMUM, Bound.MAXIMUM, Bound.STEP, Bound.STABILIZED, Bound.DISABLED)


def status_of(
    pool: LLMTaskPool,
    seen: PoolObservation,
    decided: PoolDecision,
    plan: Sequence[Action],
    before: LLMTaskPoolStatus | None,
    at: str,
) -> LLMTaskPoolStatus:
    """The new status; ``at`` is now as an RFC 3339 time in UTC."""
    before = before or LLMTaskPoolStatus()
    ready = sum(pod.ready for pod in seen.staying)
    wanted = _wanted(seen, plan)
    utilization = decided.replicas.utilization if decided.replicas else before.utilization
    if utilization is not None and before.utilization is not None:
        moved = abs(utilization - before.utilization) > DEAD_BAND
        utilization = utilization if moved else before.utilization
    known = {one.lane: one for one in before.threads}
    lanes = [_lane(lane, seen, plan, known.get(lane)) for lane in LaneName]
    draining = sum(pod.draining and not pod.lost for pod in seen.pods)
    conditions = _conditions(pool, seen, decided, _Count(wanted, ready, draining), before, at)
    said: dict[str, Any] = {
        "observed_generation": pool.metadata.generation,
        "replicas": len(seen.staying),
        "desired_replicas": wanted,
        "ready_replicas": ready,
        "draining_replicas": draining,
        "selector": before.selector,
        "utilization": None if utilization is None else round(utilization, 4),
        "queued": sum(lane.queued for lane in lanes),
        "threads": lanes,
        "gpu": gpu_status(seen, before.gpu),
        "last_decisions": _recorded(seen, plan, lanes, before, at),
        "conditions": conditions,
    }
    return _same_or(before, said) or LLMTaskPoolStatus(**said)


def _same_or(known: Known | None, said: Mapping[str, Any]) -> Known | None:
    """What is known, where that says the same: to make and check it anew is dear at rest."""
    if known is None or any(getattr(known, name) != value for name, value in said.items()):
        return None
    return known


def invalid_status(
    before: LLMTaskPoolStatus, faults: Sequence[str], generation: int, at: str
) -> LLMTaskPoolStatus:
    """The status of a pool whose spec this operator can't read: what runs is left as it is."""
    condition = _Maker({c.type: c for c in before.conditions}, generation, at)
    message = "; ".join(faults)
    conditions = [
        condition(ConditionType.READY, False, "InvalidSpec", message),
        condition(ConditionType.STALLED, True, "InvalidSpec", message),
    ]
    return before.model_copy(update={"observed_generation": generation, "conditions": conditions})


def _wanted(seen: PoolObservation, plan: Sequence[Action]) -> int:
    return next((a.replicas for a in plan if isinstance(a, SetReplicas)), seen.replicas)


@dataclass(frozen=True, slots=True)
class _Count:
    """Pods: those that are wanted, that are ready, and that end."""

    wanted: int
    ready: int
    draining: int


def _lane(
    lane: LaneName, seen: PoolObservation, plan: Sequence[Action], before: LaneStatus | None
) -> LaneStatus:
    wanted = {
        a.pod: a.threads[lane] for a in plan if isinstance(a, SetThreads) and lane in a.threads
    }
    whole = {
        pod.name: pod.state
        for pod in seen.staying
        if pod.state is not None and lane in pod.state.lanes
    }
    states = {name: state.lanes[lane] for name, state in whole.items()}
    said: dict[str, Any] = {
        "lane": lane,
        "desired": sum(wanted.get(name, state.threads) for name, state in states.items()),
        "observed": sum(state.threads for state in states.values()),
        "active": sum(state.active for state in states.values()),
        "queued": round(of_pool([(whole[name], lane.queued) for name, lane in states.items()])),
    }
    return _same_or(before, said) or LaneStatus(**said)


def _recorded(
    seen: PoolObservation,
    plan: Sequence[Action],
    lanes: Sequence[LaneStatus],
    before: LLMTaskPoolStatus,
    at: str,
) -> list[RecordedDecision]:
    new = [
        RecordedDecision(
            time=at,
            what="replicas",
            before=seen.replicas,
            after=action.replicas,
            reason=action.reason[:1024],
        )
        for action in plan
        if isinstance(action, SetReplicas)
    ]
    for moved in lanes:
        lane = moved.lane
        if moved.desired != moved.observed:
            reasons = [a.reason for a in plan if isinstance(a, SetThreads) and lane in a.threads]
            new.append(
                RecordedDecision(
                    time=at,
                    what=f"threads/{lane}",
                    before=moved.observed,
                    after=moved.desired,
                    reason=reasons[0][:1024],
                )
            )
    kept = list(before.last_decisions)
    return [*(_joined(one, kept) for one in new), *kept][:KEPT_DECISIONS]


def _joined(new: RecordedDecision, kept: list[RecordedDecision]) -> RecordedDecision:
    """With an unfinished move the same way, which is taken out of ``kept``.

    A lane that gives up a thread a second would soon be all that one sees.
    """
    last = next((one for one in kept if one.what == new.what), None)
    if last is None or last.after != new.before or new.what == "replicas":
        return new
    if (last.after > last.before) != (new.after > new.before):
        return new
    kept.remove(last)
    return new.model_copy(update={"before": last.before})


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes conditions that keep their transition time while their status stays."""

    old: dict[str, Condition]
    generation: int
    at: str

    def __call__(
        self, kind: ConditionType, holds: bool | None, reason: str, message: str
    ) -> Condition:
        text: Literal["True", "False", "Unknown"]
        text = "Unknown" if holds is None else "True" if holds else "False"
        known = self.old.get(kind.value)
        said: dict[str, Any] = {
            "type": kind.value,
            "status": text,
            "reason": reason,
            "message": message[:1024],
            "observed_generation": self.generation,
        }
        stays = known is not None and known.status == text
        at = known.last_transition_time if known is not None and stays else self.at
        return _same_or(known, said) or Condition(**said, last_transition_time=at)


def _conditions(
    pool: LLMTaskPool,
    seen: PoolObservation,
    decided: PoolDecision,
    pods: _Count,
    before: LLMTaskPoolStatus,
    at: str,
) -> list[Condition]:
    old = {condition.type: condition for condition in before.conditions}
    condition = _Maker(old, pool.metadata.generation, at)
    wanted, ready = pods.wanted, pods.ready
    count = f"{ready} of {wanted} replicas are ready"
    problems = [
        *model_trouble(seen.staying),
        *seen.problems,
        *idle_gpu(pool.spec, seen.staying),
    ]
    if not wanted and _sleeps_for_good(pool, seen):
        problems.append(Problem("NothingWakes", _nothing_wakes(seen)))
    problems.sort(key=lambda problem: not problem.stalled)
    stalled = next((problem for problem in problems if problem.stalled), None)
    blocked = next((problem for problem in problems if problem.blocks), None)
    # What stalls a change does not unmake pods that serve as before.
    nobody = not wanted and seen.gate is not None and seen.gate.stands and not seen.gate.ready
    holds = ready >= wanted and blocked is None and not (nobody and not ready)
    why = None if holds else blocked or stalled
    made = [
        condition(
            ConditionType.READY,
            holds,
            why.reason if why else _readiness(seen, wanted, holds=holds),
            f"{count}; {why.message}" if why else f"{count}{_held(seen, wanted)}",
        ),
        _metrics(condition, pool, seen, decided),
        condition(
            ConditionType.DEGRADED,
            bool(problems),
            problems[0].reason if problems else "Healthy",
            "; ".join(problem.message for problem in problems),
        ),
        _active(condition, pool),
    ]
    if seen.rival is not None:
        message = _conflict(pool, seen.rival)
        made.append(condition(ConditionType.SCALING_CONFLICT, True, "OtherWriter", message))
    if decided.replicas is not None:
        bound = decided.replicas.bound
        made.append(
            condition(
                ConditionType.SCALING_LIMITED,
                bound in _BOUNDS,
                bound.value,
                reason_of(decided.replicas),
            )
        )
    elif pool.spec.scaling.mode is ScalingMode.EXTERNAL:
        made += _beyond(condition, pool)
    elif (kept := old.get(ConditionType.SCALING_LIMITED.value)) is not None:
        made.append(kept)
    if stalled is not None:
        made.append(condition(ConditionType.STALLED, True, stalled.reason, stalled.message))
    elif seen.rollout:
        made.append(
            condition(
                ConditionType.RECONCILING, holds=True, reason="RollingOut", message=seen.rollout
            )
        )
    elif ready != wanted or pods.draining or nobody:
        made.append(
            condition(ConditionType.RECONCILING, holds=True, reason="Scaling", message=count)
        )
    return made


def _readiness(seen: PoolObservation, wanted: int, *, holds: bool) -> str:
    gate = seen.gate
    if gate is None or any(pod.ready for pod in seen.staying):
        return "AllReady" if holds else "NotAllReady"
    if not gate.ready:
        return "NotAllReady"
    return "Waking" if wanted else "Asleep"


def _held(seen: PoolObservation, wanted: int) -> str:
    """What a gate does while no worker is there."""
    match _readiness(seen, wanted, holds=not wanted):
        case "Asleep":
            return ": the pool sleeps, and its gate wakes it when a request comes"
        case "NotAllReady" if seen.gate is not None and not wanted:
            return ", and its gate is not ready yet"
        case "Waking" if seen.gate is not None:
            return f"; the gate holds {seen.gate.held} requests until one is"
        case _:
            return ""


def _nothing_wakes(seen: PoolObservation) -> str:
    asleep = "no pod is there and scaling.minReplicas is 0"
    if seen.gate is not None and seen.gate.ready:  # and so it is paused
        return f"{asleep}: scaling.paused is true, so the gate holds requests and wakes nobody"
    problem = None if seen.gate is None else seen.gate.problem
    return (
        f"{asleep}, and its gate can't start ({problem or 'there is none'}), so clients can't "
        "connect: mend that, or raise minReplicas, or give scaling.schedules"
    )


def _sleeps_for_good(pool: LLMTaskPool, seen: PoolObservation) -> bool:
    """Whether it has no pod, wants none, and nobody is there to change that."""
    scaling = pool.spec.scaling
    auto = scaling.mode is ScalingMode.AUTO and not scaling.schedules
    asleep = auto and seen.scalable and scaling.min_replicas == 0
    return asleep and (not seen.wakes or (seen.gate is not None and scaling.paused))


def _conflict(pool: LLMTaskPool, rival: str) -> str:
    mode, name = pool.spec.scaling.mode, pool.metadata.name
    if mode is not ScalingMode.AUTO:
        return (
            f"{rival} changed replicas, which spec.replicas of the pool says while scaling.mode is "
            f"{mode}; it is put back: scale the pool instead: kubectl scale llmtaskpool/{name}"
        )
    return (
        f"{rival} writes replicas while scaling.mode is {mode}, and is not followed: set "
        "scaling.mode to External, or stop it and remove spec.replicas; told until 10 min after "
        "the last write"
    )


def _beyond(condition: _Maker, pool: LLMTaskPool) -> list[Condition]:
    """Of mode External: what somebody wrote to /scale, where the pool's bounds don't allow it."""
    given, scaling, allowed = pool.spec.replicas, pool.spec.scaling, given_replicas(pool.spec)
    if given is None or given == allowed:
        return []
    high = given > allowed
    bound, name = (Bound.MAXIMUM, "max") if high else (Bound.MINIMUM, "min")
    message = (
        f"spec.replicas is {given}, written through /scale, and scaling.{name}Replicas is "
        f"{allowed}, which holds: {'raise' if high else 'lower'} it, or bound whoever scales "
        f"to {scaling.min_replicas}..{scaling.max_replicas}"
    )
    return [condition(ConditionType.SCALING_LIMITED, True, bound.value, message)]


def _metrics(
    condition: _Maker, pool: LLMTaskPool, seen: PoolObservation, decided: PoolDecision
) -> Condition:
    reporting = [pod for pod in seen.staying if pod.fresh]
    if seen.missing:
        errors = {pod.name: pod.error for pod in seen.staying}
        named = [
            f"{name} ({error})" if (error := errors.get(name)) else name for name in seen.missing
        ]
        return condition(
            ConditionType.METRICS_AVAILABLE,
            False,
            "PodsSilent",
            f"no fresh state from {', '.join(named)}: no fall until they report",
        )
    if without := lacking(pool.spec, seen):
        return condition(
            ConditionType.METRICS_AVAILABLE,
            False,
            "MetricMissing",
            f"no gpus.utilization from {', '.join(without)}, which scaling.metric needs: no fall "
            "until they report it; on nodes without NVML choose another scaling.metric",
        )
    ignored = decided.replicas.ignored if decided.replicas is not None else ()
    if ignored:
        return condition(ConditionType.METRICS_AVAILABLE, False, "OddSamples", "; ".join(ignored))
    if not reporting:
        return condition(ConditionType.METRICS_AVAILABLE, None, "NoPods", "no pod reports yet")
    return condition(
        ConditionType.METRICS_AVAILABLE, True, "Fresh", f"{len(reporting)} pods report"
    )


def _active(condition: _Maker, pool: LLMTaskPool) -> Condition:
    scaling = pool.spec.scaling
    if scaling.paused:
        return condition(ConditionType.SCALING_ACTIVE, False, "Paused", "scaling.paused is true")
    active = scaling.mode is ScalingMode.AUTO
    return condition(
        ConditionType.SCALING_ACTIVE, active, scaling.mode.value, f"scaling.mode is {scaling.mode}"
    )
