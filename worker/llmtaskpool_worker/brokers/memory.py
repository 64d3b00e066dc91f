"""The broker that holds tasks in this process: fast, and lost with it."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import msgspec

from llmtaskpool_worker.brokers.protocol import Accepted, Claim, IdempotencyConflict, LeaseLost
from llmtaskpool_worker.scheduling.limits import ResultLimits
from llmtaskpool_worker.scheduling.task import (
    IN_FLIGHT,
    TERMINAL,
    WAITING,
    Call,
    Embedded,
    Generate,
    Generated,
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
    waiters: list[asyncio.Future[None]] = field(default_factory=list)
    size_bytes: int = 0

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
    """Broker over dicts. Ended tasks are kept within ``limits`` for their owners to read."""

    def __init__(self, limits: ResultLimits) -> None:
        self._limits = limits
        self._held: dict[str, _Held] = {}
        self._ended: OrderedDict[str, _Held] = OrderedDict()
        self._ended_bytes = 0
        self._keys: dict[str, tuple[str, bytes]] = {}

    def __len__(self) -> int:
        return len(self._held)

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
        held = self._held[task.id] = _Held(task, now)
        if key := task.request.idempotency_key:
            self._keys[key] = task.id, _fingerprint(task.request)
        held.say(StateChanged(TaskState.QUEUED))
        return held.view()

    def claim(self, task_id: str, now: float, lease_seconds: float) -> Claim:
        """See Broker. A lease of this broker lasts as long as its process."""
        held = self._held[task_id]
        if held.state not in WAITING:
            raise LeaseLost(task_id)
        held.state = TaskState.RUNNING
        held.attempts += 1
        held.token += 1
        held.started_at = now if held.started_at is None else held.started_at
        held.say(StateChanged(TaskState.RUNNING))
        return Claim(held.attempts, held.token, now + lease_seconds)

    def publish(self, task_id: str, token: int, event: TaskEvent) -> None:
        """See Broker."""
        self._running(task_id, token).say(event)

    def release(self, task_id: str, token: int, reason: str) -> None:
        """See Broker."""
        held = self._running(task_id, token)
        held.state = TaskState.QUEUED
        held.token += 1
        held.events = [StateChanged(TaskState.QUEUED)]
        held.say(StateChanged(TaskState.QUEUED, reason))

    def commit(self, task_id: str, token: int, result: Result | TaskError, now: float) -> TaskView:
        """See Broker."""
        held = self._running(task_id, token)
        if isinstance(result, TaskError):
            held.error = result
            return self._end(held, TaskState.FAILED, now)
        held.result = result
        return self._end(held, TaskState.SUCCEEDED, now)

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
        seen = 0
        while True:
            while seen < len(held.events):
                event = held.events[seen]
                seen += 1
                yield event
            if held.state in TERMINAL:
                return
            await held.changed()

    async def wait(self, task_id: str) -> TaskView:
        """See Broker."""
        held = self._held[task_id]
        while held.state not in TERMINAL:
            await held.changed()
        return held.view()

    def forget(self, now: float) -> None:
        """See Broker."""
        limits = self._limits
        while self._ended:
            oldest = next(iter(self._ended.values()))
            ended_at = oldest.ended_at if oldest.ended_at is not None else now
            if (
                len(self._ended) <= limits.tasks
                and self._ended_bytes <= limits.bytes
                and now - ended_at < limits.ttl_seconds
            ):
                return
            self._drop(oldest)

    def _running(self, task_id: str, token: int) -> _Held:
        held = self._held[task_id]
        if held.state not in IN_FLIGHT or held.token != token:
            raise LeaseLost(task_id)
        return held

    def _end(self, held: _Held, state: TaskState, now: float) -> TaskView:
        held.state, held.ended_at = state, now
        held.token += 1
        held.say(StateChanged(state, held.error.code if held.error else ""))
        held.size_bytes = _size(held)
        self._ended[held.task.id] = held
        self._ended_bytes += held.size_bytes
        view = held.view()
        self.forget(now)
        return view

    def _drop(self, held: _Held) -> None:
        del self._ended[held.task.id], self._held[held.task.id]
        self._ended_bytes -= held.size_bytes
        key = held.task.request.idempotency_key
        if key and self._keys.get(key, ("",))[0] == held.task.id:
            del self._keys[key]


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


def _size(held: _Held) -> int:
    """About how many bytes an ended task holds: its input, its result, its events."""
    result, payload = held.result, held.task.request.payload
    size = 512 + 160 * len(held.events)
    if isinstance(payload, Call):
        size += len(msgspec.json.encode(payload.arguments))
    else:
        size += sys.getsizeof(payload.prompt if isinstance(payload, Generate) else payload.tokens)
    if isinstance(result, Generated):
        return size + 3 * len(result.text) + 32 * len(result.tokens)
    if isinstance(result, Embedded):
        return size + len(result.vector)
    return size + (len(msgspec.json.encode(result.value)) if result is not None else 0)
