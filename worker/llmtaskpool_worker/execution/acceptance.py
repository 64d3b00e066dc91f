"""Taking a task in, or saying why not: placed, costed, queued, entered in the books."""

from __future__ import annotations

from collections.abc import Callable

from llmtaskpool_worker.brokers.own_books import IdempotencyConflict
from llmtaskpool_worker.brokers.retention import NoRoom
from llmtaskpool_worker.execution.active_task import ActiveTask
from llmtaskpool_worker.execution.lanes import Lane
from llmtaskpool_worker.execution.ledger import TaskLedger
from llmtaskpool_worker.execution.placement import Placement
from llmtaskpool_worker.execution.pool import Rejected
from llmtaskpool_worker.scheduling.cost import CostModel
from llmtaskpool_worker.scheduling.priority import priority
from llmtaskpool_worker.scheduling.sizes import request_bytes
from llmtaskpool_worker.scheduling.task import TaskRequest, TaskView
from llmtaskpool_worker.scheduling.task_queue import QueueFullError, Waiting


class Acceptance:
    """Accepts requests into the lanes' queues.

    ``patience_seconds``: the longest wait by default of a task that its client waits for,
    ``unattended_seconds`` of one whose result is fetched later.
    ``closed`` says whether the worker drains.
    """

    def __init__(
        self,
        placement: Placement,
        ledger: TaskLedger,
        cost: CostModel,
        *,
        clock: Callable[[], float],
        new_id: Callable[[], str],
        patience_seconds: float,
        unattended_seconds: float,
        closed: Callable[[], bool],
    ) -> None:
        self._placement, self._ledger, self._cost = placement, ledger, cost
        self._clock, self._new_id = clock, new_id
        self._patience_seconds = patience_seconds
        self._unattended_seconds = unattended_seconds
        self._closed = closed

    def accept(self, request: TaskRequest) -> tuple[TaskView, Lane | None]:
        """The task and the lane it waits in; None: its idempotency key was known. Raises Rejected.

        Rejected work is offered work all the same.
        """
        request, lane = self._placement.place(request)
        try:
            if (known := self._ledger.broker.find(request)) is not None:
                return known, None
        except IdempotencyConflict:
            raise Rejected(
                "idempotency_conflict",
                "idempotency_key belongs to a task with another body: use a new key",
                field="idempotency_key",
            ) from None
        cost_class = self._cost.classify(request)
        now, load = self._clock(), self._cost.load(cost_class)
        work = self._cost.work(request, cost_class, lane.threads)
        self._ledger.arrived(work)
        task = ActiveTask(self._new_id(), request, lane, cost_class, work, now)
        try:
            self._queue(task)
            return self._enter(task, load), lane
        except Rejected:
            self._ledger.reject()
            raise

    def _enter(self, task: ActiveTask, load: float) -> TaskView:
        try:
            return self._ledger.enter(task, load, priority(task.request.weight, load))
        except NoRoom as full:
            task.lane.queue.cancel(task.id)
            raise Rejected(
                "results_full",
                "there is no room to keep another result: come back when some have expired, or "
                "raise LLMTASKPOOL_RESULT_BYTES",
                retry_after_seconds=full.retry_after_seconds,
            ) from None

    def _queue(self, task: ActiveTask) -> None:
        if self._closed():
            raise Rejected("draining", "this worker is stopping", retry_after_seconds=1.0)
        request, lane = task.request, task.lane
        usual = self._patience_seconds if request.attended else self._unattended_seconds
        patience = request.queue_timeout_seconds or usual
        task.waiting = Waiting(
            id=task.id,
            group=request.model or request.kind,
            cost_class=task.cost_class,
            weight=request.weight,
            arrived_at=task.arrived_at,
            expires_at=task.arrived_at + patience,
            size_bytes=request_bytes(request),
        )
        try:
            lane.queue.push(task.waiting)
        except QueueFullError as full:
            raise Rejected(
                "queue_full",
                f"the queue of lane {lane.name} is full ({full.limit} {full.bound})",
                retry_after_seconds=self._ledger.retry_after(lane),
            ) from None
