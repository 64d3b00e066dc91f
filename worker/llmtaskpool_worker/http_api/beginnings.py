"""How many requests begin in one turn of the event loop: few, so that what runs has its turns.

A flood of short requests makes many ready at once. All of them begun in one turn keep the loop for
as long as all of them take, and a token that is on its way to a client needs some three turns.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MOST = 2
"""Requests that begin in one turn; one takes half a millisecond until it waits for something."""


class Beginnings:
    """Those of one server, first come, first begun."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._waiting: deque[Callable[[], None]] = deque()
        self._begun = 0

    def add(self, loop: asyncio.AbstractEventLoop, begin: Callable[[], None]) -> None:
        """``begin`` in this turn, or in one of the next."""
        if self._begun >= self._most:
            self._waiting.append(begin)
            return
        if not self._begun:
            loop.call_soon(self._next_turn, loop)
        self._begun += 1
        begin()

    def _next_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._begun = 0
        for _ in range(min(self._most, len(self._waiting))):
            self.add(loop, self._waiting.popleft())


class InTurns(HttpToolsProtocol):
    """uvicorn's protocol, whose requests begin so."""

    beginnings = Beginnings()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        start = super()._start_asgi_task
        self.beginnings.add(self.loop, lambda: start(cycle, app))
