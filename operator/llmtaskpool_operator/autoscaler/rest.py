"""A pool at rest: a turn that sees the same again need not find out the same again. Pure.

All that is decided and told follows from the spec, from what is observed and from what the law
remembers. Where these are as they were, but for the time, so is what follows, as time alone
changes two things: what a window holds back, and what a schedule asks for. A pool rests while no
window holds anything back, its samples are all the same, and its schedules ask for the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmtaskpool_worker.contract import QueueState, WorkerReport

from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.autoscaler import law
from llmtaskpool_operator.autoscaler.decide import PoolMemory, decides_replicas
from llmtaskpool_operator.autoscaler.observation import History, PodObservation, PoolObservation
from llmtaskpool_operator.autoscaler.reconcile import LoopMemory, ReconcileResult

_ASIDE: dict[str, Any] = {"observed_at": 0.0, "rss_bytes": None, "queue": None}
"""Of a worker's state: its clock, what nobody decides by, and what is compared by itself."""


def next_turn_seconds(result: ReconcileResult) -> float:
    """A second while anything moves; an idle pool at rest is looked at every five."""
    seen = result.observed
    if not seen.scalable:
        # Somebody else's Deployment: nobody tells us when it goes.
        return law.DEFAULTS.period_seconds
    if seen.replicas == 0 and seen.gate is not None and seen.gate.ready:
        return result.requeue_after  # whoever comes to the gate of a pool that sleeps is waiting
    resting = not result.plan and not seen.problems and _idle(seen)
    return law.DEFAULTS.period_seconds if resting else result.requeue_after


def rests(
    spec: LLMTaskPoolSpec, policy: law.Policy, before: LoopMemory, result: ReconcileResult
) -> bool:
    """Whether a turn found all as the turn ``before`` it, and so will those after it.

    Until something of it changes, or ``policy``, which is the one for replicas. Replicas were
    decided in it where they are the operator's to decide.
    """
    seen, now = result.observed, result.memory.decided.replicas_at
    if result.plan or result.status is not before.status or not _undisturbed(seen):
        return False
    decided = [one.decision for one in result.decisions.threads]
    if decides_replicas(spec):
        if result.decisions.replicas is None:
            return False
        decided.append(result.decisions.replicas)
    if any(not one.desired == one.wanted == one.current for one in decided):
        return False
    after = result.memory.decided
    if before.decided.replicas_at == now or not steady(after.history):
        return False
    again = rested(spec, policy, before.decided, now)
    return replace(again, history=after.history) == after


def rested(spec: LLMTaskPoolSpec, policy: law.Policy, memory: PoolMemory, now: float) -> PoolMemory:
    """What ``decide_pool`` leaves of the memory of a pool that rests, at ``now``."""
    if now - memory.replicas_at < law.DEFAULTS.period_seconds:
        return memory
    history, replicas = memory.history.again(now, spec.scaling.averaging_seconds), memory.replicas
    windows = policy.up.stabilization_seconds > 0 or policy.down.stabilization_seconds > 0
    if windows and decides_replicas(spec):
        # The same is wanted again, so that windows end as late as if it had been decided again.
        most = tuple((now, value) for _, value in replicas.most)
        least = tuple((now, value) for _, value in replicas.least)
        replicas = replace(replicas, most=most, least=least)
    return replace(memory, history=history, replicas=replicas, replicas_at=now)


def steady(history: History) -> bool:
    """Whether its samples, two at least, all say the same: nothing arrived and nothing was done."""
    counted = [
        {name: (one.arrived, one.done, one.saturated) for name, one in counters.items()}
        for _, counters in history.samples
    ]
    return len(counted) > 1 and all(one == counted[0] for one in counted)


def unmoved(before: WorkerReport, now: WorkerReport) -> bool:
    """Whether a worker says the same again, but for its clock and the size of its process."""
    if vars(before) | _ASIDE != vars(now) | _ASIDE:
        return False
    return _without_clock(before.queue) == _without_clock(now.queue)


def _without_clock(queue: QueueState | None) -> Mapping[str, Any] | None:
    return None if queue is None else vars(queue) | {"observed_at": 0.0}


def _undisturbed(seen: PoolObservation) -> bool:
    return (
        seen.scalable
        and not seen.problems
        and seen.rival is None
        and not seen.rollout
        and seen.gate is None
        and _idle(seen)
        and all(pod.fresh and pod.error is None for pod in seen.pods)
    )


def _idle(seen: PoolObservation) -> bool:
    return len(seen.pods) == seen.replicas and all(map(_does_nothing, seen.pods))


def _does_nothing(pod: PodObservation) -> bool:
    if not pod.ready or pod.draining or pod.state is None:
        return False
    return not any(lane.active or lane.queued for lane in pod.state.lanes.values())
