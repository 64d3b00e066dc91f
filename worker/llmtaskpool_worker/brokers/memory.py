"""The broker that holds tasks in this process: fast, and lost with it."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

import msgspec

from llmtaskpool_worker.brokers.own_books import Accepted, Claim, IdempotencyConflict, LeaseLost
from llmtaskpool_worker.brokers.retention import NoRoom, Retention
from llmtaskpool_worker.scheduling.limits import ResultLimits
from llmtaskpool_worker.scheduling.sizes import event_bytes, record_bytes, result_bytes
from llmtaskpool_worker.scheduling.task import (
    IN_FLIGHT,
    TERMINAL,
    WAITING,
    Call,
    Result,
    StateChanged,
    TaskError,
    TaskEvent,
    TaskRequest,
    TaskState,
    TaskView,
)


@dataclass(slots=True, eq=False)
class _Held:
    """One task: what was accepted, where it is, what it said."""

    task: Accepted
    submitted_at: float
    state: TaskState = TaskState.QUEUED
    started_at: float | None = None
    ended_at: float | None = None
    attempts: int = 0
    token: int = 0
    result: Result | None = None
    error: TaskError | None = None
    events: list[TaskEvent] = field(default_factory=list)
    watched: bool = False
    readers: int = 0
    """Who waits for it or follows it now."""
    waiters: list[asyncio.Future[None]] = field(default_factory=list)
    size_bytes: int = 0
    keep_seconds: float | None = None
    """How long its result was promised to be kept; None: nothing was."""
    expected_bytes: int = 0
    attended: bool = False
    """Its submitter has not let go of it yet."""

    @property
    def expires_at(self) -> float | None:
        if self.keep_seconds is None:
            return None
        since = self.submitted_at if self.ended_at is None else self.ended_at
        return since + self.keep_seconds

    def view(self) -> TaskView:
        task = self.task
        return TaskView(
            id=task.id,
            kind=task.request.kind,
            lane=task.lane,
            model=task.request.model,
            state=self.state,
            weight=task.request.weight,
            load_seconds=task.load_seconds,
            priority=task.priority,
            submitted_at=self.submitted_at,
            started_at=self.started_at,
            ended_at=self.ended_at,
            attempts=self.attempts,
            result=self.result,
            error=self.error,
            result_expires_at=self.expires_at,
            labels=task.request.labels,
        )

    def say(self, event: TaskEvent) -> None:
        self.events.append(event)
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def changed(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiters.append(waiter)
        await waiter


class MemoryBroker:
    """Broker over dicts.

    What is promised is kept until it expires, and longer while somebody waits for it or follows
    it. What isn't (attended tasks, once their submitter let go of them) is kept beside it while
    there is room, for the least time of the limits.
    """

    def __init__(self, limits: ResultLimits) -> None:
        self._limits = limits
        self._held: dict[str, _Held] = {}
        self._retention = Retention(limits)
        self._expiring: list[tuple[float, str]] = []
        self._spare: OrderedDict[str, _Held] = OrderedDict()
        self._spare_bytes = 0
        self._keys: dict[str, tuple[str, bytes]] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def kept_bytes(self) -> int:
        """Bytes of ended tasks, and of those whose results are promised."""
        return self._retention.bytes + self._spare_bytes

    def find(self, request: TaskRequest) -> TaskView | None:
        """See Broker."""
        known = self._keys.get(request.idempotency_key or "")
        if known is None:
            return None
        task_id, fingerprint = known
        if fingerprint != _fingerprint(request):
            raise IdempotencyConflict
        return self._held[task_id].view()

    def accept(self, task: Accepted, now: float) -> TaskView:
        """See Broker."""
        request = task.request
        held = _Held(task, now, size_bytes=record_bytes(request), attended=request.attended)
        if not request.attended:
            self._promise(held, now)
        self._held[task.id] = held
        if key := request.idempotency_key:
            self._keys[key] = task.id, _fingerprint(request)
        self._say(held, StateChanged(TaskState.QUEUED))
        return held.view()

    def _promise(self, held: _Held, now: float) -> None:
        """Reserve room for the result. Raises NoRoom."""
        room = self._retention
        expected = room.expected(_sort(held))
        keep = room.keep_seconds(held.size_bytes + expected)
        if keep is None:
            self.forget(now)
            keep = room.keep_seconds(held.size_bytes + expected)
        if keep is None:
            first = self._expiring[0][0] if self._expiring else now
            raise NoRoom(min(60.0, max(1.0, first - now)))
        held.keep_seconds, held.expected_bytes = keep, expected
        room.tasks += 1
        room.bytes += held.size_bytes
        room.reserved += expected

    def claim(self, task_id: str, now: float, lease_seconds: float) -> Claim:
        """See Broker. A lease of this broker lasts as long as its process."""
        held = self._held[task_id]
        if held.state not in WAITING:
            raise LeaseLost(task_id)
        held.state = TaskState.RUNNING
        held.attempts += 1
        held.token += 1
        held.started_at = now if held.started_at is None else held.started_at
        self._say(held, StateChanged(TaskState.RUNNING))
        return Claim(held.attempts, held.token, now + lease_seconds)

    def publish(self, task_id: str, token: int, event: TaskEvent) -> None:
        """See Broker."""
        held = self._running(task_id, token)
        held.say(event)
        size = event_bytes(event)
        held.size_bytes += size
        if held.keep_seconds is not None:
            self._retention.bytes += size

    def release(self, task_id: str, token: int, reason: str) -> None:
        """See Broker."""
        held = self._running(task_id, token)
        held.state = TaskState.QUEUED
        held.token += 1
        self._unsay(held)
        self._say(held, StateChanged(TaskState.QUEUED, reason))

    def commit(self, task_id: str, token: int, result: Result | TaskError, now: float) -> TaskView:
        """See Broker."""
        held = self._running(task_id, token)
        if isinstance(result, TaskError):
            held.error = result
            return self._end(held, TaskState.FAILED, now)
        size = result_bytes(result)
        if held.keep_seconds is not None:
            self._retention.observe(_sort(held), size)
            if self._retention.full(size):
                if not held.readers:
                    return self._lose(held, now)
                self._unpromise(held)  # it is read now, and given up then
        held.result = result
        self._grow(held, size)
        return self._end(held, TaskState.SUCCEEDED, now)

    def _lose(self, held: _Held, now: float) -> TaskView:
        """Give up the result of a task that succeeded, and say so."""
        self._unsay(held)
        held.error = _NO_ROOM
        return self._end(held, TaskState.FAILED, now)

    def end_waiting(
        self, task_id: str, state: TaskState, error: TaskError | None, now: float
    ) -> TaskView:
        """See Broker."""
        held = self._held[task_id]
        if held.state not in WAITING:
            raise LeaseLost(task_id)
        held.error = error
        return self._end(held, state, now)

    def cancel_running(self, task_id: str, token: int, now: float) -> TaskView:
        """See Broker."""
        return self._end(self._running(task_id, token), TaskState.CANCELLED, now)

    def get(self, task_id: str) -> TaskView | None:
        """See Broker."""
        held = self._held.get(task_id)
        return None if held is None else held.view()

    def watched(self, task_id: str) -> bool:
        """See Broker."""
        return self._held[task_id].watched

    async def events(self, task_id: str) -> AsyncIterator[TaskEvent]:
        """See Broker."""
        held = self._held[task_id]
        held.watched = True
        held.readers += 1
        try:
            seen = 0
            while True:
                while seen < len(held.events):
                    event = held.events[seen]
                    seen += 1
                    yield event
                if held.state in TERMINAL:
                    return
                await held.changed()
        finally:
            held.readers -= 1

    async def wait(self, task_id: str) -> TaskView:
        """See Broker."""
        held = self._held[task_id]
        held.readers += 1
        try:
            while held.state not in TERMINAL:
                await held.changed()
            return held.view()
        finally:
            held.readers -= 1

    def let_go(self, task_id: str) -> None:
        """See Broker."""
        held = self._held.get(task_id)
        if held is None or not held.attended:
            return
        held.attended = False
        if held.state in TERMINAL:
            self._spared(held)

    def forget(self, now: float) -> None:
        """See Broker."""
        while self._expiring and self._expiring[0][0] <= now:
            held = self._held[heappop(self._expiring)[1]]
            self._unpromise(held)
            self._spared(held)
            if not held.readers:
                self._drop(held)
        limits = self._limits
        for _ in range(len(self._spare)):
            held = next(iter(self._spare.values()))
            ended_at = held.ended_at if held.ended_at is not None else now
            tasks = self._retention.tasks + len(self._spare)
            if (
                tasks <= limits.tasks
                and self.kept_bytes <= limits.bytes
                and now - ended_at < min(limits.ttl_seconds, limits.ttl_least_seconds)
            ):
                return
            if held.readers:
                self._spare.move_to_end(held.task.id)
            else:
                self._drop(held)

    def _running(self, task_id: str, token: int) -> _Held:
        held = self._held[task_id]
        if held.state not in IN_FLIGHT or held.token != token:
            raise LeaseLost(task_id)
        return held

    def _say(self, held: _Held, event: TaskEvent) -> None:
        held.say(event)
        self._grow(held, event_bytes(event))

    def _unsay(self, held: _Held) -> None:
        """Forget what was said since the task was accepted."""
        self._grow(held, -sum(event_bytes(event) for event in held.events))
        held.events = []
        self._say(held, StateChanged(TaskState.QUEUED))

    def _grow(self, held: _Held, size: int) -> None:
        held.size_bytes += size
        if held.keep_seconds is not None:
            self._retention.bytes += size

    def _end(self, held: _Held, state: TaskState, now: float) -> TaskView:
        held.state, held.ended_at = state, now
        held.task = _without_input(held.task)
        held.token += 1
        self._say(held, StateChanged(state, held.error.code if held.error else ""))
        if (expires_at := held.expires_at) is not None:
            self._retention.reserved -= held.expected_bytes
            held.expected_bytes = 0
            heappush(self._expiring, (expires_at, held.task.id))
        elif not held.attended:
            self._spared(held)
        view = held.view()
        self.forget(now)
        return view

    def _unpromise(self, held: _Held) -> None:
        """The time of a promised result is over, or it is too large: its room is free again."""
        self._retention.tasks -= 1
        self._retention.bytes -= held.size_bytes
        self._retention.reserved -= held.expected_bytes
        held.keep_seconds, held.expected_bytes = None, 0

    def _spared(self, held: _Held) -> None:
        """Nobody is promised this result: it stays while there is room, and while it is read."""
        self._spare[held.task.id] = held
        self._spare_bytes += held.size_bytes

    def _drop(self, held: _Held) -> None:
        del self._spare[held.task.id], self._held[held.task.id]
        self._spare_bytes -= held.size_bytes
        key = held.task.request.idempotency_key
        if key and self._keys.get(key, ("",))[0] == held.task.id:
            del self._keys[key]


_NO_ROOM = TaskError(
    "result_lost",
    "the task succeeded and its result was given up: it found no room among the results that are "
    "kept (LLMTASKPOOL_RESULT_BYTES); submit it again when those have expired",
)


def _without_input(task: Accepted) -> Accepted:
    """What is kept of a task that has ended: nobody asks for its input any more."""
    return replace(task, request=replace(task.request, payload=Call()))


def _sort(held: _Held) -> tuple[str, str | None]:
    return held.task.request.kind, held.task.request.model


def _fingerprint(request: TaskRequest) -> bytes:
    """Of what a request asks for; the same for two requests that ask for the same."""
    asked = (
        request.kind,
        request.model,
        request.payload,
        request.weight,
        request.queue_timeout_seconds,
        request.timeout_seconds,
    )
    return hashlib.sha256(msgspec.json.encode(asked, order="sorted")).digest()
