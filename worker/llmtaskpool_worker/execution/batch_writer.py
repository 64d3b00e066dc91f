"""Writes a batch for the one who feeds it: how lines ended, its counts and state, its last files.

The shelf decides. What is written goes with the batch itself in one step that only its owner of
that moment can take; a step whose answer was lost is known by the batch's beat, which he alone
raises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import msgspec

from llmtaskpool_worker.brokers.protocol import Unavailable
from llmtaskpool_worker.brokers.shelf import NoSpace, Stale
from llmtaskpool_worker.execution.batch import BatchError, BatchRecord, Status, moved, with_errors
from llmtaskpool_worker.execution.batch_books import BatchBooks, Seen
from llmtaskpool_worker.execution.batch_lines import Bits, Outcome
from llmtaskpool_worker.execution.batch_output import file_of, grow
from llmtaskpool_worker.execution.pool import Rejected

LONGEST_PAUSE_SECONDS = 30.0
T = TypeVar("T")


class Lost(Exception):
    """Somebody else feeds the batch."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A line that has ended, and is to be written. ``size``: what it holds in the window."""

    line: Outcome
    size: int = 0
    in_window: bool = False


class BatchWriter:
    """Over the batch as it was ``seen`` when its owner took it."""

    def __init__(self, books: BatchBooks, seen: Seen, clock: Callable[[], float]) -> None:
        self._books, self._seen, self._clock = books, seen, clock
        self._owner = seen.batch.owner
        self._open_ends = {True: b"", False: b""}
        self._lock = asyncio.Lock()
        self.done = Bits()
        """Lines whose end is written."""
        self.written_at = clock()
        self.leaving = False
        """The worker ends: it waits no longer for a shelf that is away."""

    @property
    def batch(self) -> BatchRecord:
        """As it is, as far as is known."""
        return self._seen.batch

    async def load(self) -> None:
        """Learn which lines have ended already."""
        self.done = Bits(await self.reach(lambda: self._books.done(self.batch.id)))

    async def see(self) -> None:
        """What became of it meanwhile. Raises Lost, Unavailable."""
        async with self._lock:
            self._seen = self._ours(await self._books.look(self.batch.id))

    def _ours(self, seen: Seen | None) -> Seen:
        if seen is None or seen.batch.owner != self._owner:
            raise Lost
        return seen

    async def write(
        self,
        ended: Sequence[Ended],
        change: Callable[[BatchRecord], BatchRecord] = lambda batch: batch,
    ) -> None:
        """Write how lines ended, with what ``change`` makes of the batch. Raises Lost, NoSpace."""
        good = [one.line for one in ended if one.line.good]
        bad = [one.line for one in ended if not one.line.good]
        grown = {
            True: await grow(
                self.batch.output, self._open_ends[True], [one.written for one in good]
            ),
            False: await grow(
                self.batch.error, self._open_ends[False], [one.written for one in bad]
            ),
        }
        puts = {**grown[True].puts, **grown[False].puts}
        if ended:
            for one in ended:
                self.done.add(one.line.number)
            puts[f"done/{self.batch.id}"] = self.done.data()

        def counted(batch: BatchRecord) -> BatchRecord:
            return change(
                replace(
                    batch,
                    output=grown[True].written,
                    error=grown[False].written,
                    completed=batch.completed + len(good),
                    failed=batch.failed + len(bad),
                )
            )

        await self.save(counted, puts, bounded=bool(good))
        self._open_ends = {kind: growth.open_end for kind, growth in grown.items()}

    async def save(
        self,
        change: Callable[[BatchRecord], BatchRecord] = lambda batch: batch,
        puts: Mapping[str, bytes] | None = None,
        *,
        bounded: bool = False,
    ) -> None:
        """Write the batch anew, to the end also when the caller is cancelled.

        Raises Lost when it is somebody else's; NoSpace.
        """
        saving = asyncio.ensure_future(self._save(change, puts, bounded=bounded))
        saving.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(saving)

    async def _save(
        self,
        change: Callable[[BatchRecord], BatchRecord],
        puts: Mapping[str, bytes] | None,
        *,
        bounded: bool,
    ) -> None:
        async with self._lock:
            while True:
                seen = self._seen
                batch = replace(change(seen.batch), beat=seen.batch.beat + 1)
                try:
                    write = partial(self._books.write, seen, batch, puts, bounded=bounded)
                    self._seen = await self.reach(write)
                except Stale:
                    there = self._ours(await self.reach(lambda: self._books.look(self.batch.id)))
                    self._seen = there  # it was cancelled
                    if there.batch.beat < batch.beat:
                        continue  # and ours was not taken before
                self.written_at = self._clock()
                return

    async def say(self, error: BatchError) -> None:
        """Show this beside the batch. Raises Lost."""
        await self.save(lambda batch: with_errors(batch, [error]))

    async def end(self, last: Status) -> None:
        """In its last state, with its files. Raises Lost."""
        now, batch = self._books.now(), self.batch
        puts = {}
        for written, what in ((batch.output, "output"), (batch.error, "error")):
            if written.lines:
                name = f"{batch.id}_{what}.jsonl"
                file = file_of(written, name, now, batch.keep_seconds, batch.tenant)
                puts[f"file/{file.id}"] = msgspec.json.encode(file)
        await self.save(lambda batch: replace(moved(batch, last, now), owner=""), puts)

    async def reach(self, call: Callable[[], Awaitable[T]]) -> T:
        """What ``call`` returns, once the shelf is there. Raises Lost when this worker leaves."""
        pause = 0.2
        while True:
            try:
                return await call()
            except Unavailable as away:
                wait = away.retry_after_seconds
            except Rejected as away:
                if away.retry_after_seconds is None:
                    raise
                wait = away.retry_after_seconds
            if self.leaving:
                raise Lost
            await asyncio.sleep(max(pause, wait))
            pause = min(LONGEST_PAUSE_SECONDS, 2 * pause)


__all__ = ["BatchWriter", "Ended", "Lost", "NoSpace"]
