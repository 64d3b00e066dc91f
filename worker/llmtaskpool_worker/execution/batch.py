"""What a batch is, and how it goes on from one state to the next. Pure: times are arguments.

validating -> in_progress -> finalizing -> completed
validating -> failed                 (no line of it can be asked)
any of the first three -> cancelling -> cancelled
validating, in_progress -> finalizing -> expired
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

WEIGHT = 0.25 / 16
"""W of every line: below all that people wait for; service_tier flex is 1/4."""
ERRORS_SHOWN = 100
"""A batch shows so many of its bad lines; all are in its error file."""


class Status(StrEnum):
    """OpenAI's."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


ENDED = frozenset({Status.FAILED, Status.COMPLETED, Status.EXPIRED, Status.CANCELLED})


@dataclass(frozen=True, slots=True)
class BatchError:
    """What is wrong with a line, or with all of it (``line`` is None)."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """What is written of an output or an error file."""

    id: str
    pieces: int = 0
    bytes: int = 0
    lines: int = 0


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch as it lies on the shelf; times are seconds since the epoch.

    Its lines are ``tenant``'s. ``owner`` is the worker that feeds it, "" nobody; who feeds it
    raises ``beat``. ``keep_seconds`` is how long its files are kept after its end. Lines up to
    ``reached`` may have begun.

    A batch whose owner was lost is fed with ``care`` up to line ``care_until``: 1, a few lines at a
    time, 2, one, which is ``alone``. What is lost a third time ends: it takes workers along.
    """

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    keep_seconds: int
    output: Written
    error: Written
    metadata: Mapping[str, str] | None = None
    tenant: str = ""
    status: Status = Status.VALIDATING
    stamps: Mapping[str, int] = field(default_factory=dict)
    """By the name of the state, when it came to it."""
    total: int = 0
    completed: int = 0
    failed: int = 0
    errors: Sequence[BatchError] = ()
    owner: str = ""
    beat: int = 0
    reached: int = 0
    care: int = 0
    care_until: int = 0
    alone: int = 0

    @property
    def ended(self) -> bool:
        """Nothing of it changes any more."""
        return self.status in ENDED


def moved(batch: BatchRecord, status: Status, now: int) -> BatchRecord:
    """In its next state, at ``now``."""
    return replace(batch, status=status, stamps={**batch.stamps, status.value: now})


def cancelled(batch: BatchRecord, now: int) -> BatchRecord:
    """Somebody wants no more of it. What has ended, or is cancelled already, stays as it is."""
    if batch.ended or batch.status is Status.CANCELLING:
        return batch
    return moved(batch, Status.CANCELLING, now)


def taken(batch: BatchRecord, worker: str) -> BatchRecord:
    """``worker`` feeds it from here on. Who fed it until now was lost, if there was somebody."""
    mine = replace(batch, owner=worker, beat=batch.beat + 1)
    if batch.owner in ("", worker) or batch.status is not Status.IN_PROGRESS:
        return mine
    return replace(mine, care=min(2, batch.care + 1), care_until=batch.reached)


def with_errors(batch: BatchRecord, errors: Sequence[BatchError]) -> BatchRecord:
    """With these shown too, as far as there is room."""
    shown = (*batch.errors, *(one for one in errors if one not in batch.errors))
    return replace(batch, errors=shown[:ERRORS_SHOWN])
