"""What holds accepted tasks: the Broker protocol.

A task is claimed for one attempt and committed with the claim's token. The memory broker needs no
more than a dict for that; the attempt, the lease and the token are in the signatures for the
durable one, where a worker that lost its lease must not commit over the one that took it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.scheduling.task import (
    Result,
    TaskError,
    TaskEvent,
    TaskRequest,
    TaskState,
    TaskView,
)


class IdempotencyConflict(Exception):
    """The idempotency key belongs to a task with another body."""


class LeaseLost(Exception):
    """The token is not the one in force: somebody else holds or has ended the task."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What is kept of a task from its acceptance on."""

    id: str
    request: TaskRequest
    lane: LaneName
    load_seconds: float
    priority: float


@dataclass(frozen=True, slots=True)
class Claim:
    """One attempt at a task. ``token`` fences it: an older one commits nothing."""

    attempt: int
    token: int
    lease_until: float


class Broker(Protocol):
    """All calls are from one asyncio loop; ``now`` is in seconds of the caller's clock."""

    def find(self, request: TaskRequest) -> TaskView | None:
        """The task that holds the request's idempotency key. Raises IdempotencyConflict."""

    def accept(self, task: Accepted, now: float) -> TaskView:
        """Keep a task: when this returns, it is as safe as this broker can make it.

        How long its result is kept is told from here on (``result_expires_at``). Raises NoRoom
        when it could not be kept; an attended task (TaskRequest) needs no room.
        """

    def claim(self, task_id: str, now: float, lease_seconds: float) -> Claim:
        """Take a waiting task for one attempt. Raises KeyError, LeaseLost when it doesn't wait."""

    def publish(self, task_id: str, token: int, event: TaskEvent) -> None:
        """Add an event of a running task. Raises LeaseLost."""

    def release(self, task_id: str, token: int, reason: str) -> None:
        """Give a running task back to wait; what it published is forgotten. Raises LeaseLost."""

    def commit(self, task_id: str, token: int, result: Result | TaskError, now: float) -> TaskView:
        """End a running task, once. Raises LeaseLost.

        A result that is much larger than was expected may find no room: then the task fails with
        ``result_lost``, unless somebody waits for it or follows it.
        """

    def end_waiting(
        self, task_id: str, state: TaskState, error: TaskError | None, now: float
    ) -> TaskView:
        """End a task that was never started: cancelled, expired or failed."""

    def cancel_running(self, task_id: str, token: int, now: float) -> TaskView:
        """End a running task as cancelled. Raises LeaseLost."""

    def get(self, task_id: str) -> TaskView | None:
        """The task as it is now; None when unknown or forgotten."""

    def watched(self, task_id: str) -> bool:
        """Whether somebody has read events of the task: then they can't be unsaid."""

    def events(self, task_id: str) -> AsyncIterator[TaskEvent]:
        """All events of a task from its beginning, until it ends. Raises KeyError."""

    async def wait(self, task_id: str) -> TaskView:
        """The task once it has ended. Raises KeyError."""

    def let_go(self, task_id: str) -> None:
        """The submitter of an attended task has read it, or won't. Idempotent."""

    def forget(self, now: float) -> None:
        """Give back what ended tasks hold beyond the broker's limits."""
