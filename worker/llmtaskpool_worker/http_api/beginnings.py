"""How many requests begin in one turn of the event loop: few, so that what runs has its turns.

A flood of short requests makes many ready at once. All of them begun in one turn keep the loop for
as long as all of them take, and a token that is on its way to a client needs some three turns.
Those with a body wait once it is there, so that who sends one and leaves has still asked for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

MOST = 2
"""Requests that begin in one turn; one takes half a millisecond until it waits for something."""


class Beginnings:
    """Those of one port, first come, first begun."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._begun = 0

    async def turn(self) -> None:
        """At once when few have begun in this turn, else in one of the next."""
        loop = asyncio.get_running_loop()
        if self._begun < self._most and not self._waiting:
            self._count(loop)
            return
        waiting: asyncio.Future[None] = loop.create_future()
        self._waiting.append(waiting)
        await waiting

    def _count(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._begun:
            loop.call_soon(self._next_turn, loop)
        self._begun += 1

    def _next_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._begun = 0
        while self._waiting and self._begun < self._most:
            waiting = self._waiting.popleft()
            if not waiting.done():  # cancelled: nobody waits there any more
                self._count(loop)
                waiting.set_result(None)


class InTurns:
    """ASGI: the requests of one port; those of ``open_routes``, as probes, wait for nobody."""

    def __init__(self, app: ASGIApp, open_routes: Collection[str]) -> None:
        self._app, self._open_routes = app, open_routes
        self._beginnings = Beginnings()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request in its turn, or leave it to who reads its body to wait for it."""
        if scope["type"] == "http":
            scope[_KEY] = self._beginnings
            if scope["method"] in ("GET", "HEAD") and scope["path"] not in self._open_routes:
                await self._beginnings.turn()
        await self._app(scope, receive, send)


async def its_turn(scope: Scope) -> None:
    """The body of a request is there: it goes on in its turn."""
    beginnings: Beginnings | None = scope.get(_KEY)
    if beginnings is not None:
        await beginnings.turn()


_KEY = "llmtaskpool.beginnings"
