"""What is kept of tasks that have ended, for how long, and what goes first.

What is promised is kept until it expires, and longer while somebody waits for it, follows it or
depends on it. What isn't (attended tasks, once their submitter let go of them) is kept beside it
while there is room, for the least time of the limits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from llmtaskpool_worker.brokers.records import Record
from llmtaskpool_worker.brokers.retention import NoRoom, Retention
from llmtaskpool_worker.scheduling.limits import ResultLimits
from llmtaskpool_worker.scheduling.sizes import event_bytes
from llmtaskpool_worker.scheduling.task import (
    Result,
    StateChanged,
    TaskError,
    TaskEvent,
    TaskState,
)

NO_ROOM = TaskError(
    "result_lost",
    "the task succeeded and its result was given up: it found no room among the results that are "
    "kept (LLMTASKPOOL_RESULT_BYTES); submit it again when those have expired",
)

AGAIN_SECONDS = 60.0
"""What others depend on is looked at again after this time."""
DEAD_SECONDS = 7 * 86_400.0
"""Dead letters are kept for a week, to be looked at and replayed."""


class Keeping:
    """``drop`` is called with each record that nobody can ask for any more."""

    def __init__(self, limits: ResultLimits, drop: Callable[[Record], None]) -> None:
        self._limits, self._drop_record = limits, drop
        self._retention = Retention(limits)
        self._expiring: list[tuple[float, int, Record]] = []
        self._ends = count()
        self._spare: OrderedDict[str, Record] = OrderedDict()
        self._spare_bytes = 0

    @property
    def bytes(self) -> int:
        """Of ended tasks, and of those whose results are promised."""
        return self._retention.bytes + self._spare_bytes

    def promise(self, record: Record, now: float) -> None:
        """Reserve room for the result. Raises NoRoom."""
        room = self._retention
        expected = room.expected(record.sort)
        keep = room.keep_seconds(record.size_bytes + expected)
        if keep is None:
            self.forget(now)
            keep = room.keep_seconds(record.size_bytes + expected)
        if keep is None:
            first = self._expiring[0][0] if self._expiring else now
            raise NoRoom(min(60.0, max(1.0, first - now)))
        self.keep(record, keep, expected)

    def keep(self, record: Record, seconds: float, expected: int) -> None:
        """What was promised once is promised, whatever the room is now."""
        record.keep_seconds, record.expected_bytes = seconds, expected
        self._retention.tasks += 1
        self._retention.bytes += record.size_bytes
        self._retention.reserved += expected

    def say(self, record: Record, event: TaskEvent) -> None:
        """An event of a task, with its bytes."""
        record.say(event)
        self.grow(record, event_bytes(event))

    def unsay(self, record: Record) -> None:
        """Forget what was said since the task was accepted."""
        self.grow(record, -sum(event_bytes(event) for event in record.events))
        record.events = []
        self.say(record, StateChanged(TaskState.QUEUED))

    def grow(self, record: Record, size: int) -> None:
        """A task holds so many bytes more."""
        record.size_bytes += size
        if record.keep_seconds is not None:
            self.promised(size)

    def promised(self, size: int) -> None:
        """What is promised has so many bytes more."""
        self._retention.bytes += size

    def fits(self, record: Record, result: Result, size: int) -> bool:
        """Whether a result has room. One that is read now is given up when it has been read."""
        if record.keep_seconds is not None:
            self._retention.observe(record.sort, size)
            if self._retention.full(size):
                if not record.readers:
                    return False
                self.unpromise(record)
        record.result = result
        self.grow(record, size)
        return True

    def ended(self, record: Record) -> None:
        """A task has ended: its time runs from now on."""
        if record.state is TaskState.DEAD and record.keep_seconds is not None:
            record.keep_seconds = max(record.keep_seconds, DEAD_SECONDS)
        if (expires_at := record.expires_at) is not None:
            self._retention.reserved -= record.expected_bytes
            record.expected_bytes = 0
            heappush(self._expiring, (expires_at, next(self._ends), record))
        elif not record.attended:
            self._spared(record)

    def revive(self, record: Record) -> None:
        """A dead letter is a task again."""
        record.expected_bytes = self._retention.expected(record.sort)
        self._retention.reserved += record.expected_bytes

    def let_go(self, record: Record) -> None:
        """The submitter of an attended task has read it, or won't."""
        record.attended = False
        if record.ended:
            self._spared(record)

    def forget(self, now: float) -> None:
        """Give back what ended tasks hold beyond their time and the limits."""
        while self._expiring and self._expiring[0][0] <= now:
            expires_at, _, record = heappop(self._expiring)
            if not record.ended or record.expires_at != expires_at:
                continue  # it was a dead letter once
            if record.needed:
                ended_at = now if record.ended_at is None else record.ended_at
                record.keep_seconds = now + AGAIN_SECONDS - ended_at
                again = ended_at + record.keep_seconds
                heappush(self._expiring, (again, next(self._ends), record))
                continue
            self.unpromise(record)
            self._spared(record)
            if not record.readers:
                self._drop(record)
        limits = self._limits
        for _ in range(len(self._spare)):
            record = next(iter(self._spare.values()))
            ended_at = record.ended_at if record.ended_at is not None else now
            tasks = self._retention.tasks + len(self._spare)
            if (
                tasks <= limits.tasks
                and self.bytes <= limits.bytes
                and now - ended_at < min(limits.ttl_seconds, limits.ttl_least_seconds)
            ):
                return
            if record.readers or record.needed:
                self._spare.move_to_end(record.task.id)
            else:
                self._drop(record)

    def unpromise(self, record: Record) -> None:
        """The time of a promised result is over, or it is too large: its room is free again."""
        self._retention.tasks -= 1
        self._retention.bytes -= record.size_bytes
        self._retention.reserved -= record.expected_bytes
        record.keep_seconds, record.expected_bytes = None, 0

    def _spared(self, record: Record) -> None:
        """Nobody is promised this result: it stays while there is room, and while it is read."""
        self._spare[record.task.id] = record
        self._spare_bytes += record.size_bytes

    def _drop(self, record: Record) -> None:
        del self._spare[record.task.id]
        self._spare_bytes -= record.size_bytes
        self._drop_record(record)
