"""Feeds one batch into the pool's line, a window of it at a time, and has written how lines ended.

Whoever takes a batch over asks the lines again that were under way, and what the last owner still
gets to know changes nothing (batch_writer.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from llmtaskpool_worker.brokers.protocol import WORKER_LOST, Unavailable
from llmtaskpool_worker.brokers.refusals import SHED
from llmtaskpool_worker.disclosure import where_raised
from llmtaskpool_worker.execution.batch import (
    BatchError,
    BatchRecord,
    Status,
    moved,
    with_errors,
)
from llmtaskpool_worker.execution.batch_books import BatchBooks, Seen
from llmtaskpool_worker.execution.batch_lines import (
    BadLine,
    Line,
    LineAnswer,
    Outcome,
    answered,
    check_lines,
    not_answered,
    parse_line,
)
from llmtaskpool_worker.execution.batch_under_way import UnderWay
from llmtaskpool_worker.execution.batch_window import Window
from llmtaskpool_worker.execution.batch_writer import BatchWriter, Ended, Lost, NoSpace
from llmtaskpool_worker.execution.pool import Rejected

log = logging.getLogger("llmtaskpool.worker")

WRITE_SECONDS = 0.2
"""Ends that come within this time are written in one step."""
WRITE_LINES = 64
LOOK_SECONDS = 1.0
"""A batch that is fed is looked at so often: somebody may have cancelled it."""
BEAT_SECONDS = 5.0
RESERVED_LINES = 512
"""Lines that may begin after one write."""
CAREFUL_LINES = {1: 8, 2: 1}
"""By a batch's care: so many lines at a time."""
LONGEST_PAUSE_SECONDS = 30.0
TRIES = 4
"""Of a line that fails for what may be the worker's doing and not its own."""

_TENANT_FULL = "tenant_full"
_PASSES = frozenset(
    {"queue_full", "results_full", "queue_unavailable", "draining", "starting", "bodies_full"}
    | {_TENANT_FULL, SHED.code}
)
"""Answers that say nothing about the line."""
_MAY_PASS = frozenset(
    {"model_failed", "engine_died", "engine_failed", "upstream_failed", "lost", "internal_error"}
    | {"cancelled"}
)
_STOPPED = {
    Status.EXPIRED: "the batch's completion_window ended before it was answered",
    Status.CANCELLED: "the batch was cancelled before it was answered",
}


class Asks(Protocol):
    """Has a line answered by its route, as if it had come over HTTP."""

    async def ask(
        self, endpoint: str, body: bytes, patience_seconds: float, tenant: str
    ) -> LineAnswer:
        """What the route says to this tenant. Ends the line's tasks when it is cancelled."""

    def may_wait(self, tenant: str) -> int | None:
        """So many lines of a tenant may wait for a thread at one time; None: no bound."""


class Feeder:
    """Feeds the batch ``seen``, of which this worker is the owner.

    ``on_lines("completed" or "failed", n)`` is told of lines whose end is written.
    """

    def __init__(
        self,
        books: BatchBooks,
        seen: Seen,
        asks: Asks,
        window: Window,
        clock: Callable[[], float],
        on_lines: Callable[[str, int], None] = lambda _, __: None,
    ) -> None:
        self._books, self._asks, self._window = books, asks, window
        self._clock, self._on_lines = clock, on_lines
        self._writer = BatchWriter(books, seen, clock)
        self._name = seen.batch.id
        self._ended: list[Ended] = []
        self._under_way = UnderWay(window.lines, asks.may_wait(seen.batch.tenant))
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._look = False
        self._stop: Status | None = None
        """Why nothing more of it is asked."""
        self._leaving = self._full = False

    @property
    def _batch(self) -> BatchRecord:
        return self._writer.batch

    # --- from outside -----------------------------------------------------------------------

    def look(self) -> None:
        """Somebody may have changed it."""
        self._look = True
        self._wake.set()

    def leave(self) -> None:
        """This worker ends: begin no line, write what ends, and let others go on."""
        self._leaving = self._writer.leaving = True
        self._wake.set()

    @property
    def leaving(self) -> bool:
        """Whether this worker ends."""
        return self._leaving

    def drop(self) -> None:
        """Give up what is under way."""
        self._under_way.drop()

    async def run(self) -> None:
        """Until it has ended, or is somebody else's, or this worker leaves."""
        try:
            await self._run()
        except Lost:
            log.info("batch given up to another worker", extra={"batch": self._name})
        except Exception as error:
            log.error(  # noqa: TRY400  a traceback has paths
                "batch not fed", extra={"batch": self._name, "error": where_raised(error)}
            )
        finally:
            self.drop()
            await self._under_way.end()
            await self._left(self._ended)

    # --- its way ----------------------------------------------------------------------------

    async def _run(self) -> None:
        await self._writer.load()
        try:
            if self._batch.status is Status.VALIDATING:
                await self._validate()
            if self._batch.status is Status.IN_PROGRESS and self._stop is None:
                await self._feed_and_write()
        except Rejected as gone:  # the file it reads
            await self._writer.say(BatchError(gone.code, f"{gone.message}: upload it again"))
            self._stop = Status.FAILED
        batch = self._batch
        if batch.ended:
            return
        if batch.status is Status.CANCELLING:
            self._stop = Status.CANCELLED
        elif batch.status is Status.FINALIZING and batch.completed + batch.failed < batch.total:
            self._stop = Status.EXPIRED  # who found that out was lost
        leaves = self._leaving and self._stop is None
        if not leaves:
            self.drop()
        await self._under_way.end()
        if leaves:
            await self._write()
            await self._writer.save(lambda batch: replace(batch, owner=""))
        else:
            await self._finish()

    async def _validate(self) -> None:
        """Look at every line before the first is asked."""
        seen: set[str] = set()
        total, shown = 0, list[BatchError]()
        longest = self._books.files.limits.line_bytes
        async for lines in self._input():
            total += len(lines)
            for one in await asyncio.to_thread(
                check_lines, lines, self._batch.endpoint, seen, longest
            ):
                shown.append(one.error)
                if one.number not in self._writer.done:
                    self._note(not_answered(self._name, one.custom_id, one.error))
            if self._clock() - self._writer.written_at >= BEAT_SECONDS:
                await self._writer.save()
        if not total:
            told = "the input file has no line: write one request into each"
            shown.append(BatchError("empty_file", told))

        def validated(batch: BatchRecord) -> BatchRecord:
            batch = replace(with_errors(batch, shown), total=total)
            if not seen or batch.status is not Status.VALIDATING:
                return batch
            return moved(batch, Status.IN_PROGRESS, self._books.now())

        await self._write(validated)
        if not seen:
            self._stop = Status.FAILED

    async def _feed_and_write(self) -> None:
        feeding = asyncio.create_task(self._feed())
        feeding.add_done_callback(lambda _: self._wake.set())
        try:
            await self._write_until(feeding)
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)

    async def _feed(self) -> None:
        """Begin line after line, as the window has room."""
        async for lines in self._input():
            for number, text in lines:
                if number in self._writer.done:
                    continue
                line = parse_line(number, text, self._batch.endpoint)
                if isinstance(line, BadLine):  # to a worker of another version it was good
                    self._note(not_answered(self._name, line.custom_id, line.error))
                elif await self._may_begin(line):
                    await self._under_way.have_room()
                    await self._window.enter(len(text))
                    self._under_way.begin(self._answer(line, len(text)))
        await self._under_way.others_end(0)

    async def _may_begin(self, line: Line) -> bool:
        """What is to be written before it begins is; False: it is not to be."""
        batch, number = self._batch, line.number
        if batch.care and number > batch.care_until:
            await self._under_way.others_end(0)
            await self._writer.save(lambda batch: replace(batch, care=0, care_until=0, alone=0))
        elif batch.care:
            if batch.alone == number:
                told = (
                    f"line {number}: each of the workers that asked it was lost with it: look at "
                    "what it asks for before it is asked again."
                )
                error = BatchError(WORKER_LOST, told, number)
                self._note(not_answered(self._name, line.custom_id, error))
                await self._write_all()
                await self._writer.save(lambda batch: replace(batch, care=1, alone=0))
                return False
            await self._under_way.others_end(CAREFUL_LINES[batch.care] - 1)
            if CAREFUL_LINES[batch.care] == 1:
                await self._write_all()  # or who goes on asks those first, and forgets which it was
                await self._writer.save(lambda batch: replace(batch, alone=number))
        if number > self._batch.reached:
            reached = number + RESERVED_LINES
            await self._writer.save(lambda batch: replace(batch, reached=reached))
        return True

    async def _answer(self, line: Line, size: int) -> None:
        """Ask until there is an answer about the line itself."""
        tries, pause, noted = 0, 0.5, False
        try:
            while True:
                left = max(1.0, self._batch.expires_at - self._books.now())
                answer = await self._asks.ask(
                    self._batch.endpoint, line.body, left, self._batch.tenant
                )
                tries += answer.code not in _PASSES
                if answer.code not in _PASSES | _MAY_PASS or tries >= TRIES:
                    break
                if answer.code == "draining":  # the pool tells sooner than the worker
                    self.leave()
                if self._leaving:
                    return
                wait = min(LONGEST_PAUSE_SECONDS, max(pause, answer.wait_seconds or 0.0))
                with self._under_way.no_room(only_if=answer.code == _TENANT_FULL):
                    await asyncio.sleep(wait)
                pause *= 2
            self._under_way.answered()
            self._note(answered(self._name, line, answer), size, in_window=True)
            noted = True
        finally:
            if not noted:
                await self._window.leave(size)

    def _note(self, outcome: Outcome, size: int = 0, *, in_window: bool = False) -> None:
        self._ended.append(Ended(outcome, size, in_window))
        if len(self._ended) >= min(WRITE_LINES, self._window.lines // 4):
            self._wake.set()

    # --- writing ----------------------------------------------------------------------------

    async def _write_until(self, feeding: asyncio.Task[None]) -> None:
        """Write what ends, beat, and look whether it is still wanted, until all was fed."""
        looked_at = self._clock()
        while not feeding.done() or self._ended:
            if not feeding.done():
                with suppress(TimeoutError):
                    async with asyncio.timeout(WRITE_SECONDS):
                        await self._wake.wait()
            self._wake.clear()
            now = self._clock()
            due = now - self._writer.written_at >= BEAT_SECONDS
            if (self._ended or due) and not await self._write():
                await asyncio.sleep(LOOK_SECONDS)
            if self._look or now - looked_at >= LOOK_SECONDS:
                self._look, looked_at = False, now
                with suppress(Unavailable):
                    await self._writer.see()
            if self._books.now() >= self._batch.expires_at:
                self._stop = Status.EXPIRED
            if self._stop or self._leaving or self._batch.status is Status.CANCELLING:
                return
        await feeding

    async def _write(
        self, change: Callable[[BatchRecord], BatchRecord] = lambda batch: batch
    ) -> bool:
        """Write how lines ended, and what ``change`` makes of the batch. False: no space for it."""
        async with self._writing:
            return await self._write_now(change)

    async def _write_now(self, change: Callable[[BatchRecord], BatchRecord]) -> bool:
        ended, self._ended = self._ended, []
        try:
            await self._writer.write(ended, change)
        except NoSpace as full:
            self._ended = ended + self._ended
            if not self._full:
                self._full = True
                told = (
                    f"{full}: delete some, or raise LLMTASKPOOL_FILE_STORE_BYTES; it goes on then"
                )
                await self._writer.say(BatchError("files_full", told))
            return False
        except BaseException:
            self._ended = ended + self._ended
            raise
        self._full = False
        await self._left(ended)
        for outcome, good in (("completed", True), ("failed", False)):
            if lines := sum(one.line.good is good for one in ended):
                self._on_lines(outcome, lines)
        return True

    async def _left(self, ended: list[Ended]) -> None:
        for one in ended:
            if one.in_window:
                await self._window.leave(one.size)

    async def _write_all(self) -> None:
        while not await self._write():  # noqa: ASYNC110  space has no event
            await asyncio.sleep(LOOK_SECONDS)

    async def _finish(self) -> None:
        """All of it has ended, or is to end."""
        if self._stop in _STOPPED:
            if self._stop is Status.EXPIRED:
                await self._finalize()
            with suppress(Rejected):  # what it reads is gone
                await self._give_up_the_rest(self._stop)
        await self._write_all()
        if self._stop is None:
            await self._finalize()
        await self._writer.end(self._stop or Status.COMPLETED)

    async def _finalize(self) -> None:
        now = self._books.now()
        await self._writer.save(
            lambda batch: (
                moved(batch, Status.FINALIZING, now)
                if batch.status is Status.IN_PROGRESS
                else batch
            )
        )

    async def _give_up_the_rest(self, why: Status) -> None:
        """Lines that were not answered are told so."""
        await self._write_all()
        if not self._batch.total:
            return  # it was not even validated
        async for lines in self._input():
            for number, text in lines:
                if number not in self._writer.done:
                    line = parse_line(number, text, self._batch.endpoint)
                    error = BatchError(f"batch_{why}", f"line {number}: {_STOPPED[why]}.", number)
                    self._note(not_answered(self._name, line.custom_id, error))
            await self._write_all()

    async def _input(self) -> AsyncIterator[list[tuple[int, bytes]]]:
        """Raises Rejected when it is gone."""
        files = self._books.files
        source = await self._writer.reach(lambda: files.get(self._batch.input_file_id))
        if source is None:
            raise Rejected("file_not_found", "the input file is gone")
        async for lines in files.lines(source):
            yield lines
