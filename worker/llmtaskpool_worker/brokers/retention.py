"""How long results are kept, and whether one more can be: told at acceptance, and kept.

Each task whose result is fetched later has room reserved when it is accepted: one place, the
bytes that it holds, and those that a result of its kind and model has had on average. How long its
result is kept is decided then: ``ttl_seconds`` while the store is at most half full, less the
fuller it is, ``ttl_least_seconds`` when the last room is given. Beyond that it is not accepted. So
no flood makes a result go before its time. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llmtaskpool_worker.scheduling.limits import ResultLimits

Sort = tuple[str, str | None]
"""A kind and a model: their results are of one size, more or less."""

UNHURRIED = 0.5
"""Up to this share of the room results are kept the whole time."""
FIRST_GUESS_BYTES = 4096
SMOOTHING = 0.2
"""Weight of the newest result in the mean of its sort."""
LOST_AT = 2.0
"""Results larger than was expected may fill the store up to so many times its limit."""


class NoRoom(Exception):
    """The result could not be kept as long as results are; try again in ``retry_after_seconds``."""

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__("no room for another result")
        self.retry_after_seconds = retry_after_seconds


@dataclass(slots=True)
class Retention:
    """The room that promised results take: ``tasks``, ``bytes``, and bytes that are expected."""

    limits: ResultLimits
    tasks: int = 0
    bytes: int = 0
    reserved: int = 0
    _means: dict[Sort, float] = field(default_factory=dict)

    def expected(self, sort: Sort) -> int:
        """Bytes that a result of this sort will probably have."""
        return int(self._means.get(sort, FIRST_GUESS_BYTES))

    def observe(self, sort: Sort, size: int) -> None:
        """A result of this sort had so many bytes."""
        before = self._means.get(sort)
        self._means[sort] = size if before is None else before + SMOOTHING * (size - before)

    def keep_seconds(self, size: int) -> float | None:
        """How long a result is kept whose task holds ``size`` bytes; None: there's no room."""
        limits = self.limits
        fill = max(
            (self.tasks + 1) / limits.tasks, (self.bytes + self.reserved + size) / limits.bytes
        )
        if fill > 1:
            return None
        hurry = max(0.0, fill - UNHURRIED) / (1 - UNHURRIED)
        least = min(limits.ttl_seconds, limits.ttl_least_seconds)
        return limits.ttl_seconds - hurry * (limits.ttl_seconds - least)

    def full(self, more: int) -> bool:
        """Whether ``more`` bytes are more than may be kept at all."""
        return self.bytes + more > LOST_AT * self.limits.bytes
