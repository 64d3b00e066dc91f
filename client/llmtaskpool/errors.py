"""What a client raises; every message says what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmtaskpool.views import Batch, Task


class PoolError(Exception):
    """Any of these."""


class Unreachable(PoolError):
    """Nobody answers at the address. ``sent``: the request may have arrived all the same."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class Refused(PoolError):
    """The answer is an error: ``status``, and what it says.

    ``param`` names the field at fault; ``retry_after_seconds`` says when to come back.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.code, self.param = code, param
        self.retry_after_seconds = retry_after_seconds


class TaskFailed(PoolError):
    """A task ended, and did not succeed: ``task`` says how."""

    def __init__(self, task: Task) -> None:
        why = task.error.message if task.error is not None else "it has no result"
        hint = " It can be replayed: client.replay(id)." if task.state == "dead" else ""
        super().__init__(f"the task {task.id} is {task.state}: {why}.{hint}")
        self.task = task


class WaitTimeout(PoolError, TimeoutError):
    """It has not ended in time, and goes on. ``last`` is the Task or Batch as it was then."""

    def __init__(self, last: Task | Batch, state: str, seconds: float) -> None:
        super().__init__(
            f"{last.id} is {state} after {seconds:g} s, and goes on: wait again, or cancel it"
        )
        self.last: Any = last
