"""A task between a broker of this process and a row of its file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from llmtaskpool_worker.brokers.codec import (
    SCHEMA,
    Unreadable,
    decode_request,
    decode_result,
    encode_request,
    encode_result,
)
from llmtaskpool_worker.brokers.journal import Row
from llmtaskpool_worker.brokers.protocol import MAX_ATTEMPTS, Dependencies, Line, Submission
from llmtaskpool_worker.brokers.records import Record
from llmtaskpool_worker.scheduling.sizes import record_bytes, result_bytes
from llmtaskpool_worker.scheduling.task import TERMINAL, LaneName, Result, TaskError, TaskState


class _Books(msgspec.Struct):
    lane: LaneName
    group: str
    cost_class: str
    load_seconds: float
    priority: float
    work_seconds: float
    size_bytes: int
    patience_seconds: float
    run_seconds: float
    tenant: str = ""
    delay_seconds: float = 0.0
    parents: tuple[str, ...] = ()
    need: int | None = None
    on_failure: Literal["fail", "continue"] = "fail"
    max_attempts: int = MAX_ATTEMPTS
    keep_seconds: float = 0.0
    printed: bytes = b""


_pack = msgspec.msgpack.Encoder().encode
_books = msgspec.msgpack.Decoder(_Books).decode


def row_of(record: Record, epoch: Callable[[float], float]) -> Row:
    """As it is written. ``epoch`` makes seconds since the epoch of the broker's."""
    task = record.task
    of = task.dependencies
    books = _Books(
        task.lane,
        task.group,
        task.line.cost_class,
        task.load_seconds,
        task.priority,
        task.work_seconds,
        task.size_bytes,
        task.patience_seconds,
        task.run_seconds,
        task.line.tenant,
        task.delay_seconds,
        () if of is None else of.parents,
        None if of is None else of.need,
        "fail" if of is None else of.on_failure,
        task.max_attempts,
        record.keep_seconds or 0.0,
        record.printed,
    )
    outcome: Result | TaskError | None = record.error or record.result
    return Row(
        task.id,
        record.state.value,
        epoch(record.submitted_at),
        None if record.started_at is None else epoch(record.started_at),
        None if record.ended_at is None else epoch(record.ended_at),
        None if record.expires_at is None else epoch(record.expires_at),
        record.attempts,
        record.losses,
        int(record.alone),
        record.fence,
        bytes([SCHEMA]) + _pack(books),
        encode_request(task.request),
        None if outcome is None else encode_result(outcome),
    )


def record_of(row: Row, local: Callable[[float], float]) -> Record:
    """As it was; ``local`` makes the broker's seconds of those since the epoch.

    Raises Unreadable.
    """
    try:
        return _record_of(row, local)
    except (ValueError, TypeError, IndexError, OverflowError):
        raise Unreadable("its state, its times or its books are damaged") from None


def _record_of(row: Row, local: Callable[[float], float]) -> Record:
    state, books = TaskState(row.state), _read_books(row.books)
    if not isinstance(row.request, bytes):
        raise Unreadable("its request is missing")
    request = decode_request(row.request)
    of = Dependencies(books.parents, books.need, books.on_failure) if books.parents else None
    task = Submission(
        id=row.id,
        request=request,
        lane=books.lane,
        group=books.group,
        line=Line(books.cost_class, books.tenant),
        load_seconds=books.load_seconds,
        priority=books.priority,
        work_seconds=books.work_seconds,
        size_bytes=books.size_bytes,
        patience_seconds=books.patience_seconds,
        run_seconds=books.run_seconds,
        delay_seconds=books.delay_seconds,
        dependencies=of,
        max_attempts=books.max_attempts,
    )
    record = Record(
        task,
        local(row.accepted_at),
        state=state,
        started_at=_maybe(row.started_at, local),
        ended_at=_maybe(row.ended_at, local),
        attempts=row.attempts,
        losses=row.losses,
        alone=bool(row.alone),
        fence=row.fence,
        weight=request.weight,
        size_bytes=record_bytes(request),
        keep_seconds=books.keep_seconds,
        printed=books.printed,
    )
    if state in TERMINAL:
        _read_outcome(record, row)
        if row.expires_at is not None and row.ended_at is not None:
            record.keep_seconds = row.expires_at - row.ended_at
    return record


def _read_books(data: bytes) -> _Books:
    if data[0] > SCHEMA:
        raise Unreadable(f"its books are of schema {data[0]}: a newer worker wrote them")
    return _books(data[1:])


def _read_outcome(record: Record, row: Row) -> None:
    if not isinstance(row.result, bytes):
        if record.state is TaskState.SUCCEEDED:
            raise Unreadable("its result is missing")
        return
    outcome: Any = decode_result(row.result)
    if isinstance(outcome, TaskError):
        record.error = outcome
    else:
        record.result = outcome
        record.size_bytes += result_bytes(outcome)


def _maybe(at: float | None, local: Callable[[float], float]) -> float | None:
    return None if at is None else local(at)
