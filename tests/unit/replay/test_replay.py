"""A recorded pool under another setting, and the recorded decisions out of their own setting."""

from __future__ import annotations

import math
from typing import Any

import pytest
from fakes.cluster_objects import pool
from fakes.recorded_pool import FluidPool
from llmtaskpool_operator.api.manifest_file import parse_spec
from llmtaskpool_operator.autoscaler.reasons import reason_of
from llmtaskpool_operator.replay.record import Record, RecordLine
from llmtaskpool_operator.replay.replay import Replay, replay

QUIET = {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}}}
SETTINGS: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "a short window": QUIET,
    "a literal gain": {"alpha": "0.7", **QUIET},
    "step limits": {
        "behavior": {
            "scaleUp": {"policies": [{"type": "Pods", "value": 2, "periodSeconds": 30}]},
            "scaleDown": {
                "stabilizationWindowSeconds": 30,
                "policies": [{"type": "Percent", "value": 20, "periodSeconds": 60}],
            },
        }
    },
    "a minimum by the clock": {
        "schedules": [{"start": "5 8 * * *", "end": "12 8 * * *", "minReplicas": 7}]
    },
    "a long average": {"averagingSeconds": 120, "backlogDrainSeconds": 10},
}


def wave(at: float) -> float:
    """Two to eight pods of work over ten minutes, with a burst in the seventh and odd minutes."""
    burst = 9.0 if 400 <= at < 460 else 0.0
    return 5.0 - 3.0 * math.cos(at / 600 * 2 * math.pi) + burst + (0.7 if at % 120 < 60 else 0.0)


def burst(at: float) -> float:
    return 6.0 if 100 <= at < 400 else 0.8


def live(seconds: float = 1500, load: Any = wave, start_up: float = 20.0, **scaling: Any):
    made = FluidPool(pool(scaling={"maxReplicas": 30, **scaling}), start_up=start_up)
    return made.run(seconds, load)


def lines_of(lines: list[str]) -> tuple[RecordLine, ...]:
    record = Record()
    record.add(lines, "record")
    (name,) = record.pools
    return record.of(name)


def replayed(lines: list[str], start_up: float | None = None, **changes: Any) -> Replay:
    def wanted(raw: dict[str, Any]):
        return parse_spec(raw | {"scaling": raw["scaling"] | changes})

    return replay(lines_of(lines), parse_spec, wanted, start_up)


def same(made: Replay) -> list[bool]:
    return [
        (one.found[0], one.left[0], one.recorded_reason)
        == (one.found[1], one.left[1], reason_of(one.decision))
        for one in made.moments
    ]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_setting_makes_every_recorded_decision_again(name: str) -> None:
    made = live(**SETTINGS[name])
    assert len(set(made.sizes)) > 3
    again = replayed(made.lines)
    assert len(again.moments) == 300
    assert all(same(again))
    assert again.recorded == again.replayed
    assert (again.reproduced, again.decided) == (300, 300)


@pytest.mark.parametrize("name", SETTINGS)
def test_another_start_up_time_changes_nothing_while_the_setting_is_the_same(name: str) -> None:
    assert all(same(replayed(live(**SETTINGS[name]).lines, start_up=200.0)))


@pytest.mark.parametrize("name", ["a short window", "a literal gain", "step limits"])
@pytest.mark.parametrize("at", [120, 420, 490, 530])
def test_the_same_setting_makes_them_again_though_the_operator_began_anew_meanwhile(
    at: int, name: str
) -> None:
    made = FluidPool(pool(scaling={"maxReplicas": 30, **SETTINGS[name]}))
    made.run(at, wave).restart()
    made.run(1500 - at, wave)
    again = replayed(made.lines)
    assert sum(line.whole is not None and line.whole.began for line in lines_of(made.lines)) == 2
    assert all(same(again))
    assert again.reproduced == 300


def test_the_same_setting_makes_them_again_though_the_spec_changed_meanwhile() -> None:
    made = FluidPool(pool(scaling={"maxReplicas": 30, **QUIET}))
    made.run(503, wave).respec(pool(scaling={"maxReplicas": 9, "targetUtilization": 0.6, **QUIET}))
    made.run(1000, wave)
    again = replayed(made.lines)
    assert {moment.decision.policy.maximum for moment in again.moments} == {9, 30}
    assert all(same(again))


def test_the_same_setting_makes_them_again_from_a_log_that_was_cut_anywhere() -> None:
    made = live(**QUIET)
    for cut in (1, 59, 60, 61, 150):
        again = replayed(made.lines[cut:])
        assert 239 - cut < len(again.moments) <= 300 - cut
        assert all(same(again))


def test_the_same_setting_makes_them_again_though_somebody_else_scaled_the_pool() -> None:
    made = FluidPool(pool(scaling={"maxReplicas": 30, **QUIET}))
    made.run(300, wave).scale(20, ready_at=made.now + 20)
    made.run(500, wave)
    again = replayed(made.lines)
    assert 20 in [moment.found[0] for moment in again.moments]
    assert all(same(again))


def test_a_decision_that_was_not_the_laws_is_counted_as_not_reproduced() -> None:
    made = live(**QUIET)
    made.lines[100] = made.lines[100].replace('"desired":', '"desired":1')
    again = replayed(made.lines)
    assert (again.reproduced, again.decided) == (299, 300)


def test_a_lower_target_costs_more_pods_and_is_overloaded_for_less_time() -> None:
    made = replayed(live(1500, burst).lines, targetUtilization=0.5)
    assert made.replayed.pod_hours > 1.2 * made.recorded.pod_hours
    assert made.replayed.overloaded_seconds < made.recorded.overloaded_seconds
    assert made.replayed.shortfall < made.recorded.shortfall
    assert made.replayed.most > made.recorded.most


def test_a_window_longer_than_that_between_whole_lines_is_waited_for() -> None:
    longer = {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 600}}}
    made = replayed(live(1500, burst).lines, **longer)
    as_if = live(1500, burst, **longer)
    assert [m.left[1] for m in made.moments] == as_if.sizes


def test_pods_that_still_start_are_given_up_before_those_that_serve() -> None:
    made = FluidPool(pool(scaling={"mode": "Advise", "maxReplicas": 30}), replicas=5)
    made.run(300, lambda at: 15.0 if 100 <= at < 110 else 4.4)
    at_once = {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}}
    shown = replayed(made.lines, start_up=600.0, **at_once)
    assert shown.replayed.most > 5
    assert shown.replayed.least == 5
    assert {moment.ready[1] for moment in shown.moments} == {5}


def test_a_lower_maximum_lets_the_backlog_grow_as_it_would_have() -> None:
    recorded = live(900, burst)
    alone = live(900, burst, maxReplicas=4)
    made = replayed(recorded.lines, maxReplicas=4)
    real = lines_of(alone.lines)
    assert made.replayed.most == 4
    assert made.replayed.backlog == pytest.approx(max(line.backlog for line in real), rel=0.05)
    assert made.replayed.backlog > 3 * made.recorded.backlog


@pytest.mark.parametrize("start_up", [0.0, 20.0, 90.0])
@pytest.mark.parametrize("load", [wave, burst])
def test_a_pool_in_advise_shows_what_auto_really_would_have_done(
    load: Any, start_up: float
) -> None:
    advised = FluidPool(pool(scaling={"mode": "Advise", "maxReplicas": 30, **QUIET}), replicas=5)
    advised.run(1500, load)
    acted = FluidPool(pool(scaling={"maxReplicas": 30, **QUIET}), replicas=5, start_up=start_up)
    acted.run(1500, load)
    made = replayed(advised.lines, start_up=start_up)
    assert made.recorded.changes == 0
    assert made.recorded.least == made.recorded.most == 5
    assert (made.reproduced, made.decided) == (300, 300)
    guessed = [moment.left[1] for moment in made.moments]
    assert sum(abs(a - b) for a, b in zip(guessed, acted.sizes, strict=True)) < 0.03 * sum(guessed)
    assert made.replayed.changes == pytest.approx(
        replayed(acted.lines).recorded.changes, rel=0.1, abs=2
    )


def test_a_pool_that_others_scale_shows_what_auto_would_have_done() -> None:
    made = FluidPool(pool(scaling={"mode": "External", "maxReplicas": 30, **QUIET}, replicas=5))
    made.scale(5, ready_at=0.0)
    made.run(900, burst)
    shown = replayed(made.lines, start_up=20.0)
    assert shown.decided == 0
    assert (shown.recorded.least, shown.recorded.most) == (5, 5)
    assert (shown.replayed.least, shown.replayed.most) == (1, 10)
    assert shown.replayed.pod_hours < shown.recorded.pod_hours


def test_work_offered_can_be_replayed_for_a_pool_that_followed_another_metric() -> None:
    made = live(900, burst, metric="ThreadUtilization", **QUIET)
    by_work = live(900, burst, **QUIET)
    shown = replayed(made.lines, metric="OfferedWork", start_up=20.0)
    guessed = [moment.left[1] for moment in shown.moments]
    off = sum(abs(a - b) for a, b in zip(guessed, by_work.sizes, strict=True))
    assert off < 0.1 * sum(by_work.sizes)
    assert (shown.reproduced, shown.decided) == (180, 180)


def test_a_longer_average_is_taken_of_what_arrived_and_not_of_what_was_averaged() -> None:
    made = replayed(live(900, burst).lines, averagingSeconds=300)
    as_if = live(900, burst, averagingSeconds=300)
    real = [line.running for line in lines_of(as_if.lines)]
    rates = [moment.decision.observed.running for moment in made.moments]
    assert rates[0] is real[0] is None
    assert rates[1:] == pytest.approx(real[1:], rel=1e-9)


def test_the_start_up_time_is_that_of_the_pods_that_started() -> None:
    made = replayed(live(900, burst, start_up=40.0).lines)
    assert made.start_up_measured
    assert made.start_up == 40.0
    never = replayed(live(300, lambda _: 0.5).lines)
    assert (never.start_up_measured, never.start_up) == (False, 60.0)


def test_time_of_which_nothing_is_recorded_counts_for_neither() -> None:
    made = live(900, burst)
    whole = replayed(made.lines)
    cut = replayed(made.lines[:60] + made.lines[80:])
    assert cut.gap_seconds == 105.0
    assert cut.recorded.pod_hours == pytest.approx(
        whole.recorded.pod_hours - sum(made.sizes[59:80]) * 5 / 3600
    )
