"""What tasks say, for who follows them here: those that run here, and those that run elsewhere.

A stream holds the events of a task's attempt in force. What runs here fills it directly; of what
runs elsewhere its worker sends a snapshot and then what comes, each with its place, so that
something lost or said twice is noticed.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from llmtaskpool_worker.scheduling.sizes import event_bytes
from llmtaskpool_worker.scheduling.task import TERMINAL, StateChanged, TaskEvent, TaskState

KEPT = 512
KEPT_BYTES = 8 * 1024 * 1024
"""So much is kept of what has ended and is not read, for who comes late."""


@dataclass(slots=True, eq=False)
class Stream:
    """The events of one task. ``fence``: of the attempt that they are of."""

    events: list[TaskEvent] = field(default_factory=lambda: [StateChanged(TaskState.QUEUED)])
    fence: str = ""
    said: int = 0
    """How many of its attempt's events it has: the place of the next."""
    begun_anew: int = 0
    ended: bool = False
    watched: bool = False
    readers: int = 0
    heard_at: float = 0.0
    size_bytes: int = 0
    _waiters: list[asyncio.Future[None]] = field(default_factory=list)

    def say(self, event: TaskEvent) -> None:
        """One event more."""
        self.events.append(event)
        self.size_bytes += event_bytes(event)
        self._changed()

    def again(self, reason: str) -> None:
        """What was said is forgotten: it waits again."""
        self.events = [StateChanged(TaskState.QUEUED), StateChanged(TaskState.QUEUED, reason)]
        self.begun_anew += 1
        self.said = 0
        self.size_bytes = 0
        self._changed()

    def end(self, state: TaskState, reason: str) -> None:
        """The last event. Idempotent."""
        if not self.ended:
            self.ended = True
            self.say(StateChanged(state, reason))

    def revive(self) -> None:
        """It was a dead letter, and waits again."""
        self.ended = False
        self.again("replayed")

    async def changed(self) -> None:
        """Once it has said something more."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _changed(self) -> None:
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def follow(self) -> AsyncIterator[TaskEvent]:
        """All events until its end."""
        self.watched = True
        seen, anew = 0, self.begun_anew
        while True:
            if anew != self.begun_anew:
                seen, anew = min(seen, 1), self.begun_anew
            while seen < len(self.events):
                event = self.events[seen]
                seen += 1
                yield event
                if anew != self.begun_anew:
                    break
            else:
                if self.ended:
                    return
                await self.changed()


class Streams:
    """Streams by task: of what runs here, of what is followed, and of what has ended lately."""

    def __init__(self) -> None:
        self._streams: dict[str, Stream] = {}
        self._idle: OrderedDict[str, Stream] = OrderedDict()
        self._idle_bytes = 0

    def find(self, task_id: str) -> Stream | None:
        """The stream of a task that is known here."""
        return self._streams.get(task_id)

    def of(self, task_id: str) -> Stream:
        """The stream of a task, made if there is none."""
        stream = self._streams.get(task_id)
        if stream is None:
            stream = self._streams[task_id] = Stream()
        return stream

    def followed(self) -> list[tuple[str, Stream]]:
        """Those that somebody reads and that have not ended."""
        return [(i, s) for i, s in self._streams.items() if s.readers and not s.ended]

    def hold(self, task_id: str) -> Stream:
        """Somebody reads it from now on."""
        stream = self.of(task_id)
        stream.readers += 1
        if self._idle.pop(task_id, None) is not None:
            self._idle_bytes -= stream.size_bytes
        return stream

    def let_go(self, task_id: str, *, running_here: bool) -> None:
        """Somebody reads it no more."""
        stream = self._streams[task_id]
        stream.readers -= 1
        self.rest(task_id, running_here=running_here)

    def rest(self, task_id: str, *, running_here: bool) -> None:
        """Give it up if nobody needs it; what has ended stays a while."""
        stream = self._streams.get(task_id)
        if stream is None or stream.readers or running_here:
            return
        if not stream.ended:
            del self._streams[task_id]
            return
        if task_id not in self._idle:
            self._idle[task_id] = stream
            self._idle_bytes += stream.size_bytes
        while self._idle and (len(self._idle) > KEPT or self._idle_bytes > KEPT_BYTES):
            self._drop(next(iter(self._idle)))

    def forget(self, task_id: str) -> None:
        """Nobody will ask for it."""
        if task_id in self._idle:
            self._drop(task_id)

    def _drop(self, task_id: str) -> None:
        stream = self._idle.pop(task_id)
        self._idle_bytes -= stream.size_bytes
        del self._streams[task_id]


def is_end(state: TaskState) -> bool:
    """Whether a task in this state says nothing more."""
    return state in TERMINAL
