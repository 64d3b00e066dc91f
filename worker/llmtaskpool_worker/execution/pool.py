"""The worker's task pool as its HTTP servers see it: the seam between serving and running."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from llmtaskpool_worker.brokers.protocol import Durability
from llmtaskpool_worker.contract import (
    DrainAnswer,
    LaneName,
    ModelProblem,
    ThreadsAnswer,
    WorkerState,
)
from llmtaskpool_worker.scheduling.task import Asked, TaskEvent, TaskRequest, TaskView


class Rejected(Exception):
    """A task was not accepted: nothing of it is kept.

    ``code`` is one of queue_full, tenant_full (as many of its key's tasks wait as may),
    weight_too_large (for its key), results_full (no room to keep its result), queue_unavailable
    (the queue can't be written or reached), draining, starting,
    unknown_kind, unknown_model, invalid, model_failed (the model can't be loaded),
    idempotency_conflict (the key belongs to a task with another body);
    ``retry_after_seconds`` is set where trying again later can help; ``field`` names the part
    of the request at fault, where one is.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        field: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.retry_after_seconds = retry_after_seconds


class Unsuccessful(Exception):
    """A task was accepted and ended without a result: ``view`` says how."""

    def __init__(self, view: TaskView) -> None:
        super().__init__(f"the task ended as {view.state}")
        self.view = view


class StaleGeneration(Exception):
    """Threads were set with a generation below the one observed; ``observed`` is that one."""

    def __init__(self, observed: int) -> None:
        super().__init__(f"generation is older than {observed}, which is in force")
        self.observed = observed


class TaskPool(Protocol):
    """What runs tasks. All calls are from one asyncio loop."""

    @property
    def durability(self) -> Durability:
        """What is promised of tasks whose results are fetched later."""

    async def submit(self, request: TaskRequest) -> TaskView:
        """Accept a task (or return the one that holds its idempotency key).

        Raises:
            Rejected: the queue is full or away, the worker drains, the kind or model is unknown.
        """

    async def get(self, task_id: str) -> TaskView | None:
        """The task as it is now; None when unknown or forgotten. Raises Rejected."""

    async def wait(self, task_id: str) -> TaskView:
        """The task once it has ended. Raises KeyError when unknown, Rejected."""

    def events(self, task_id: str) -> AsyncIterator[TaskEvent]:
        """All events of a task from its beginning, until it ends. Raises KeyError when unknown."""

    async def cancel(self, task_id: str) -> TaskView | None:
        """Cancel: at once when it waits, at the next step boundary when it runs.

        The view of it now; None when unknown. Raises Rejected.
        """

    async def list(self, asked: Asked) -> Sequence[TaskView]:
        """Tasks without their results, newest first. Raises Rejected."""

    async def replay(self, task_id: str) -> TaskView | None:
        """A dead letter waits again; None when it is none. Raises Rejected."""

    def abandon(self, task_id: str) -> None:
        """The submitter of an attended task is gone: nobody wants it. Idempotent."""

    def let_go(self, task_id: str) -> None:
        """The submitter of an attended task has read its result, or won't. Idempotent."""

    def set_threads(self, generation: int, threads: dict[LaneName, int]) -> ThreadsAnswer:
        """Set N per lane, live. Raises StaleGeneration."""

    def drain(self, budget_seconds: float) -> DrainAnswer:
        """Stop accepting, finish what is accepted within the budget; idempotent."""

    def state(self) -> WorkerState:
        """All that the operator reads."""

    def alive(self) -> bool:
        """False when an engine stood still for so long that killing it has not helped."""

    def problems(self) -> Mapping[str, ModelProblem]:
        """Why models take nothing now, by name; empty when all do, or load for the first time."""

    def models(self) -> Sequence[str]:
        """Names of the models, in the order they were configured."""
