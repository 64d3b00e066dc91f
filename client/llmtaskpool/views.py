"""What a client shows: tasks, graphs, files and batches as they were when they were asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmtaskpool.errors import TaskFailed

TASK_ENDED = frozenset({"succeeded", "failed", "cancelled", "expired", "dead"})
BATCH_ENDED = frozenset({"completed", "failed", "cancelled", "expired"})


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task has no result."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Task:
    """A task; times are seconds since the epoch. ``raw`` is all that was answered."""

    id: str
    kind: str
    state: str
    model: str | None
    attempts: int
    result: Any
    error: Failure | None
    labels: Mapping[str, str]
    submitted_at: float
    ended_at: float | None
    result_expires_at: float | None
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def ended(self) -> bool:
        """Whether it will not change any more."""
        return self.state in TASK_ENDED

    def value(self) -> Any:
        """The result of a task that succeeded. Raises TaskFailed."""
        if self.state != "succeeded":
            raise TaskFailed(self)
        return self.result


@dataclass(frozen=True, slots=True)
class Graph:
    """Tasks that depend on each other, by their names in it."""

    id: str
    tasks: Mapping[str, Task]


@dataclass(frozen=True, slots=True)
class GraphEvent:
    """What became of a graph: a task ``name`` has ended, or how far all of it is.

    Neither is a sign of life. ``over``: it was the last, with the progress of the end.
    """

    name: str = ""
    task: Task | None = None
    progress: Mapping[str, Any] | None = None
    over: bool = False


@dataclass(frozen=True, slots=True)
class File:
    """A file; times are seconds since the epoch."""

    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int | None


@dataclass(frozen=True, slots=True)
class BatchCounts:
    """How many lines of a batch there are, and how many have ended how."""

    total: int
    completed: int
    failed: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch; times are seconds since the epoch. ``raw`` is all that was answered."""

    id: str
    status: str
    endpoint: str
    input_file_id: str
    output_file_id: str | None
    error_file_id: str | None
    counts: BatchCounts
    created_at: int
    expires_at: int
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def ended(self) -> bool:
        """Whether it will not change any more."""
        return self.status in BATCH_ENDED


def task_of(told: Mapping[str, Any]) -> Task:
    """A task as a pool shows it."""
    error = told["error"]
    return Task(
        id=told["id"],
        kind=told["kind"],
        state=told["state"],
        model=told["model"],
        attempts=told["attempts"],
        result=told["result"],
        error=None if error is None else Failure(error["code"], error["message"]),
        labels=told["labels"],
        submitted_at=told["submitted_at"],
        ended_at=told["ended_at"],
        result_expires_at=told["result_expires_at"],
        raw=told,
    )


class GraphLines:
    """The lines of a graph's stream, one after the other, as what they tell."""

    def __init__(self) -> None:
        self._sort = ""

    def read(self, line: str) -> GraphEvent | None:
        """None: the line tells nothing yet."""
        if line.startswith(":"):
            return GraphEvent()
        field, _, value = line.partition(": ")
        if field == "event":
            self._sort = value
        if field != "data":
            return None
        told = json.loads(value)
        if self._sort == "task":
            named = {**told["task"], "name": told["name"]}
            return GraphEvent(told["name"], task_of(named))
        return GraphEvent(progress=told, over=self._sort == "end")


def file_of(told: Mapping[str, Any]) -> File:
    """A file as a pool shows it."""
    return File(
        told["id"],
        told["filename"],
        told["purpose"],
        told["bytes"],
        told["created_at"],
        told["expires_at"],
    )


def batch_of(told: Mapping[str, Any]) -> Batch:
    """A batch as a pool shows it."""
    counts = told["request_counts"]
    return Batch(
        id=told["id"],
        status=told["status"],
        endpoint=told["endpoint"],
        input_file_id=told["input_file_id"],
        output_file_id=told["output_file_id"],
        error_file_id=told["error_file_id"],
        counts=BatchCounts(counts["total"], counts["completed"], counts["failed"]),
        created_at=told["created_at"],
        expires_at=told["expires_at"],
        raw=told,
    )
