"""What a broker raises when it does not take a task, and how one ends that it gives up."""

from __future__ import annotations

from llmtaskpool_worker.scheduling.task import TaskError

SHED = TaskError(
    "shed", "the queue is full, and this was the least urgent of what waits: come back later"
)
"""How a request ends whose place in a full line a more urgent one has taken."""
SHED_AT_ONCE = 16
"""At most so many make room for one."""
EXPIRED = TaskError("queue_timeout", "the task waited longer than it may")
WORKER_LOST = "worker_lost"
DEAD = TaskError(
    WORKER_LOST,
    "each worker that ran this task was lost with it: look at what it asks for before it is "
    "replayed",
)


class IdempotencyConflict(Exception):
    """The idempotency key belongs to a task with another body."""


class Full(Exception):
    """Nothing more may wait; ``bound`` says which bound of ``limit``: tasks or bytes of the lane,
    or tasks of the tenant, or of the model."""

    def __init__(self, bound: str, limit: int) -> None:
        super().__init__(f"the queue is full: {limit} {bound}")
        self.bound, self.limit = bound, limit


class UnknownParent(Exception):
    """A task depends on one that isn't there: it never was, or was forgotten."""

    def __init__(self, parent: str) -> None:
        super().__init__(f"there is no task {parent}")
        self.parent = parent


class Unavailable(Exception):
    """The broker can't be reached or can't write; ``reason`` is for people, without paths."""

    def __init__(self, reason: str, retry_after_seconds: float = 2.0) -> None:
        super().__init__(reason)
        self.reason, self.retry_after_seconds = reason, retry_after_seconds
