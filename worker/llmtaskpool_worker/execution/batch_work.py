"""Which batches this worker feeds: those that nobody does, and those whose worker was lost."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from llmtaskpool_worker.brokers.protocol import Unavailable
from llmtaskpool_worker.brokers.shelf import Stale
from llmtaskpool_worker.disclosure import where_raised
from llmtaskpool_worker.execution.batch import Status
from llmtaskpool_worker.execution.batch_books import BatchBooks, Seen
from llmtaskpool_worker.execution.batch_feeder import Asks, Feeder
from llmtaskpool_worker.execution.batch_window import Window

if TYPE_CHECKING:
    from llmtaskpool_worker.execution.batch import BatchRecord

log = logging.getLogger("llmtaskpool.worker")

LOOK_SECONDS = 2.0
LEASE_SECONDS = 15.0
"""A batch that its owner has not written for so long is taken from him; no clock is compared."""
SWEEP_SECONDS = 30.0
LAST_WRITE_SECONDS = 2.0
"""After that time what is written last has to be, so that others can go on at once."""
MOST = 8
"""Batches that one worker feeds at one time; others wait, or are fed by others."""


class BatchWork:
    """Feeds batches of ``books``. ``worker`` is its name, ``clock`` monotonic seconds.

    ``on_lines("completed" or "failed", n)`` is told of lines that have ended. A gate doesn't
    ``feed``: it tells how many batches want a worker, and ends those that are cancelled, for
    which none has to be woken.
    """

    def __init__(
        self,
        books: BatchBooks,
        asks: Asks,
        worker: str,
        clock: Callable[[], float],
        on_lines: Callable[[str, int], None] = lambda _, __: None,
        *,
        feeds: bool = True,
    ) -> None:
        self._books, self._asks, self._clock, self._on_lines = books, asks, clock, on_lines
        self._feeds = feeds
        self._worker = f"{worker}.{secrets.token_hex(4)}"
        limits = books.files.limits
        self.window = Window(limits.window_lines, limits.window_bytes)
        self._feeding: dict[str, tuple[Feeder, asyncio.Task[None]]] = {}
        self._beats: dict[str, tuple[int, float]] = {}
        """Of batches that others feed: their beat, and since when it is that."""
        self._wake = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._leaving = False
        self.open = 0
        """Batches that have not ended, whoever feeds them, as last seen."""
        self.wanted = 0
        """Of these, those that a worker is to feed: nobody has cancelled them."""
        self.held_bytes = 0
        """What files and batches hold, as last seen."""

    @property
    def feeding(self) -> int:
        """Batches that this worker feeds."""
        return len(self._feeding)

    def start(self) -> None:
        """Look for batches from now on."""
        self._looking = asyncio.create_task(self._look_for_ever())

    def changed(self, batch: BatchRecord) -> None:
        """This one was made, or cancelled: look at it at once."""
        if batch.id in self._feeding:
            self._feeding[batch.id][0].look()
        self._wake.set()

    def leave(self) -> None:
        """The worker ends: others are to go on. ``stop`` ends it."""
        self._leaving = True
        for feeder, _ in self._feeding.values():
            feeder.leave()

    async def stop(self, seconds: float) -> None:
        """Let what is fed be written, for so long; idempotent."""
        self.leave()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        running = [task for _, task in self._feeding.values()]
        for wait in (seconds, LAST_WRITE_SECONDS):
            if running:
                await asyncio.wait(running, timeout=wait)
            for feeder, _ in self._feeding.values():
                feeder.drop()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _look_for_ever(self) -> None:
        swept_at = self._clock()
        while True:
            try:
                if not self._leaving:
                    await self._look()
                if self._clock() - swept_at >= SWEEP_SECONDS:
                    swept_at = self._clock()
                    await self._books.files.shelf.sweep()
                self.held_bytes = await self._books.files.shelf.held_bytes()
            except Unavailable:
                pass
            except Exception as error:
                log.error(  # noqa: TRY400  a traceback has paths
                    "batches not looked for", extra={"error": where_raised(error)}
                )
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS * random.uniform(0.75, 1.25)):  # noqa: S311
                    await self._wake.wait()
            self._wake.clear()

    async def _look(self) -> None:
        found = await self._books.open()
        self._beats = {name: beat for name, beat in self._beats.items() if name in found}
        wanted = 0
        for name in found:
            if name in self._feeding or self._leaving:
                wanted += self._feeds
                continue
            seen = await self._books.look(name)
            if seen is None or seen.batch.ended:
                continue
            wanted += seen.batch.status is not Status.CANCELLING
            if self._is_free(seen):
                with suppress(Stale):  # another worker was faster
                    self._feed(await self._books.take(seen, self._worker))
        self.open, self.wanted = len(found), wanted

    def _is_free(self, seen: Seen) -> bool:
        """Nobody feeds it, or who did was lost; and there is room for it here."""
        batch = seen.batch
        most = MOST if self._feeds else 0
        if len(self._feeding) >= most and batch.status is not Status.CANCELLING:
            return False
        if not batch.owner or not self._books.shared or batch.owner == self._worker:
            return True
        beat, since = self._beats.get(batch.id, (-1, 0.0))
        if beat != batch.beat:
            self._beats[batch.id] = batch.beat, self._clock()
            return False
        return self._clock() - since >= LEASE_SECONDS

    def _feed(self, seen: Seen) -> None:
        name = seen.batch.id
        feeder = Feeder(self._books, seen, self._asks, self.window, self._clock, self._on_lines)
        task = asyncio.create_task(feeder.run())
        self._feeding[name] = feeder, task

        def over(_: asyncio.Task[None]) -> None:
            self._feeding.pop(name, None)
            self._leaving = self._leaving or feeder.leaving
            self._wake.set()

        task.add_done_callback(over)
        if self._leaving:
            feeder.leave()
