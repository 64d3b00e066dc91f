"""The lines of one batch that are asked now, and how many of them may be."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager


class UnderWay:
    """At most ``most`` lines, and no more than its tenant has room for.

    It begins with ``first`` of them. One that finds no room among what its tenant may have waiting
    makes it as many as have found some, and each answer one more.
    """

    def __init__(self, most: int, first: int | None) -> None:
        self._lines: set[asyncio.Task[None]] = set()
        self._most = most
        self._room = most if first is None else min(most, first)
        self._without_room = 0

    @property
    def room(self) -> int:
        """So many may be under way now."""
        return self._room

    def begin(self, line: Coroutine[None, None, None]) -> None:
        """Ask this one, too."""
        task = asyncio.create_task(line)
        self._lines.add(task)
        task.add_done_callback(self._lines.discard)

    async def have_room(self) -> None:
        """Wait until one more may begin."""
        await self.others_end(self._room - 1)

    async def others_end(self, most: int) -> None:
        """Wait until at most so many are left."""
        while len(self._lines) > most:
            await asyncio.wait([*self._lines], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)  # for their callbacks

    def answered(self) -> None:
        """One was taken in, and has its answer."""
        self._room = min(self._most, self._room + 1)

    @contextmanager
    def no_room(self, *, only_if: bool) -> Iterator[None]:
        """One waits, as its tenant has as much waiting as may be; else it waits for no room."""
        self._without_room += only_if
        if only_if:
            self._room = max(1, len(self._lines) - self._without_room)
        try:
            yield
        finally:
            self._without_room -= only_if

    def drop(self) -> None:
        """Give up what is under way."""
        for line in self._lines:
            line.cancel()

    async def end(self) -> None:
        """Wait until nothing is under way."""
        await asyncio.gather(*self._lines, return_exceptions=True)
