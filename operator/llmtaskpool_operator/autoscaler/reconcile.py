"""The loop: observe, decide, plan, apply. One body for Kubernetes, for one machine, for tests.

Threads are decided at every turn, replicas every 5 s (``decide`` keeps that cadence). Every
action is absolute, so a turn that was cut short is made good by the next one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from llmtaskpool_operator.api.pool import LLMTaskPool
from llmtaskpool_operator.api.status import LLMTaskPoolStatus
from llmtaskpool_operator.autoscaler import law
from llmtaskpool_operator.autoscaler.decide import PoolDecision, PoolMemory, decide_pool
from llmtaskpool_operator.autoscaler.observation import PoolObservation
from llmtaskpool_operator.autoscaler.plan import Action, plan
from llmtaskpool_operator.autoscaler.status import status_of
from llmtaskpool_operator.autoscaler.telling import rfc3339


class Backend(Protocol):
    """Where a pool's workers live: pods of a cluster, or processes of this machine."""

    async def observe(self, now: float) -> PoolObservation:
        """The pool as it is; ``now`` dates what is read. A worker that is silent is no error."""

    async def apply(self, action: Action) -> None:
        """Do one action of a plan, or raise with the reason why not."""


@dataclass(frozen=True, slots=True)
class LoopMemory:
    """What one turn leaves to the next."""

    decided: PoolMemory = field(default_factory=PoolMemory)
    status: LLMTaskPoolStatus | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """An action that was not done, and why."""

    action: Action
    error: Exception


@dataclass(frozen=True, slots=True)
class ReconcileResult:
    """What a turn saw, decided and did. The next one is due after ``requeue_after`` seconds."""

    observed: PoolObservation
    decisions: PoolDecision
    plan: tuple[Action, ...]
    failures: tuple[Failure, ...]
    status: LLMTaskPoolStatus
    memory: LoopMemory
    requeue_after: float


async def reconcile(
    pool: LLMTaskPool, backend: Backend, memory: LoopMemory, now: float
) -> ReconcileResult:
    """One turn; ``now`` is in seconds since the epoch, of a clock that goes forward.

    An action that fails stops no other: it is in ``failures``. Raises what ``observe`` raises.
    """
    observed = await backend.observe(now)
    decisions, decided = decide_pool(pool.spec, observed, memory.decided, now)
    actions = plan(pool.spec, observed, decisions)
    done = await asyncio.gather(*map(backend.apply, actions), return_exceptions=True)
    failures = tuple(
        Failure(action, outcome)
        for action, outcome in zip(actions, done, strict=True)
        if isinstance(outcome, Exception)
    )
    undone = [failure.action for failure in failures]
    told = [action for action in actions if action not in undone]
    status = status_of(pool, observed, decisions, told, memory.status, rfc3339(now))
    return ReconcileResult(
        observed=observed,
        decisions=decisions,
        plan=actions,
        failures=failures,
        status=status,
        memory=LoopMemory(decided, status),
        requeue_after=law.DEFAULTS.thread_period_seconds,
    )
