"""Minimums of replicas for some hours, by cron expressions. Pure.

An interval is open while its last beginning is later than its last end, as in KEDA's cron scaler
(https://keda.sh/docs/latest/scalers/cron/).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

CRON_PATTERN = r"^[A-Za-z0-9*/,#L-]+( [A-Za-z0-9*/,#L-]+){4}$"
"""Five fields with single spaces between them; what they mean is checked by ``problem_of``."""


class Interval(Protocol):
    """What is read of one entry of ``scaling.schedules``."""

    @property
    def start(self) -> str:
        """Cron expression."""

    @property
    def end(self) -> str:
        """Cron expression."""

    @property
    def time_zone(self) -> str:
        """IANA name."""

    @property
    def min_replicas(self) -> int:
        """The minimum within the interval."""


def scheduled_minimum(schedules: Iterable[Interval], now: float) -> int:
    """The highest minimum that is in force at ``now`` (seconds since the epoch); 0: none."""
    open_ones = [one.min_replicas for one in schedules if _is_open(one, now)]
    return max(open_ones, default=0)


def problem_of(start: str, end: str, time_zone: str) -> str | None:
    """Why these can't be an interval, with field, value and remedy; None: they can."""
    for field, expression in (("start", start), ("end", end)):
        try:
            CronSim(expression, datetime(2026, 1, 1, tzinfo=UTC))
        except CronSimError as error:
            return (
                f"{field} {expression!r} is no cron expression ({error}): "
                "write minute hour day month weekday"
            )
    try:
        ZoneInfo(time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return f"timeZone {time_zone!r} is unknown: use an IANA name such as Europe/Berlin"
    return None


def _is_open(one: Interval, now: float) -> bool:
    at = datetime.fromtimestamp(now, ZoneInfo(one.time_zone))
    return _last(one.start, at) > _last(one.end, at)


def _last(expression: str, at: datetime) -> float:
    """The last time that the expression means, at ``at`` or before; in seconds since the epoch."""
    # CronSim goes back from before what it is given: the minute of ``at`` counts too.
    after = at.replace(second=0, microsecond=0) + timedelta(minutes=1)
    last = next(CronSim(expression, after, reverse=True), None)
    return last.timestamp() if last is not None else float("-inf")
