"""The keyed queue of the operator: each key is worked on by one turn at a time, and once.

A key that is added again while it waits is not doubled; while it is worked on, it comes again
afterwards. A turn that failed comes again after a time that doubles.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Hashable
from contextlib import suppress
from itertools import count
from typing import Generic, TypeVar

from llmtaskpool_operator.workers.backoff import Backoff

Key = TypeVar("Key", bound=Hashable)


class WorkQueue(Generic[Key]):
    """All calls are from one event loop; ``clock`` gives seconds and goes forward."""

    def __init__(self, clock: Callable[[], float], backoff: Backoff | None = None) -> None:
        self._clock = clock
        self._backoff = backoff or Backoff()
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._order = count()
        self._working: set[Key] = set()
        self._again: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}
        self._changed = asyncio.Event()

    def add(self, key: Key, after: float = 0.0) -> None:
        """Work on ``key`` in ``after`` seconds; an earlier time that it has holds."""
        due = self._clock() + max(0.0, after)
        if key in self._working:
            self._again[key] = min(due, self._again.get(key, due))
        elif key not in self._due or due < self._due[key]:
            self._due[key] = due
            heapq.heappush(self._heap, (due, next(self._order), key))
            self._changed.set()

    async def take(self) -> Key:
        """The next due key, which is worked on until ``done`` or ``failed`` is called.

        At once, without a pass of the event loop, when one is due.
        """
        while (wait := self._until_due()) is None or wait > 0:
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()
        _, _, key = heapq.heappop(self._heap)
        del self._due[key]
        self._working.add(key)
        return key

    def done(self, key: Key, again_after: float | None = None) -> None:
        """The turn ended well; it comes again after that many seconds, or when it is added."""
        self._failures.pop(key, None)
        self._ended(key, again_after)

    def failed(self, key: Key, after: float | None = None) -> float:
        """The turn failed; it comes again after ``after`` or the backoff, whose length is told."""
        self._failures[key] = self._failures.get(key, 0) + 1
        wait = max(after or 0.0, self._backoff.after(self._failures[key]))
        # An event that came in between must not undo the backoff of a turn that can't succeed.
        self._again.pop(key, None)
        self._ended(key, wait)
        return wait

    def forget(self, key: Key) -> None:
        """Nothing is to be done about ``key`` any more."""
        self._due.pop(key, None)
        self._again.pop(key, None)
        self._failures.pop(key, None)

    def clear(self) -> None:
        """Forget all keys."""
        for key in [*self._due, *self._again]:
            self.forget(key)

    @property
    def depth(self) -> int:
        """Keys that are due."""
        now = self._clock()
        return sum(due <= now for due in self._due.values())

    @property
    def oldest_seconds(self) -> float:
        """For how long the key that waits longest has been due."""
        return max(0.0, self._clock() - min(self._due.values())) if self._due else 0.0

    def _ended(self, key: Key, after: float | None) -> None:
        self._working.discard(key)
        due = self._again.pop(key, None)
        if due is not None:
            self.add(key, due - self._clock())
        if after is not None:
            self.add(key, after)

    def _until_due(self) -> float | None:
        """Seconds until the first key is due; None when there is none."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        if not self._heap:
            return None
        return self._heap[0][0] - self._clock()
