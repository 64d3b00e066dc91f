"""Minimums by the clock: when they hold, in which zone, and what bad ones are told."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.api.schedule import problem_of, scheduled_minimum
from llmtaskpool_operator.autoscaler.decide import replica_policy


@dataclass(frozen=True)
class Interval:
    start: str
    end: str
    time_zone: str = "UTC"
    min_replicas: int = 5


OFFICE = Interval("0 8 * * 1-5", "0 18 * * 1-5")


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("when", "minimum"),
    [
        ("2026-11-25T07:59:59", 0),
        ("2026-11-25T08:00:00", 5),
        ("2026-11-25T17:59:59", 5),
        ("2026-11-25T18:00:00", 0),
        ("2026-11-28T12:00:00", 0),  # a Saturday
    ],
)
def test_a_minimum_holds_from_its_start_until_its_end(when: str, minimum: int) -> None:
    assert scheduled_minimum([OFFICE], at(when)) == minimum


def test_hours_are_those_of_the_time_zone_summer_and_winter() -> None:
    berlin = Interval("0 8 * * *", "0 9 * * *", "Europe/Berlin")
    assert scheduled_minimum([berlin], at("2026-07-01T06:30:00")) == 5
    assert scheduled_minimum([berlin], at("2026-12-01T06:30:00")) == 0
    assert scheduled_minimum([berlin], at("2026-12-01T07:30:00")) == 5


def test_an_interval_may_go_over_midnight() -> None:
    night = Interval("0 22 * * *", "0 6 * * *")
    assert scheduled_minimum([night], at("2026-11-25T23:00:00")) == 5
    assert scheduled_minimum([night], at("2026-11-25T05:59:00")) == 5
    assert scheduled_minimum([night], at("2026-11-25T12:00:00")) == 0


def test_of_several_open_ones_the_highest_holds() -> None:
    noon = Interval("0 12 * * *", "0 13 * * *", min_replicas=9)
    assert scheduled_minimum([OFFICE, noon], at("2026-11-25T12:30:00")) == 9


def test_the_law_has_it_as_its_minimum_and_the_maximum_holds() -> None:
    schedule = {"start": "0 8 * * *", "end": "0 18 * * *", "minReplicas": 20}
    scaling = {"minReplicas": 1, "maxReplicas": 4, "schedules": [schedule]}
    spec = LLMTaskPoolSpec.model_validate({"scaling": scaling})
    assert replica_policy(spec, at("2026-11-25T12:00:00")).minimum == 4
    assert replica_policy(spec, at("2026-11-25T20:00:00")).minimum == 1


@pytest.mark.parametrize(
    ("start", "end", "zone", "said"),
    [
        ("61 * * * *", "0 9 * * *", "UTC", "start '61 * * * *'"),
        ("0 8 * * *", "0 9 * * FOO", "UTC", "end '0 9 * * FOO'"),
        ("0 8 * * *", "0 9 * * *", "Mars/Base", "timeZone 'Mars/Base'"),
        ("0 8 * * *", "0 9 * * *", "../../etc/passwd", "timeZone"),
    ],
)
def test_a_bad_one_is_told_with_field_and_value(start, end, zone, said) -> None:
    assert said in (problem_of(start, end, zone) or "")
