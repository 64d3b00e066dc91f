"""Threads of a room's own, so that no flood of one sort of work holds up another's.

asyncio's default executor has a few threads for everybody: twelve reads of 15 MB in it made the
tokenizing of a prompt wait for minutes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

PIECE_BYTES = 256 * 1024
"""Long texts are worked on in pieces of so many bytes: one call over 16 MB holds Python's lock, and
with it the event loop, for 50 to 200 ms."""


class Threads:
    """A pool of at most ``most`` threads, made when they are needed."""

    def __init__(self, most: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=most, thread_name_prefix=name)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``work`` in a thread; its exceptions are raised as they are.

        Who is cancelled meanwhile waits until the thread has ended: whoever counts what runs
        counts it until then. What has not begun is not begun.
        """
        running = self._pool.submit(work, *args, **kwargs)
        waiting = asyncio.wrap_future(running)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            if not running.cancel():
                await asyncio.wait({waiting})
                if not waiting.cancelled():
                    waiting.exception()  # nobody wants it any more
            raise
