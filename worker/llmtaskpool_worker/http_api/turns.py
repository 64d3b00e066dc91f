"""Sharing the event loop: what has many short steps gives others a turn between them."""

from __future__ import annotations

import asyncio
from time import monotonic

TURN_SECONDS = 0.001


class Turn:
    """The time that one request has had the loop to itself.

    Each turn of the loop costs some 30 us of a processor whose caches an engine has emptied: a
    request of one step takes none, and one of many takes one in ``seconds``.
    """

    def __init__(self, seconds: float = TURN_SECONDS) -> None:
        self._seconds = seconds
        self._began = monotonic()

    async def pass_on(self) -> None:
        """Between two steps: let others go, when they have waited for as long."""
        if monotonic() - self._began >= self._seconds:
            await asyncio.sleep(0)
            self._began = monotonic()
