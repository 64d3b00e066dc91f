"""Taking a task in, or saying why not: placed, costed, handed to the broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

from msgspec.structs import replace

from llmtaskpool_worker.brokers.protocol import (
    Full,
    IdempotencyConflict,
    Line,
    Receipt,
    Submission,
    Unavailable,
    UnknownParent,
)
from llmtaskpool_worker.brokers.retention import NoRoom
from llmtaskpool_worker.execution.lanes import Lane
from llmtaskpool_worker.execution.ledger import TaskLedger
from llmtaskpool_worker.execution.placement import Placement
from llmtaskpool_worker.execution.pool import Rejected
from llmtaskpool_worker.scheduling.cost import CostClass, CostModel
from llmtaskpool_worker.scheduling.limits import Limits
from llmtaskpool_worker.scheduling.priority import priority
from llmtaskpool_worker.scheduling.sizes import request_bytes
from llmtaskpool_worker.scheduling.task import TERMINAL, TaskRequest, TaskView


@lru_cache(maxsize=4096)
def _line_of(cost_class: CostClass, tenant: str) -> Line:
    return Line(cost_class.text, tenant)


@contextmanager
def rejecting() -> Iterator[None]:
    """A broker that is away is told as Rejected."""
    try:
        yield
    except Unavailable as away:
        raise Rejected(
            "queue_unavailable",
            f"{away.reason}; come back, and use an idempotency key, as it is not known what of "
            "this was done",
            retry_after_seconds=away.retry_after_seconds,
        ) from None


class Acceptance:
    """Accepts requests into the broker's line.

    ``limits`` are the worker's; ``closed`` says whether it drains.
    """

    def __init__(
        self,
        placement: Placement,
        ledger: TaskLedger,
        cost: CostModel,
        *,
        clock: Callable[[], float],
        new_id: Callable[[], str],
        limits: Limits,
        worker: str,
        closed: Callable[[], bool],
    ) -> None:
        self._placement, self._ledger, self._cost = placement, ledger, cost
        self._clock, self._new_id = clock, new_id
        self._limits, self._worker, self._closed = limits, worker, closed

    async def accept(self, request: TaskRequest) -> tuple[TaskView, Lane | None]:
        """The task and the lane it waits in; None: its idempotency key was known. Raises Rejected.

        Rejected work is offered work all the same.
        """
        request, lane = self._placement.place(self._weighed(request))
        await self._check_parents(request)
        cost_class = self._cost.classify(request)
        load = self._cost.load(cost_class)
        work = self._cost.work(request, cost_class, lane.threads)
        try:
            receipt = await self._enter(request, lane, cost_class, load, work)
        except Rejected as rejected:
            if rejected.code != "idempotency_conflict":
                self._ledger.arrived(work)
                self._ledger.reject()
                self._ledger.tenants.refused(request.tenant)
            raise
        if receipt.known:
            return receipt.view, None
        self._ledger.arrived(work)
        self._ledger.accepted()
        if receipt.view.state in TERMINAL:  # what it depends on can't succeed any more
            self._ledger.ended(receipt.view)
        return receipt.view, lane

    def _weighed(self, request: TaskRequest) -> TaskRequest:
        """The request with no more than its tenant's largest weight. Raises Rejected.

        A weight of 1 is what is taken where none was said, so it is lowered.
        """
        most = self._ledger.tenants.of(request.tenant).weight
        if most is None or request.weight <= most:
            return request
        if request.weight > 1:
            self._ledger.tenants.refused(request.tenant)
            raise Rejected(
                "weight_too_large",
                f"weight is {request.weight:g} and the most for your key is {most:g}: send at most "
                "that, or leave it out",
                field="weight",
            )
        return replace(request, weight=most)

    async def _check_parents(self, request: TaskRequest) -> None:
        """They are there for its tenant: else it would get their results. Raises Rejected."""
        sight = self._limits.tenants.sight(request.tenant)
        if sight is None or request.dependencies is None:
            return
        get = self._ledger.broker.get
        with rejecting():
            views = await asyncio.gather(*(get(one) for one in request.dependencies.parents))
        for parent, view in zip(request.dependencies.parents, views, strict=True):
            if view is None or view.tenant != sight:
                raise _unknown(parent)

    async def _enter(
        self, request: TaskRequest, lane: Lane, cost_class: CostClass, load: float, work: float
    ) -> Receipt:
        """Hand the task to the broker. Raises Rejected."""
        if self._closed():
            raise Rejected("draining", "this worker is stopping", retry_after_seconds=1.0)
        limits = self._limits
        usual = limits.task_queue_timeout_seconds
        if request.attended:
            usual = limits.queue_timeout_seconds
        submission = Submission(
            id=self._new_id(),
            request=request,
            lane=lane.name,
            group=request.model or request.kind,
            line=_line_of(cost_class, request.tenant),
            load_seconds=load,
            priority=priority(request.weight, load),
            work_seconds=work,
            size_bytes=request_bytes(request),
            patience_seconds=request.queue_timeout_seconds or usual,
            run_seconds=request.timeout_seconds or limits.run_timeout_seconds,
            dependencies=request.dependencies,
            bound_to=self._worker if request.attended else None,
            group_most=self._placement.most_waiting(request.model),
        )
        try:
            with rejecting():
                return await self._ledger.broker.accept(submission)
        except IdempotencyConflict:
            raise Rejected(
                "idempotency_conflict",
                "idempotency_key belongs to a task with another body: use a new key",
                field="idempotency_key",
            ) from None
        except UnknownParent as unknown:
            raise _unknown(unknown.parent) from None
        except Full as full:
            if full.bound == "tenant":
                raise Rejected(
                    "tenant_full",
                    f"{full.limit} tasks of your key wait already, which is the most that may: "
                    "come back when some have begun",
                    retry_after_seconds=self._ledger.retry_after(lane),
                ) from None
            if full.bound == "model":
                raise Rejected(
                    "queue_full",
                    f"{full.limit} tasks wait already for the model {request.model}, which is the "
                    "most that may: come back when some have begun",
                    field="model",
                    retry_after_seconds=self._ledger.retry_after(lane),
                ) from None
            raise Rejected(
                "queue_full",
                f"the queue of lane {lane.name} is full ({full.limit} {full.bound})",
                retry_after_seconds=self._ledger.retry_after(lane),
            ) from None
        except NoRoom as full:
            raise Rejected(
                "results_full",
                "there is no room to keep another result: come back when some have expired, or "
                "raise LLMTASKPOOL_RESULT_BYTES",
                retry_after_seconds=full.retry_after_seconds,
            ) from None


def _unknown(parent: str) -> Rejected:
    return Rejected(
        "unknown_task",
        f"depends_on: there is no task {parent[:80]!r}: it never was, or its result was kept as "
        "long as results are kept",
        field="depends_on",
    )
