"""One task as a broker of this process holds it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf

import msgspec
from msgspec.structs import replace

from llmtaskpool_worker.brokers.protocol import Claim, Submission
from llmtaskpool_worker.scheduling.task import (
    TERMINAL,
    Asked,
    Call,
    Result,
    TaskError,
    TaskEvent,
    TaskRequest,
    TaskState,
    TaskView,
)
from llmtaskpool_worker.scheduling.task_queue import Waiting


@dataclass(slots=True, eq=False)
class Record:
    """One task: what was accepted, where it is, what it said."""

    task: Submission
    submitted_at: float
    state: TaskState = TaskState.QUEUED
    started_at: float | None = None
    ended_at: float | None = None
    attempts: int = 0
    losses: int = 0
    """Attempts whose worker was lost."""
    alone: bool = False
    fence: str = ""
    """Of the claim in force, or of the one that ended it."""
    lease_until: float = inf
    waiting: Waiting | None = None
    """Its place in the line; None: it is in none now."""
    weight: float = 1.0
    """The strongest of its own and of what waits for it."""
    succeeded: int = 0
    unsuccessful: int = 0
    """Of its parents."""
    children: tuple[str, ...] = ()
    needed: int = 0
    """Children that have not ended."""
    printed: bytes = b""
    """Of what it asks for, where an idempotency key names it."""
    result: Result | None = None
    error: TaskError | None = None
    events: list[TaskEvent] = field(default_factory=list)
    watched: bool = False
    readers: int = 0
    """Who waits for it or follows it now."""
    waiters: list[asyncio.Future[None]] | None = None
    size_bytes: int = 0
    keep_seconds: float | None = None
    """How long its result was promised to be kept; None: nothing was."""
    expected_bytes: int = 0
    attended: bool = False
    """Its submitter has not let go of it yet."""

    @property
    def ended(self) -> bool:
        """Whether it has."""
        return self.state in TERMINAL

    @property
    def attached(self) -> bool:
        """Whether it ends with its client's connection."""
        return self.task.bound_to is not None

    @property
    def claimed(self) -> bool:
        """Whether somebody has it."""
        return bool(self.fence) and self.state not in TERMINAL

    @property
    def expires_at(self) -> float | None:
        """Until when its result is kept, as promised now."""
        if self.keep_seconds is None:
            return None
        since = self.submitted_at if self.ended_at is None else self.ended_at
        return since + self.keep_seconds

    @property
    def sort(self) -> tuple[str, str | None]:
        """Its kind and model."""
        return self.task.request.kind, self.task.request.model

    def view(self) -> TaskView:
        """As others may see it."""
        task, request = self.task, self.task.request
        return TaskView(
            id=task.id,
            kind=request.kind,
            lane=task.lane,
            model=request.model,
            state=self.state,
            weight=request.weight,
            load_seconds=task.load_seconds,
            priority=task.priority,
            submitted_at=self.submitted_at,
            started_at=self.started_at,
            ended_at=self.ended_at,
            attempts=self.attempts,
            result=self.result,
            error=self.error,
            result_expires_at=self.expires_at,
            depends_on=() if task.dependencies is None else task.dependencies.parents,
            labels=request.labels,
            tenant=task.line.tenant,
        )

    def claim(self) -> Claim:
        """The claim in force."""
        task = self.task
        request = task.request
        if self.weight != request.weight:
            request = replace(request, weight=self.weight)
        return Claim(
            task.id,
            self.fence,
            self.attempts,
            self.lease_until,
            request,
            task.lane,
            task.group,
            task.line,
            self.submitted_at,
            self.submitted_at + task.patience_seconds,
            task.run_seconds,
            task.work_seconds,
            self.alone,
            () if task.dependencies is None else task.dependencies.parents,
        )

    def say(self, event: TaskEvent) -> None:
        """Add an event, and wake who waits for one."""
        self.events.append(event)
        if self.waiters:
            self.wake()

    def wake(self) -> None:
        """Those who wait for an event."""
        waiters, self.waiters = self.waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def changed(self) -> asyncio.Future[None]:
        """Done once it has said something more."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.waiters is None:
            self.waiters = [waiter]
        else:
            self.waiters.append(waiter)
        return waiter

    def forget_input(self) -> None:
        """Of a task that has ended nobody asks for its input any more."""
        task = self.task
        self.task = replace(task, request=replace(task.request, payload=_NO_INPUT))
        self.waiting = None


_NO_INPUT = Call()


def fingerprint(task: Submission) -> bytes:
    """Of what a task asks for; the same for two that ask for the same."""
    request: TaskRequest = task.request
    asked = (
        request.kind,
        request.model,
        request.payload,
        request.weight,
        request.queue_timeout_seconds,
        request.timeout_seconds,
        task.dependencies,
        task.delay_seconds,
    )
    return hashlib.sha256(msgspec.json.encode(asked, order="sorted")).digest()


def listed(records: Iterable[Record], asked: Asked) -> list[TaskView]:
    """The newest first; ``records`` in the order of their acceptance."""
    found: list[TaskView] = []
    passed = asked.after is None
    for record in reversed([*records]):
        if asked.tenant not in (None, record.task.line.tenant):
            continue  # nor is one of others a place to go on from
        if not passed:
            passed = record.task.id == asked.after
            continue
        labels = record.task.request.labels
        if record.state in asked.states and all(
            labels.get(name) == value for name, value in asked.labels.items()
        ):
            found.append(replace(record.view(), result=None))
            if len(found) == asked.limit:
                break
    return found
