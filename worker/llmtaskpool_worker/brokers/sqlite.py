"""The broker whose tasks survive: the line and the books in memory, each change in a file.

One process owns the file, so all is decided in memory, in the order and at the cost of the memory
broker, and the file is only read when the worker starts. What was accepted was written before; what
has ended is written before anybody is told; a claim is written before its run begins, so that what
was running when the worker died is known: it runs again, alone.

Tasks that end with their client's connection are held in memory alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from llmtaskpool_worker.brokers import journal
from llmtaskpool_worker.brokers.codec import Unreadable, encode_request, encode_result
from llmtaskpool_worker.brokers.journal import End, Journal, Row
from llmtaskpool_worker.brokers.memory import MemoryBroker
from llmtaskpool_worker.brokers.protocol import (
    WORKER_LOST,
    Claim,
    Committed,
    Depth,
    Durability,
    Outcome,
    Receipt,
    Submission,
    Unavailable,
    Wanted,
)
from llmtaskpool_worker.brokers.records import Record
from llmtaskpool_worker.brokers.refusals import DEAD
from llmtaskpool_worker.brokers.rows import record_of, row_of
from llmtaskpool_worker.brokers.shelf import Shelf
from llmtaskpool_worker.brokers.sqlite_shelf import FileShelf
from llmtaskpool_worker.scheduling.limits import Limits
from llmtaskpool_worker.scheduling.sizes import event_bytes
from llmtaskpool_worker.scheduling.task import (
    StateChanged,
    TaskError,
    TaskState,
    TaskView,
)

log = logging.getLogger("llmtaskpool.queue")

FILE = Durability(
    "file",
    True,
    "Written to the queue's file before this answer: it survives the end of the worker and of its "
    "machine, as long as the file does. It may run again if its worker is lost; its result counts "
    "once.",
)


class SqliteBroker(MemoryBroker):
    """See Broker. ``path`` is the file; ``wall_clock`` gives seconds since the epoch."""

    immediate = False
    durability = FILE

    def __init__(
        self,
        path: Path,
        limits: Limits,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        super().__init__(limits, clock)
        self._wall_clock = wall_clock
        self._journal = Journal(path)
        self._offset = 0.0
        self._quarantined = 0
        self._entering: dict[str, asyncio.Future[None]] = {}
        """Accepted tasks that are being written."""
        self._attached: set[str] = set()
        """Tasks that end with a connection."""
        self._written: set[str] = set()
        """Tasks whose end is in the file, and is about to be in the books."""

    # --- the file is read -------------------------------------------------------------------

    async def start(self, worker: str, on_lost: Callable[[str], None]) -> None:
        """See Broker."""
        await super().start(worker, on_lost)
        self._offset = self._wall_clock() - self._clock()
        rows, self._quarantined = await self._journal.open()
        records = [record for row in rows if (record := self._read(row)) is not None]
        for record in records:
            self._keeping.keep(record, record.keep_seconds or 0.0, 0)
            self._put_down(record)
        for record in records:
            self._resume(record)
        if records:
            log.info("queue file read", extra={"tasks": len(records), "bad": self._quarantined})

    async def close(self) -> None:
        """See Broker."""
        await self._journal.close()

    def shelf(self, limit_bytes: int) -> Shelf:
        """See Broker."""
        return FileShelf(self._journal, limit_bytes, self._wall_clock)

    def _read(self, row: Row) -> Record | None:
        try:
            return record_of(row, lambda at: at - self._offset)
        except Unreadable as error:
            self._quarantined += 1
            self._journal.note(*journal.quarantined(row, str(error), self._wall_clock()))
            told = {"task": row.id, "reason": str(error)}
            log.error("task put into quarantine", extra=told)  # noqa: TRY400  a traceback has paths
            return None

    def _resume(self, record: Record) -> None:
        """To where it was when the file was written last."""
        state = record.state
        if record.ended:
            event = StateChanged(state, record.error.code if record.error else "")
            record.say(event)
            self._keeping.grow(record, event_bytes(event))
            self._dead += state is TaskState.DEAD
            self._keeping.ended(record)
            return
        if state is TaskState.RUNNING:
            record.losses += 1
            record.alone, record.fence = True, ""
            if record.losses >= record.task.max_attempts:
                self._lines.work(record, 1)
                self._told.append(self._end(record, TaskState.DEAD, DEAD))
                return
            self._keeping.say(record, StateChanged(TaskState.QUEUED, WORKER_LOST))
            self._note_waiting(record)
        self._admit(record)

    # --- in ---------------------------------------------------------------------------------

    async def accept(self, submission: Submission) -> Receipt:
        """See Broker."""
        if submission.bound_to is not None:
            receipt = await super().accept(submission)
            if not receipt.view.ended_at:
                self._attached.add(submission.id)
            return receipt
        # Whoever asked may go meanwhile: what is being written is accepted all the same.
        accepting = asyncio.ensure_future(self._accept(submission))
        accepting.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(accepting)

    async def _accept(self, submission: Submission) -> Receipt:
        while (known := self._known(submission)) is not None:
            if (entering := self._entering.get(known.task.id)) is None:
                return Receipt(known.view(), known=True)
            await asyncio.wait([entering])
        record = self._enter(submission)
        entering = self._entering[submission.id] = asyncio.get_running_loop().create_future()
        try:
            await self._journal.write(journal.insert(row_of(record, self._epoch)))
        except BaseException:
            self._keeping.unpromise(record)
            self._records.pop(submission.id)
            self._keys.forget(record)
            raise
        finally:
            del self._entering[submission.id]
            entering.set_result(None)
        self._admit(record)
        return Receipt(record.view())

    # --- out --------------------------------------------------------------------------------

    async def claim(self, wanted: Wanted) -> list[Claim]:
        """See Broker."""
        if wanted.only_bound:
            self._put_away()
        claims = await super().claim(wanted)
        durable = [claim for claim in claims if claim.id not in self._attached]
        if not durable:
            return claims
        writes = [
            journal.given(
                claim.id, claim.attempt, claim.fence, self._maybe_epoch(self._started(claim.id))
            )
            for claim in durable
        ]
        try:
            await self._journal.write(*writes)
        except Unavailable:
            for claim in durable:
                if (record := self._claimed(claim.id, claim.fence)) is not None:
                    record.attempts -= 1
                    super()._back_in_line(record, "the queue's file can't be written")
            claims = [claim for claim in claims if claim.id in self._attached]
            if not claims:
                raise
        return [claim for claim in claims if self._claimed(claim.id, claim.fence) is not None]

    def _put_away(self) -> None:
        """This worker is about to end: what survives it stands in line no more."""
        for record in self._records.values():
            if not (record.ended or record.fence or record.task.id in self._attached):
                self._lines.leave(record)

    def _back_in_line(self, record: Record, reason: str) -> None:
        super()._back_in_line(record, reason)
        if record.task.id not in self._attached:
            self._note_waiting(record)

    # --- ends -------------------------------------------------------------------------------

    async def commit(self, outcomes: Sequence[Outcome]) -> list[Committed]:
        """See Broker."""
        writes = []
        for one in outcomes:
            record = self._claimed(one.id, one.fence)
            if record is not None and one.id not in self._attached:
                failed = isinstance(one.result, TaskError)
                state = TaskState.FAILED if failed else TaskState.SUCCEEDED
                end = self._end_of(record, state, encode_result(one.result))
                writes.append(journal.ended(end, one.fence))
                self._written.add(one.id)
        try:
            if writes:
                await self._journal.write(*writes)
            return [self._commit(one) for one in outcomes]
        finally:
            self._written.difference_update(one.id for one in outcomes)

    async def cancel(self, task_id: str) -> Committed:
        """See Broker."""
        if (entering := self._entering.get(task_id)) is not None:
            await asyncio.wait([entering])
        record = self._records.get(task_id)
        if record is None or record.ended or task_id in self._attached:
            return await super().cancel(task_id)
        await self._journal.write(journal.ended(self._end_of(record, TaskState.CANCELLED, None)))
        self._written.add(task_id)
        try:
            return await super().cancel(task_id)
        finally:
            self._written.discard(task_id)

    async def replay(self, task_id: str) -> TaskView | None:
        """See Broker."""
        record = self._records.get(task_id)
        if record is None or record.state is not TaskState.DEAD:
            return None
        await self._journal.write(journal.replayed(task_id))
        return await super().replay(task_id)

    def _end_of(self, record: Record, state: TaskState, result: bytes | None) -> End:
        """Of one that is about to end."""
        now = self._wall_clock()
        expires_at = now + (record.keep_seconds or 0.0)
        request = encode_request(record.task.request, whole=False)
        return End(record.task.id, state.value, now, expires_at, record.losses, request, result)

    def _on_end(self, record: Record) -> None:
        task_id = record.task.id
        if task_id in self._attached:
            self._attached.discard(task_id)
        elif task_id not in self._written:
            outcome = record.error or record.result
            end = End(
                task_id,
                record.state.value,
                self._epoch(record.ended_at or self._clock()),
                self._maybe_epoch(record.expires_at),
                record.losses,
                encode_request(record.task.request),
                None if outcome is None else encode_result(outcome),
            )
            self._journal.note(journal.ended(end))

    def _ends_with_us(self, record: Record) -> bool:
        return record.task.id in self._attached

    def _dropped(self, record: Record) -> None:
        super()._dropped(record)
        if record.task.bound_to is None:
            self._journal.note(journal.forgotten(record.task.id))

    # --- to look at -------------------------------------------------------------------------

    def depth(self) -> Depth:
        """See Broker."""
        return replace(
            super().depth(),
            bound=len(self._attached),
            quarantined=self._quarantined,
            error=self._journal.error,
        )

    # --- inside -----------------------------------------------------------------------------

    def _note_waiting(self, record: Record) -> None:
        note = journal.waiting(record.task.id, record.attempts, record.losses, record.alone)
        self._journal.note(note)

    def _started(self, task_id: str) -> float | None:
        record = self._records.get(task_id)
        return None if record is None else record.started_at

    def _epoch(self, at: float) -> float:
        return at + self._offset

    def _maybe_epoch(self, at: float | None) -> float | None:
        return None if at is None else self._epoch(at)
