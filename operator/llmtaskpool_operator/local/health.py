"""Whether a worker of this machine still answers: a cluster's readiness and liveness probes.

A worker that was not heard is sent no new requests; it gets them again with its next answer. One
that stays silent, or says for long that it is stuck, is lost: it is ended and replaced. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class Verdict(Enum):
    """What is to be done with a worker."""

    WELL = auto()
    SILENT = auto()
    LOST = auto()


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """In seconds since a worker was last well.

    ``lost_asks``: as often in a row it must have been asked in vain, so that no pause of the
    asking process looks like one of the worker. ``stuck_seconds``: for a worker that answers, but
    says itself that its work does not move; its engine is mended first.
    """

    silent_seconds: float = 3.0
    lost_seconds: float = 12.0
    lost_asks: int = 3
    stuck_seconds: float = 60.0


class Health:
    """What is known of one worker's health."""

    def __init__(self, limits: HealthLimits, now: float) -> None:
        self._limits = limits
        self._well_at = now
        self._in_vain = 0
        self._answers = 0

    def asked(self, now: float, *, alive: bool | None, answers: int) -> Verdict:
        """It was asked whether it is alive; None: no answer in time.

        ``answers`` counts what it has answered to clients: when that moves, it isn't silent.
        """
        limits, moved = self._limits, answers != self._answers
        self._answers = answers
        if alive or (alive is None and moved):
            self._well_at, self._in_vain = now, 0
            return Verdict.WELL
        unwell = now - self._well_at
        if alive is not None:
            self._in_vain = 0
            return Verdict.LOST if unwell >= limits.stuck_seconds else Verdict.SILENT
        self._in_vain += 1
        if unwell >= limits.lost_seconds and self._in_vain >= limits.lost_asks:
            return Verdict.LOST
        return Verdict.SILENT if unwell >= limits.silent_seconds else Verdict.WELL
