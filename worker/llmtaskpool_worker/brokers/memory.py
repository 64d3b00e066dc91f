"""The broker that holds tasks in this process: fast, and lost with it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from heapq import heappop, heappush
from math import inf

from llmtaskpool_worker.brokers.books import Books
from llmtaskpool_worker.brokers.family import FAILED, Family, verdict
from llmtaskpool_worker.brokers.idempotency import IdempotencyKeys
from llmtaskpool_worker.brokers.keeping import NO_ROOM
from llmtaskpool_worker.brokers.lines import Lines
from llmtaskpool_worker.brokers.protocol import (
    WORKER_LOST,
    Claim,
    Commit,
    Committed,
    Depth,
    Durability,
    Head,
    Held,
    Outcome,
    Receipt,
    Release,
    Submission,
    Swept,
    Wanted,
    Weights,
)
from llmtaskpool_worker.brokers.records import Record
from llmtaskpool_worker.brokers.refusals import DEAD, EXPIRED, SHED, SHED_AT_ONCE
from llmtaskpool_worker.brokers.shelf import MemoryShelf, Shelf
from llmtaskpool_worker.scheduling.limits import Limits
from llmtaskpool_worker.scheduling.sizes import record_bytes, result_bytes
from llmtaskpool_worker.scheduling.task import (
    LaneName,
    StateChanged,
    TaskError,
    TaskState,
    TaskView,
)

MEMORY = Durability(
    "memory",
    False,
    "Kept in this worker's memory: if its pod is lost, the task is lost. "
    "Submit it again then, with the same idempotency key.",
)


class MemoryBroker(Books):
    """See Broker. Times are those of ``clock``."""

    immediate = True
    shared = False
    durability = MEMORY

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        super().__init__(limits.results)
        self._clock = clock
        self._keys = IdempotencyKeys()
        self._lines = Lines(limits)
        self._family = Family(self._records, self._lines.reweigh)
        self._running = self._dead = 0
        self._leases: list[tuple[float, str]] = []
        self._told: list[TaskView] = []
        self._returned: list[str] = []
        self._on_lost: Callable[[str], None] = lambda _: None

    async def start(self, worker: str, on_lost: Callable[[str], None]) -> None:  # noqa: ARG002
        """See Broker."""
        self._on_lost = on_lost

    async def close(self) -> None:
        """See Broker."""

    # --- in ---------------------------------------------------------------------------------

    async def accept(self, submission: Submission) -> Receipt:
        """See Broker."""
        known = self._known(submission)
        if known is not None:
            return Receipt(known.view(), known=True)
        record = self._enter(submission)
        self._admit(record)
        return Receipt(record.view())

    def _known(self, submission: Submission) -> Record | None:
        """The record of a submission that was accepted before."""
        if (record := self._records.get(submission.id)) is not None:
            return record
        return self._records.get(self._keys.find(submission) or "")

    def _enter(self, submission: Submission) -> Record:
        """Into the books, and not in line yet. Raises what accept raises."""
        now, request = self._clock(), submission.request
        self._family.check(submission.dependencies)
        self._make_room(submission, now)
        record = Record(
            submission,
            now,
            weight=request.weight,
            size_bytes=record_bytes(request),
            attended=request.attended,
        )
        if not request.attended:
            self._keeping.promise(record, now)
        self._put_down(record)
        return record

    def _make_room(self, task: Submission, now: float) -> None:
        """In a full line, by those that are less urgent and end with their client. Raises Full."""
        self._lines.check_tenant(task)
        self._lines.check_group(task)
        for _ in range(SHED_AT_ONCE):
            if self._lines.has_room(task):
                return
            least = self._lines.least(task, now, lambda one: self._records[one].attached)
            if least is None:
                break
            self._told.append(self._end(self._records[least], TaskState.FAILED, SHED))
        self._lines.check_room(task)

    def _put_down(self, record: Record) -> None:
        task = record.task
        self._records[task.id] = record
        self._keys.put(record)
        self._keeping.say(record, StateChanged(TaskState.QUEUED))

    def _admit(self, record: Record) -> None:
        """To where it waits: in line, for its time, or for its parents."""
        self._family.join(record)
        self._lines.work(record, 1)
        state, task = verdict(record), record.task
        if state is TaskState.FAILED:
            self._end(record, state, FAILED)
        elif state is TaskState.BLOCKED:
            self._lines.block(record)
        elif task.delay_seconds > 0:
            self._lines.delay(record, record.submitted_at + task.delay_seconds)
        else:
            until = record.submitted_at + task.patience_seconds
            if record.losses:  # it has waited for nothing
                until = max(until, self._clock() + task.patience_seconds)
            self._lines.stand(record, record.submitted_at, until)

    # --- out --------------------------------------------------------------------------------

    async def claim(self, wanted: Wanted) -> list[Claim]:
        """See Broker."""
        now = self._clock()
        started, gone = self._lines.take(wanted, now)
        self._expire(gone)
        claims: list[Claim] = []
        for task_id in started:
            record = self._records[task_id]
            self._give(record, f"{wanted.fence}.{len(claims)}", now, wanted.lease_seconds)
            claims.append(record.claim())
        return claims

    def _give(self, record: Record, fence: str, now: float, lease_seconds: float) -> None:
        record.state, record.fence = TaskState.RUNNING, fence
        record.attempts += 1
        record.started_at = now if record.started_at is None else record.started_at
        record.lease_until = now + lease_seconds
        self._runs(record, 1)
        self._lines.work(record, -1)
        if lease_seconds < inf:
            heappush(self._leases, (record.lease_until, record.task.id))
        self._keeping.say(record, StateChanged(TaskState.RUNNING))

    def _runs(self, record: Record, sign: int) -> None:
        self._running += sign
        self._lines.runs(record, sign)

    async def peek(self, wanted: Wanted) -> Head | None:
        """See Broker."""
        return self._lines.head(wanted)

    def waiting_weights(self, lane: LaneName, groups: Collection[str]) -> Weights:  # noqa: ARG002
        """See Broker."""
        return self._lines.weights(lane)

    async def promise(self, head: Head) -> bool:
        """See Broker."""
        record = self._records.get(head.id)
        return record is not None and record.state is TaskState.QUEUED

    async def wait_for_work(
        self,
        lane: LaneName,
        groups: Collection[str],  # noqa: ARG002  they wait in one line
        seconds: float,
    ) -> bool:
        """See Broker."""
        return await self._lines.wait(lane, seconds)

    async def renew(self, held: Sequence[Held], lease_seconds: float) -> frozenset[str]:
        """See Broker."""
        until, lost = self._clock() + lease_seconds, []
        for one in held:
            record = self._claimed(one.id, one.fence)
            if record is None:
                lost.append(one.id)
            elif record.lease_until < inf:
                record.lease_until = until
        return frozenset(lost)

    async def release(self, released: Sequence[Release]) -> None:
        """See Broker."""
        for one in released:
            record = self._claimed(one.id, one.fence)
            if record is not None:
                record.attempts -= not one.counts
                record.alone = record.alone or one.alone
                self._back_in_line(record, one.reason)

    def _back_in_line(self, record: Record, reason: str) -> None:
        task = record.task
        record.fence, record.state, record.lease_until = "", TaskState.QUEUED, inf
        self._runs(record, -1)
        self._lines.work(record, 1)
        self._keeping.unsay(record)
        self._keeping.say(record, StateChanged(TaskState.QUEUED, reason))
        assert record.waiting is not None  # noqa: S101  it was taken from there
        until = record.waiting.expires_at
        if record.losses:  # it has waited for nothing
            until = max(until, self._clock() + task.patience_seconds)
        self._lines.stand_again(record, until)

    async def recover(self, worker: str, known: Sequence[Held]) -> int:  # noqa: ARG002
        """See Broker. No answer of this broker is ever lost."""
        return 0

    # --- ends -------------------------------------------------------------------------------

    async def commit(self, outcomes: Sequence[Outcome]) -> list[Committed]:
        """See Broker."""
        return [self._commit(one) for one in outcomes]

    def _commit(self, outcome: Outcome) -> Committed:
        record = self._records.get(outcome.id)
        if record is None:
            return Committed(Commit.LOST, None)
        if record.fence != outcome.fence:
            return Committed(Commit.LOST, record.view())
        if record.ended:
            return Committed(Commit.HAD, record.view())
        result = outcome.result
        if isinstance(result, TaskError):
            view = self._end(record, TaskState.FAILED, result, fence=outcome.fence)
        elif self._keeping.fits(record, result, result_bytes(result)):
            view = self._end(record, TaskState.SUCCEEDED, None, fence=outcome.fence)
        else:
            self._keeping.unsay(record)
            view = self._end(record, TaskState.FAILED, NO_ROOM, fence=outcome.fence)
        return Committed(Commit.TAKEN, view)

    async def cancel(self, task_id: str) -> Committed:
        """See Broker."""
        record = self._records.get(task_id)
        if record is None:
            return Committed(Commit.LOST, None)
        if record.ended:
            had = record.state is TaskState.CANCELLED
            return Committed(Commit.HAD if had else Commit.LOST, record.view())
        return Committed(Commit.TAKEN, self._cancel(record))

    def _cancel(self, record: Record) -> TaskView:
        held = record.claimed
        view = self._end(record, TaskState.CANCELLED, None)
        if held:
            self._on_lost(record.task.id)
        return view

    async def give_up(self, error: TaskError, group: str | None = None) -> Sequence[TaskView]:
        """See Broker."""
        return [
            self._end(record, TaskState.FAILED, error)
            for record in [*self._records.values()]
            if self._ends_with_us(record)
            and not (record.ended or record.fence)
            and group in (None, record.task.group)
        ]

    def _ends_with_us(self, record: Record) -> bool:  # noqa: ARG002
        return True

    async def replay(self, task_id: str) -> TaskView | None:
        """See Broker."""
        record = self._records.get(task_id)
        if record is None or record.state is not TaskState.DEAD:
            return None
        self._revive(record)
        return record.view()

    def _revive(self, record: Record) -> None:
        record.attempts = record.losses = 0
        record.error = record.ended_at = None
        self._dead -= 1
        self._keeping.revive(record)
        self._keeping.unsay(record)
        self._lines.work(record, 1)
        self._lines.stand(record, self._clock())

    def _end(
        self, record: Record, state: TaskState, error: TaskError | None, *, fence: str = ""
    ) -> TaskView:
        """However it ends; what depends on it is told."""
        now, view = self._clock(), None
        ends: list[tuple[Record, TaskState, TaskError | None]] = [(record, state, error)]
        for one, into, why in ends:
            self._leave(one)
            one.state, one.ended_at, one.error = into, now, why
            one.fence = fence if one is record else ""
            if into is TaskState.DEAD:
                self._dead += 1
            else:
                one.forget_input()
            self._keeping.say(one, StateChanged(into, why.code if why else ""))
            self._keeping.ended(one)
            self._on_end(one)
            if view is None:
                view = one.view()
            else:
                self._told.append(one.view())
            for child in self._family.left(one):
                if verdict(child) is TaskState.FAILED:
                    ends.append((child, TaskState.FAILED, FAILED))
                else:
                    self._lines.leave(child)
                    self._lines.stand(child, now)
        self._keeping.forget(now)
        assert view is not None  # noqa: S101  the first of them is the record's
        return view

    def _on_end(self, record: Record) -> None:
        """For those who keep more than this."""

    def _leave(self, record: Record) -> None:
        """From wherever it waits or runs."""
        if record.fence:
            self._runs(record, -1)
        else:
            self._lines.work(record, -1)
            self._lines.leave(record)

    # --- time -------------------------------------------------------------------------------

    async def sweep(self) -> Swept:
        """See Broker."""
        now = self._clock()
        self._expire(self._lines.expired(now))
        for record in self._lines.due(now):
            self._lines.stand(record, now)
        while self._leases and self._leases[0][0] <= now:
            held = self._records.get(heappop(self._leases)[1])
            if held is None or not held.claimed:
                continue
            if held.lease_until > now:
                heappush(self._leases, (held.lease_until, held.task.id))
            else:
                self._lose(held)
        self._keeping.forget(now)
        told, self._told = self._told, []
        returned, self._returned = self._returned, []
        return Swept(told, returned)

    def _lose(self, record: Record) -> None:
        """Its worker is lost: it runs again, alone; or it did so too often."""
        self._on_lost(record.task.id)
        record.losses += 1
        if record.losses >= record.task.max_attempts:
            self._told.append(self._end(record, TaskState.DEAD, DEAD))
            return
        record.alone = True
        self._back_in_line(record, WORKER_LOST)
        self._returned.append(record.task.id)

    def _expire(self, gone: Sequence[str]) -> None:
        """Who has left the line as they have waited as long as they may."""
        for task_id in gone:
            self._told.append(self._end(self._records[task_id], TaskState.EXPIRED, EXPIRED))

    def depth(self) -> Depth:
        """See Broker."""
        return self._lines.depth(self._clock(), running=self._running, dead=self._dead)

    def shelf(self, limit_bytes: int) -> Shelf:
        """See Broker."""
        return MemoryShelf(limit_bytes, self._clock)

    def _dropped(self, record: Record) -> None:
        super()._dropped(record)
        self._dead -= record.state is TaskState.DEAD
        self._keys.forget(record)
