"""A worker's inbox: one subscription, whoever is followed and however many.

What is published while the connection is down is lost. So after each new connection ``on_back``
asks for all that is followed once more.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from llmtaskpool_worker.brokers.redis.link import Link
from llmtaskpool_worker.brokers.redis.messages import Message, read
from llmtaskpool_worker.brokers.redis.trouble import GONE

PING_SECONDS = 5.0
"""A connection that says nothing, not even to a ping, is taken for lost after twice this time."""
LONGEST_PAUSE_SECONDS = 2.0


class Inbox:
    """Hears what is published to ``channel`` and hands it to ``hear``."""

    def __init__(
        self, link: Link, channel: str, hear: Callable[[Message], None], on_back: Callable[[], None]
    ) -> None:
        self._link, self._channel, self._hear, self._on_back = link, channel, hear, on_back
        self._running: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to listen."""
        self._running.append(asyncio.create_task(self._run()))

    async def close(self) -> None:
        """Listen no more."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._running.clear()
        await self._link.close()

    async def _run(self) -> None:
        pause = 0.0
        while True:
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
            try:
                await self._link.open()
                await self._link.say("SUBSCRIBE", self._channel)
                pause = 0.0
                await self._listen()
            except GONE:
                pause = min(LONGEST_PAUSE_SECONDS, 0.05 + 2 * pause)

    async def _listen(self) -> None:
        pinging = asyncio.create_task(self._ping())
        try:
            while True:
                told = await self._link.told(2 * PING_SECONDS)
                if not isinstance(told, list) or not told:
                    continue
                if told[0] == b"subscribe":
                    self._on_back()
                elif told[0] == b"message" and (message := read(told[2])) is not None:
                    self._hear(message)
        finally:
            pinging.cancel()
            await asyncio.gather(pinging, return_exceptions=True)

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(PING_SECONDS)
            await self._link.say("PING")
