"""The law in the simulator: loads that step, ramp and swing, with slow starts and late metrics."""

from __future__ import annotations

from math import ceil

import pytest
from fakes.traffic import asked_at, levels, ours, ramp, reversals, setting, trace_of

STEP = levels((600, 2.2), (1800, 7.5), (1500, 2.2))


def pods_for(load: float) -> int:
    """What the law settles at: the load over the target, with its tolerance."""
    return ceil(load / 0.9 - 0.1)


@pytest.mark.parametrize("start_up", [0, 60, 180, 300])
@pytest.mark.parametrize("lag", [0, 30])
def test_a_step_is_followed_with_one_reversal_at_most_and_settles(start_up: int, lag: int) -> None:
    outcome = ours(STEP, setting(start_up=start_up, lag=lag, initial=3))
    assert all(1 <= moment.asked <= 40 for moment in outcome.moments)
    assert reversals(outcome, 600, 2400) <= 1
    assert reversals(outcome, 2400, 3900) <= 1
    assert abs(asked_at(outcome, 2390) - pods_for(7.5)) <= 1
    assert abs(asked_at(outcome, 3890) - pods_for(2.2)) <= 1
    assert outcome.unfinished == 0


@pytest.mark.parametrize("alpha", ["Auto", "2", "6"])
def test_any_gain_in_the_stable_range_ends_at_the_same_size(alpha: str) -> None:
    outcome = ours(STEP, setting(initial=3, alpha=alpha))
    assert reversals(outcome, 600, 2400) <= 1
    assert abs(asked_at(outcome, 2390) - pods_for(7.5)) <= 1


def test_a_ramp_up_is_followed_without_giving_anything_back() -> None:
    outcome = ours(ramp(1800, 1.2, 9.0), setting(initial=2))
    assert all(step > 0 for at, step in outcome.changes if at < 1800)
    assert asked_at(outcome, 1795) >= 9
    assert outcome.slo > 0.97


def test_a_fast_square_wave_is_held_at_its_peak() -> None:
    wave = levels(*((120, 6.0), (120, 2.0)) * 10)
    outcome = ours(wave, setting(initial=6))
    late = [moment.asked for moment in outcome.moments if moment.at > 600]
    assert min(late) >= pods_for(6.0) - 1  # each trough is shorter than the window of a fall
    assert outcome.flaps <= 2


def test_a_slow_square_wave_turns_once_for_each_step() -> None:
    wave = levels(*((900, 6.3), (900, 2.2)) * 2)
    outcome = ours(wave, setting(initial=7, start_up=60))
    for begin in (900, 1800, 2700):
        assert reversals(outcome, begin, begin + 900) <= 1


@pytest.mark.parametrize(("low", "high"), [(1, 3), (5, 6)])
def test_the_bounds_hold_under_any_load(low: int, high: int) -> None:
    outcome = ours(levels((600, 0.5), (900, 12.0), (600, 0.5)), setting(low=low, high=high))
    assert {moment.asked for moment in outcome.moments} <= set(range(low, high + 1))
    assert max(moment.asked for moment in outcome.moments) == high


def test_a_single_request_is_served_by_the_smallest_pool() -> None:
    outcome = ours(trace_of([5.0]), setting(initial=1))
    assert (outcome.requests, outcome.unfinished, outcome.slo) == (1, 0, 1.0)
    assert outcome.changes == ()
