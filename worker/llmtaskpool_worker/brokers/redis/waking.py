"""Waiting for work: the server wakes one of all who are idle, by a marker in a list of each group.

The command that waits is never given up: who doesn't wait any more leaves it to end by itself, and
a marker that it then brings is put back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from llmtaskpool_worker.brokers.redis.link import Link
from llmtaskpool_worker.brokers.redis.trouble import GONE

LONGEST_SECONDS = 1.0
PAUSE_SECONDS = 0.1
"""After a lost connection, before the next is made."""


class Waking:
    """One connection that waits, for one lane. ``put_back(keys)`` gives markers back."""

    def __init__(self, link: Link, put_back: Callable[[Sequence[str]], Awaitable[None]]) -> None:
        self._link, self._put_back = link, put_back
        self._waiting: asyncio.Task[bytes | None] | None = None
        self._for: tuple[str, ...] = ()

    async def wait(self, keys: Sequence[str], seconds: float) -> bool:
        """Whether a marker came within the time; at most LONGEST_SECONDS."""
        wanted = tuple(sorted(keys))
        if not wanted:
            await asyncio.sleep(min(seconds, LONGEST_SECONDS))
            return False
        if self._waiting is not None and self._for != wanted:
            before, self._waiting = self._waiting, None
            await self._give_back(await asyncio.shield(before), wanted)
        if self._waiting is None:
            self._for = wanted
            self._waiting = asyncio.create_task(self._pop(wanted, min(seconds, LONGEST_SECONDS)))
        waiting = self._waiting
        brought = await asyncio.shield(waiting)
        if self._waiting is waiting:
            self._waiting = None
        return brought is not None

    async def close(self) -> None:
        """Wait for the command in flight, which ends within a second, and put its marker back."""
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            await self._give_back(await waiting, ())
        await self._link.close()

    async def _give_back(self, brought: bytes | None, wanted: Sequence[str]) -> None:
        if brought is not None and brought.decode() not in wanted:
            await self._put_back([brought.decode()])

    async def _pop(self, keys: Sequence[str], seconds: float) -> bytes | None:
        try:
            if not self._link.up:
                await self._link.open()
            timeout = f"{max(seconds, 0.01):.3f}"
            (answer,) = await self._link.ask([("BLPOP", *keys, timeout)], seconds + 2.0)
        except GONE:
            await asyncio.sleep(min(seconds, PAUSE_SECONDS))
            return None
        return answer[0] if isinstance(answer, list) and answer else None
