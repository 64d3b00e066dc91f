"""The tasks of a broker of this process: what they said, and who reads it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from llmtaskpool_worker.brokers.keeping import Keeping
from llmtaskpool_worker.brokers.protocol import Held
from llmtaskpool_worker.brokers.records import Record, listed
from llmtaskpool_worker.scheduling.limits import ResultLimits
from llmtaskpool_worker.scheduling.sizes import event_bytes
from llmtaskpool_worker.scheduling.task import Asked, StateChanged, TaskEvent, TaskState, TaskView


class Books:
    """Looking at tasks and following them: the part of Broker that changes no task's way."""

    def __init__(self, limits: ResultLimits) -> None:
        self._records: dict[str, Record] = {}
        self._keeping = Keeping(limits, self._dropped)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def kept_bytes(self) -> int:
        """Bytes of ended tasks, and of those whose results are promised."""
        return self._keeping.bytes

    async def get(self, task_id: str) -> TaskView | None:
        """See Broker."""
        record = self._records.get(task_id)
        return None if record is None else record.view()

    async def list(self, asked: Asked) -> list[TaskView]:
        """See Broker."""
        return listed(self._records.values(), asked)

    async def wait(self, task_id: str) -> TaskView:
        """See Broker."""
        record = self._records[task_id]
        record.readers += 1
        try:
            while not record.ended:
                await record.changed()
            return record.view()
        finally:
            record.readers -= 1

    async def events(self, task_id: str) -> AsyncIterator[TaskEvent]:
        """See Broker."""
        record = self._records[task_id]
        record.watched = True
        record.readers += 1
        try:
            seen = 0
            while True:
                while seen < len(record.events):
                    event = record.events[seen]
                    seen += 1
                    yield event
                if record.ended:
                    return
                await record.changed()
        finally:
            record.readers -= 1

    def publish(self, held: Held, event: TaskEvent) -> None:
        """See Broker."""
        record = self._records.get(held.id)
        if record is None or record.fence != held.fence or record.ended_at is not None:
            return
        if not isinstance(event, StateChanged):  # each token of each stream comes by here
            record.events.append(event)
            if record.waiters:
                record.wake()
            size = event_bytes(event)
            record.size_bytes += size
            if record.keep_seconds is not None:
                self._keeping.promised(size)
            return
        if event.state is TaskState.QUEUED:
            self._keeping.unsay(record)
        elif record.state is not event.state:
            record.attempts += 1
        record.state = event.state
        self._keeping.say(record, event)

    def watched(self, task_id: str) -> bool:
        """See Broker."""
        record = self._records.get(task_id)
        return record is not None and record.watched

    def let_go(self, task_id: str) -> None:
        """See Broker."""
        record = self._records.get(task_id)
        if record is not None and record.attended:
            self._keeping.let_go(record)

    def _claimed(self, task_id: str, fence: str) -> Record | None:
        record = self._records.get(task_id)
        if record is None or record.fence != fence or record.ended:
            return None
        return record

    def _dropped(self, record: Record) -> None:
        """Nobody can ask for it any more."""
        del self._records[record.task.id]
