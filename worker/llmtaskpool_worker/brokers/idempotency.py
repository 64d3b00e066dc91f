"""Idempotency keys of a broker of this process: what was said twice is one task."""

from __future__ import annotations

from llmtaskpool_worker.brokers.protocol import Submission
from llmtaskpool_worker.brokers.records import Record, fingerprint
from llmtaskpool_worker.brokers.refusals import IdempotencyConflict

_Key = tuple[str, str]


class IdempotencyKeys:
    """Each tenant has its own: what another calls the same is another task."""

    def __init__(self) -> None:
        self._tasks: dict[_Key, tuple[str, bytes]] = {}

    def find(self, task: Submission) -> str | None:
        """The id of the task that has its key. Raises IdempotencyConflict."""
        known = None if (key := _key_of(task)) is None else self._tasks.get(key)
        if known is None:
            return None
        task_id, printed = known
        if printed != fingerprint(task):
            raise IdempotencyConflict
        return task_id

    def put(self, record: Record) -> None:
        """It has its key from now on."""
        if (key := _key_of(record.task)) is not None:
            record.printed = record.printed or fingerprint(record.task)
            self._tasks[key] = record.task.id, record.printed

    def forget(self, record: Record) -> None:
        """Its key is free again."""
        key = _key_of(record.task)
        if key is not None and self._tasks.get(key, ("",))[0] == record.task.id:
            del self._tasks[key]


def _key_of(task: Submission) -> _Key | None:
    key = task.request.idempotency_key
    return (task.line.tenant, key) if key else None
