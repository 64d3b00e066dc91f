"""All decisions of one tick for one pool: the law, once for the replicas, once per lane. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from statistics import median_low

from llmtaskpool_worker.contract import LaneName

from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.api.scaling import ScalingMode, ScalingRules
from llmtaskpool_operator.api.schedule import scheduled_minimum
from llmtaskpool_operator.api.threads import LaneThreads
from llmtaskpool_operator.autoscaler import law
from llmtaskpool_operator.autoscaler.gpu import thread_caps
from llmtaskpool_operator.autoscaler.observation import (
    History,
    PodObservation,
    PoolObservation,
    observed_replicas,
    observed_threads,
    shares_queue,
)

LaneOfPod = tuple[str, LaneName]


@dataclass(frozen=True, slots=True)
class PoolMemory:
    """What is carried from tick to tick. ``replicas_at``: when replicas were decided last."""

    replicas: law.Memory = field(default_factory=law.Memory)
    replicas_at: float = float("-inf")
    history: History = field(default_factory=History)
    threads: dict[LaneOfPod, law.Memory] = field(default_factory=dict)
    sleeps: bool = False
    """The last decision was that no worker is needed."""


@dataclass(frozen=True, slots=True)
class ThreadDecision:
    """The decision for one lane of one pod."""

    pod: str
    lane: LaneName
    decision: law.Decision


@dataclass(frozen=True, slots=True)
class PoolDecision:
    """``replicas`` None: not this tick, or not the operator's to decide.

    ``sleeps``: no worker is needed, so the gate is to be in the workers' place before they go.
    """

    replicas: law.Decision | None
    threads: tuple[ThreadDecision, ...]
    sleeps: bool = False


def decide_pool(
    spec: LLMTaskPoolSpec, seen: PoolObservation, memory: PoolMemory, now: float
) -> tuple[PoolDecision, PoolMemory]:
    """Decide threads at every tick and replicas every period."""
    scaling = spec.scaling
    # Who waits at the gate of a pool that sleeps waits for each second of ours.
    asked = seen.replicas == 0 and seen.gate is not None and seen.gate.asks
    due = asked or now - memory.replicas_at >= law.DEFAULTS.period_seconds
    decision: law.Decision | None = None
    if due:
        history = memory.history.extended(seen, now, scaling.averaging_seconds)
        memory = replace(memory, history=history, replicas_at=now)
        if decides_replicas(spec):
            observed = observed_replicas(spec, seen, history)
            decision, carried = law.decide(
                replica_policy(spec, now), observed, memory.replicas, now
            )
            memory = replace(memory, replicas=carried, sleeps=decision.desired == 0)
    usual = {lane: _usual(seen, lane) for lane in LaneName}
    decided = [
        _lane(spec, pod, lane, usual[lane], memory, now, _sharers(seen, pod))
        for pod in seen.staying
        if pod.ready and pod.fresh
        for lane in LaneName
    ]
    threads = {(d.pod, d.lane): carried for d, carried in decided if d is not None}
    made = tuple(d for d, _ in decided if d is not None)
    memory = replace(memory, threads=threads)
    return PoolDecision(decision, made, _sleeps(spec, memory)), memory


def decides_replicas(spec: LLMTaskPoolSpec) -> bool:
    """Whether the law is asked for replicas; in the mode Advise to be told, and not done."""
    return spec.scaling.mode in (ScalingMode.AUTO, ScalingMode.ADVISE)


def _sleeps(spec: LLMTaskPoolSpec, memory: PoolMemory) -> bool:
    scaling = spec.scaling
    if scaling.paused or not scaling.may_sleep:
        return False
    return memory.sleeps if scaling.mode is ScalingMode.AUTO else spec.replicas in (None, 0)


def replica_policy(spec: LLMTaskPoolSpec, now: float) -> law.Policy:
    """The law's settings for replicas at ``now``, seconds since the epoch."""
    scaling, behavior = spec.scaling, spec.scaling.behavior
    scheduled = min(scheduled_minimum(scaling.schedules, now), scaling.max_replicas)
    return law.Policy(
        minimum=max(scaling.min_replicas, scheduled),
        maximum=scaling.max_replicas,
        target=scaling.target_utilization,
        alpha=None if scaling.alpha == "Auto" else float(scaling.alpha),
        tolerance=scaling.tolerance,
        up=_direction(behavior.scale_up, 0.0),
        down=_direction(behavior.scale_down, law.DEFAULTS.hold_seconds),
    )


def thread_policy(lane: LaneThreads) -> law.Policy:
    """The law's settings for the threads of one lane."""
    fixed = lane.initial if lane.mode == "Fixed" else None
    return _thread_policy(
        lane.min if fixed is None else fixed,
        lane.max if fixed is None else fixed,
        lane.target_utilization,
    )


@lru_cache(maxsize=256)
def _thread_policy(least: int, most: int, target: float) -> law.Policy:
    """Pools are asked each second, and most of them for the same."""
    return replace(law.THREAD_POLICY, minimum=least, maximum=most, target=target)


def _direction(rules: ScalingRules, default_window: float) -> law.Direction:
    window = rules.stabilization_window_seconds
    return law.Direction(
        stabilization_seconds=default_window if window is None else float(window),
        limits=tuple(
            law.StepLimit(limit.type, float(limit.value), float(limit.period_seconds))
            for limit in rules.policies
        ),
        select=rules.select_policy,
    )


def _lane(
    spec: LLMTaskPoolSpec,
    pod: PodObservation,
    lane: LaneName,
    usual: int | None,
    memory: PoolMemory,
    now: float,
    sharers: int,
) -> tuple[ThreadDecision | None, law.Memory]:
    wanted = spec.threads.compute if lane is LaneName.COMPUTE else spec.threads.io
    state = pod.state.lanes.get(lane) if pod.state is not None else None
    carried = memory.threads.get((pod.name, lane), law.Memory())
    if state is None:
        return None, carried
    policy = thread_policy(wanted)
    seen = observed_threads(state, sharers)
    if lane is LaneName.COMPUTE:
        assert pod.state is not None  # noqa: S101  for mypy: it has this lane
        caps = thread_caps(spec, pod.state, seen.current)
        known = [*caps, *(() if seen.cap is None else (seen.cap,))]
        seen = replace(seen, cap=min(known, default=None))
    if usual is not None and pod.state is not None and pod.state.threads_generation == 0:
        seen = replace(seen, current=usual)
    decision, carried = law.decide(policy, seen, carried, now)
    return ThreadDecision(pod.name, lane, decision), carried


def _sharers(seen: PoolObservation, pod: PodObservation) -> int:
    """How many pods have the queue that a pod tells of."""
    if pod.state is None or not shares_queue(pod.state):
        return 1
    return sum(one.ready and one.fresh for one in seen.staying)


def _usual(seen: PoolObservation, lane: LaneName) -> int | None:
    """What the pool's pods have, from which a pod that was never set starts; None: nothing yet."""
    known = [
        pod.state.lanes[lane].threads
        for pod in seen.staying
        if pod.state is not None
        and pod.fresh
        and pod.state.threads_generation > 0
        and lane in pod.state.lanes
    ]
    return median_low(known) if known else None
