"""Carries calls to the server: one batch in flight, and what is asked meanwhile goes with the next.

So calls that come together share a round trip, a caller that is cancelled leaves nothing behind on
the connection, and after a lost connection one place decides what is said again: what may be said
twice, until its time is over. What may not be (a claim) fails, and ``on_back`` puts it right.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Any

from redis.exceptions import NoScriptError, ResponseError

from llmtaskpool_worker.brokers.redis.link import Argument, Link
from llmtaskpool_worker.brokers.redis.scripts import Script, scripts
from llmtaskpool_worker.brokers.redis.trouble import GONE, RECONNECT, away, kind_of, meaning

log = logging.getLogger("llmtaskpool.worker")

BATCH = 128
CALL_SECONDS = 2.0
"""A server that doesn't answer for so long is taken for lost."""
PATIENCE_SECONDS = 5.0
"""So long a call is tried to be brought to a server that comes back."""
LONGEST_PAUSE_SECONDS = 2.0


@dataclass(slots=True, eq=False)
class Call:
    """A call on its way: await it for its answer, Unavailable, or the server's refusal."""

    script: Script
    args: tuple[Argument, ...]
    until: float
    answer: asyncio.Future[Any]
    sent: int = 0
    """How often it was: more than once, and it may have been done before."""

    def __await__(self) -> Generator[Any, None, Any]:
        return self.answer.__await__()


class Courier:
    """Brings scripts' calls to the server and their answers back. All calls are from one loop.

    ``prefix`` is the pool's. ``on_back(link, ask)`` runs on each new connection before anything
    else; ``ask(calls)`` calls scripts for it.
    """

    def __init__(
        self,
        link: Link,
        prefix: str,
        clock: Callable[[], float],
        on_back: Callable[[Link, Ask], Awaitable[None]],
    ) -> None:
        self._link, self._prefix, self._clock, self._on_back = link, prefix, clock, on_back
        self.scripts = scripts()
        self._waiting: deque[Call] = deque()
        self._wanted = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._closing = False
        self.away_since: float | None = clock()
        """Since when the server has not answered; None: it does."""

    async def start(self) -> None:
        """Connect for the first time, or go on trying. Raises ValueError of an unfit server."""
        with suppress(*GONE):
            await self._connect()
        self._running = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Bring what waits, for a moment; then end."""
        self._closing = True
        self._wanted.set()
        if self._running is not None:
            await asyncio.wait({self._running}, timeout=2 * CALL_SECONDS)
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
            self._running = None
        self._refuse(inf)
        await self._link.close()

    def call(self, name: str, *args: Argument, seconds: float = PATIENCE_SECONDS) -> Call:
        """Ask for a script, and be patient for so long while the server is away."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        call = Call(self.scripts[name], args, self._clock() + seconds, answer)
        if self._closing or self._running is None:
            _fail(call, away())
        else:
            self._waiting.append(call)
            self._wanted.set()
        return call

    async def _run(self) -> None:
        pause = 0.0
        while True:
            if not self._link.up:
                if self._closing:
                    return
                await self._wait(pause)
                try:
                    await self._connect()
                    pause = 0.0
                except GONE:
                    pause = min(LONGEST_PAUSE_SECONDS, 0.05 + 2 * pause)
                    continue
                except ValueError as unfit:  # it failed over to a server that isn't fit
                    log.warning("the queue's server is unfit", extra={"why": str(unfit)})
                    pause = LONGEST_PAUSE_SECONDS
                    continue
            if not self._waiting:
                if self._closing:
                    return
                self._wanted.clear()
                await self._wanted.wait()
                continue
            most = min(BATCH, len(self._waiting))
            await self._bring([self._waiting.popleft() for _ in range(most)])

    async def _wait(self, pause: float) -> None:
        """A moment, while those whose time is over are told so."""
        end = self._clock() + pause * random.uniform(0.5, 1.0)  # noqa: S311 - so that pods differ
        while True:
            now = self._clock()
            self._refuse(now)
            if now >= end:
                return
            await asyncio.sleep(min(0.1, end - now))

    async def _bring(self, calls: list[Call]) -> None:
        calls = [call for call in calls if not call.answer.done()]
        for call in calls:
            call.sent += 1
        try:
            answers = await self._link.ask([self._command(call) for call in calls], CALL_SECONDS)
        except GONE:
            self._lost(calls)
            return
        except asyncio.CancelledError:
            self._waiting.extendleft(reversed(calls))
            raise
        again: list[Call] = []
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, NoScriptError):
                again.append(call)
            elif isinstance(answer, ResponseError):
                if kind_of(answer) in RECONNECT:
                    await self._link.close()
                _fail(call, meaning(answer))
            elif not call.answer.done():
                call.answer.set_result(answer)
        if again:
            self._waiting.extendleft(reversed(again))
            try:
                await self._load()
            except GONE:
                return

    def _lost(self, calls: list[Call]) -> None:
        """No answer came: what may be said twice is, when the server is back."""
        if self.away_since is None:
            self.away_since = self._clock()
        for call in reversed(calls):
            if call.script.repeatable:
                self._waiting.appendleft(call)
            else:
                _fail(call, away())

    def _refuse(self, now: float) -> None:
        """Tell those whose time is over."""
        kept: deque[Call] = deque()
        for call in self._waiting:
            if call.until <= now or self._closing:
                _fail(call, away())
            else:
                kept.append(call)
        self._waiting = kept

    def _command(self, call: Call) -> tuple[Argument, ...]:
        return ("EVALSHA", call.script.sha, 1, self._prefix, *call.args)

    async def _connect(self) -> None:
        await self._link.open()
        try:
            await self._load()
            await self._on_back(self._link, self._ask)
        except BaseException:
            await self._link.close()
            raise
        self.away_since = None

    async def _load(self) -> None:
        loads = [("SCRIPT", "LOAD", script.text) for script in self.scripts.values()]
        for answer in await self._link.ask(loads, 2 * CALL_SECONDS):
            if isinstance(answer, ResponseError):
                raise answer

    async def _ask(self, calls: list[tuple[str, tuple[Argument, ...]]]) -> list[Any]:
        commands = [
            ("EVALSHA", self.scripts[name].sha, 1, self._prefix, *args) for name, args in calls
        ]
        return await self._link.ask(commands, 2 * CALL_SECONDS) if commands else []


Ask = Callable[[list[tuple[str, tuple[Argument, ...]]]], Awaitable[list[Any]]]


def _fail(call: Call, error: Exception) -> None:
    if not call.answer.done():
        call.answer.set_exception(error)
        call.answer.exception()  # whoever asked may not wait for it any more
