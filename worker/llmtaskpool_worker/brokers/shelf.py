"""Where files and batches lie: things under names, beside the tasks and as safe as these.

Whoever changes something says how the thing that decides looked to him: when it looks otherwise by
now nothing is changed. So several workers may hold a batch in their hands and one of them writes,
and a change whose answer was lost is said again without harm.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from llmtaskpool_worker.brokers.refusals import Unavailable as Unavailable


class NoSpace(Exception):
    """What is asked to be kept is beyond ``limit_bytes``: nothing of it is."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"files and batches hold the {limit_bytes} bytes that they may")
        self.limit_bytes = limit_bytes


class Stale(Exception):
    """The thing that decides looks otherwise than was expected: nothing was changed."""


@dataclass(frozen=True, slots=True)
class Change:
    """All of it happens, or nothing.

    ``expect``: a name and what lies under it now, None: nothing does; or what ``puts`` would have
    there, as then it was done before. Puts are kept for ``keep_seconds`` from now on, and so is
    what lies under the names of ``keeps``. What is not ``bounded`` is kept also where there is no
    space: it is small, and ends what takes the space.
    """

    puts: Mapping[str, bytes] = field(default_factory=dict)
    deletes: Sequence[str] = ()
    keeps: Sequence[str] = ()
    expect: tuple[str, bytes | None] | None = None
    keep_seconds: float = inf
    bounded: bool = True


class Shelf(Protocol):
    """All calls are from one asyncio loop and raise Unavailable when the place is away.

    ``shared``: other workers have the same things in their hands.
    """

    shared: bool

    async def get(self, name: str) -> bytes | None:
        """What lies there; None: nothing, or its time is over."""

    async def change(self, change: Change) -> None:
        """See Change. Raises Stale, NoSpace."""

    async def names(
        self, prefix: str, *, most: int, beyond: str | None = None, newest: bool = False
    ) -> list[str]:
        """At most so many names that begin so, in rising order, or ``newest`` in falling order.

        They come after ``beyond`` in that order.
        """

    async def sweep(self) -> None:
        """Drop what has outlived its time."""

    async def held_bytes(self) -> int:
        """What lies here."""


@dataclass(slots=True)
class _Thing:
    data: bytes
    until: float


class MemoryShelf:
    """A shelf in this process. ``clock`` is monotonic, in seconds."""

    shared = False

    def __init__(self, limit_bytes: int, clock: Callable[[], float]) -> None:
        self._limit, self._clock = limit_bytes, clock
        self._things: dict[str, _Thing] = {}
        self._names: list[str] = []
        self._held = 0

    async def get(self, name: str) -> bytes | None:
        """See Shelf."""
        thing = self._things.get(name)
        return None if thing is None or thing.until <= self._clock() else thing.data

    async def change(self, change: Change) -> None:
        """See Shelf."""
        if change.expect is not None:
            name, expected = change.expect
            there = await self.get(name)
            if there is not None and there == change.puts.get(name):
                return
            if there != expected:
                raise Stale
        if change.bounded and self._more(change) > 0:
            if self._held + self._more(change) > self._limit:
                await self.sweep()
            if self._held + self._more(change) > self._limit:
                raise NoSpace(self._limit)
        for name in (*change.deletes, *change.puts):
            self._drop(name)
        until = self._clock() + change.keep_seconds
        for name, data in change.puts.items():
            self._things[name] = _Thing(data, until)
            insort(self._names, name)
            self._held += len(data)
        for name in change.keeps:
            if name in self._things:
                self._things[name].until = until

    async def names(
        self, prefix: str, *, most: int, beyond: str | None = None, newest: bool = False
    ) -> list[str]:
        """See Shelf."""
        low, high = bisect_left(self._names, prefix), bisect_left(self._names, after(prefix))
        if beyond is not None and newest:
            high = min(high, bisect_left(self._names, beyond))
        elif beyond is not None:
            low = max(low, bisect_right(self._names, beyond))
        found, now = self._names[low:high], self._clock()
        if newest:
            found.reverse()
        return [name for name in found if self._things[name].until > now][:most]

    async def sweep(self) -> None:
        """See Shelf."""
        now = self._clock()
        for name in [name for name, thing in self._things.items() if thing.until <= now]:
            self._drop(name)

    async def held_bytes(self) -> int:
        """See Shelf."""
        return self._held

    def _more(self, change: Change) -> int:
        """What is held more after it."""
        touched = {*change.deletes, *change.puts} & self._things.keys()
        less = sum(len(self._things[name].data) for name in touched)
        return sum(map(len, change.puts.values())) - less

    def _drop(self, name: str) -> None:
        thing = self._things.pop(name, None)
        if thing is not None:
            self._held -= len(thing.data)
            del self._names[bisect_left(self._names, name)]


def after(prefix: str) -> str:
    """A text that comes after all that begin so, and before all others that do. ASCII alone."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
