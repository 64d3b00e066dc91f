"""What time decides on the server, and how deep the line is: looked at each second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf
from typing import Any

from llmtaskpool_worker.brokers.protocol import Depth, Swept
from llmtaskpool_worker.brokers.redis import books
from llmtaskpool_worker.brokers.redis.courier import Call
from llmtaskpool_worker.brokers.redis.depths import depth_of
from llmtaskpool_worker.brokers.redis.following import Following
from llmtaskpool_worker.brokers.redis.heads import Heads
from llmtaskpool_worker.brokers.redis.session import Session
from llmtaskpool_worker.brokers.redis.views import Views

SILENT_MS = 15_000
"""A worker without a sign of life for so long is lost, and what waits for its clients with it."""
SWEPT_AT_ONCE = 200
DEPTH_SECONDS = 0.5
"""Who finds nothing to do looks at the whole line, at most so often."""


class Sweeping:
    """``runs``: this worker's claims by task. ``stopped(id)``: one of them is not in force.

    ``lease_ms`` of leases, ``ttl_ms`` and ``soon_ms`` of results, ``dead_ms`` of dead letters.
    """

    def __init__(
        self,
        session: Session,
        heads: Heads,
        runs: Mapping[str, books.Run],
        following: Following,
        views: Views,
        stopped: Callable[[str], None],
        clock: Callable[[], float],
        *,
        lease_ms: int,
        ttl_ms: int,
        soon_ms: int,
        dead_ms: int,
    ) -> None:
        self._session, self._heads, self._runs = session, heads, runs
        self._following, self._views = following, views
        self._stopped, self._clock = stopped, clock
        self._numbers = (SWEPT_AT_ONCE, ttl_ms, soon_ms, dead_ms, lease_ms, SILENT_MS)
        self._depth = Depth(clock(), {}, shared=True, error="not seen yet")
        self._looked_at = -inf

    async def sweep(self) -> Swept:
        """See Broker."""
        expected = self._session.server_ms()
        swept = self._session.call(
            "sweep", *self._numbers, expected, self._session.pod, seconds=1.0
        )
        seen = self._session.call("depth", self._session.pod, seconds=1.0)
        heads = self._see_heads()
        server_ms, ended, returned = await swept
        self._session.told_time(server_ms)
        self._depth = depth_of(await seen, self._clock(), self._session.at)
        if heads is not None:
            await heads
            await asyncio.sleep(0)  # until it was taken in
        for task_id in [one.decode() for one in (*ended, *returned)]:
            if task_id in self._runs:
                self._stopped(task_id)
        await self._following.look_after_silent()
        ids = [one.decode() for one in ended]
        views = [view for view in await self._views.of(ids) if view is not None]
        for view in views:
            reason = view.error.code if view.error is not None else ""
            self._following.ended(view.id, view.state, reason)
        return Swept(views, [one.decode() for one in returned])

    def _see_heads(self) -> Call | None:
        """Taken in as soon as the answer comes: what is accepted after it is newer."""
        names = self._heads.names()

        def saw(answer: asyncio.Future[Any]) -> None:
            if not answer.cancelled() and answer.exception() is None:
                self._heads.saw(names, answer.result())

        if not names:
            return None
        call = self._session.call("heads", *names, seconds=1.0)
        call.answer.add_done_callback(saw)
        return call

    def look_soon(self) -> None:
        """Ask how deep the line is, unless it was asked just now; nobody waits for the answer."""
        if self._clock() >= self._looked_at + DEPTH_SECONDS:
            self._looked_at = self._clock()
            self._session.call("depth", self._session.pod).answer.add_done_callback(self._saw)

    async def look(self) -> None:
        """Ask how deep the line is, and wait for the answer."""
        seen = await self._session.call("depth", self._session.pod)
        self._depth = depth_of(seen, self._clock(), self._session.at)

    def _saw(self, answer: asyncio.Future[Any]) -> None:
        if not answer.cancelled() and answer.exception() is None:
            self._depth = depth_of(answer.result(), self._clock(), self._session.at)

    def depth(self) -> Depth:
        """See Broker."""
        if self._session.away_since is None:
            return self._depth
        return replace(self._depth, error="the queue's server can't be reached")
