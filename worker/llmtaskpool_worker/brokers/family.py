"""Tasks that depend on tasks: who may run now, and who can't any more.

A parent's end is counted in its children in the same step. Dependencies on tasks that exist can't
make a circle. A task that waits, or is blocked itself, has the strongest weight of all that wait
for it: so nothing urgent waits behind bulk that it depends on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from llmtaskpool_worker.brokers.protocol import DEPENDENCY_FAILED, Dependencies, UnknownParent
from llmtaskpool_worker.brokers.records import Record
from llmtaskpool_worker.scheduling.task import TaskError, TaskState

FAILED = TaskError(
    DEPENDENCY_FAILED, "too many of the tasks that it depends on did not succeed: it was not run"
)


def verdict(record: Record) -> TaskState:
    """QUEUED: it may wait in line; BLOCKED: it can't yet; FAILED: it never will."""
    of = record.task.dependencies
    if of is None:
        return TaskState.QUEUED
    count = len(of.parents)
    need = count if of.need is None else of.need
    if record.succeeded >= need:
        return TaskState.QUEUED
    if of.on_failure == "continue":
        ended = record.succeeded + record.unsuccessful
        return TaskState.QUEUED if ended == count else TaskState.BLOCKED
    return TaskState.FAILED if record.unsuccessful > count - need else TaskState.BLOCKED


class Family:
    """The ties between ``records``. ``reweigh`` moves a waiting one to its new weight's place."""

    def __init__(self, records: Mapping[str, Record], reweigh: Callable[[Record], None]) -> None:
        self._records, self._reweigh = records, reweigh

    def check(self, dependencies: Dependencies | None) -> None:
        """Raises UnknownParent."""
        for parent in dependencies.parents if dependencies is not None else ():
            if parent not in self._records:
                raise UnknownParent(parent)

    def join(self, record: Record) -> None:
        """A new task is tied to its parents, and counts those that have ended."""
        if record.task.dependencies is None:
            return
        for parent_id in record.task.dependencies.parents:
            parent = self._records.get(parent_id)
            if parent is None:
                record.unsuccessful += 1  # read from a file: forgotten means that it had ended
                continue
            parent.needed += 1
            if parent.ended:
                self._count(record, parent)
            else:
                parent.children += (record.task.id,)
        self._lift(record)

    def _lift(self, record: Record) -> None:
        above = deque([record])
        while above:
            child = above.popleft()
            of = child.task.dependencies
            for parent_id in of.parents if of is not None else ():
                parent = self._records.get(parent_id)
                if parent is not None and not parent.ended and parent.weight < child.weight:
                    parent.weight = child.weight
                    self._reweigh(parent)
                    above.append(parent)

    def left(self, record: Record) -> list[Record]:
        """A task has ended: the children for which that decides something."""
        of = record.task.dependencies
        for parent_id in of.parents if of is not None else ():
            parent = self._records.get(parent_id)
            if parent is not None:
                parent.needed -= 1
        children, record.children = record.children, ()
        decided = []
        for child_id in children:
            child = self._records.get(child_id)
            if child is None or child.state is not TaskState.BLOCKED:
                continue
            self._count(child, record)
            if verdict(child) is not TaskState.BLOCKED:
                decided.append(child)
        return decided

    @staticmethod
    def _count(child: Record, parent: Record) -> None:
        if parent.state is TaskState.SUCCEEDED:
            child.succeeded += 1
        else:
            child.unsuccessful += 1
