"""The control law: what it asks for, what holds it, and what it never does."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llmtaskpool_operator.autoscaler.law import (
    THREAD_POLICY,
    Bound,
    Decision,
    Direction,
    Memory,
    Observed,
    Policy,
    StepLimit,
    decide,
)
from llmtaskpool_operator.autoscaler.reasons import reason_of
from llmtaskpool_operator.autoscaler.windows import SLOTS

AT_ONCE = Policy(minimum=1, maximum=100, down=Direction(0.0))


def run(
    policy: Policy, demands: list[float | None], *, n: int, period: float = 5.0
) -> list[Decision]:
    """Decisions over one demand per period, each applied before the next."""
    memory, made = Memory(), []
    for tick, demand in enumerate(demands):
        decision, memory = decide(policy, Observed(n, demand), memory, tick * period)
        made.append(decision)
        n = decision.desired
    return made


def test_the_gain_auto_reaches_the_target_in_one_step() -> None:
    (decision,) = run(AT_ONCE, [9.0], n=3)
    assert decision.desired == 10
    assert decision.utilization == pytest.approx(3.0)
    assert "3 -> 10 replicas: utilization 3.00 over target 0.90" in reason_of(decision)


def test_a_fall_waits_for_its_window_and_goes_to_the_largest_value_in_it() -> None:
    policy = Policy(minimum=1, maximum=20, down=Direction(60.0))
    demands: list[float | None] = [9.0, *[2.0] * 6, 4.0, *[2.0] * 12]
    made = run(policy, demands, n=10)
    sizes = [d.desired for d in made]
    assert sizes[:12] == [10] * 12
    # 60 s after 10 was wanted for the last time it is 5, and 60 s after that was, 3.
    assert sizes[12:19] == [5] * 7
    assert sizes[19] == 3
    assert made[5].bound is Bound.STABILIZED
    assert made[5].wait_seconds == 35.0
    assert made[13].bound is Bound.STABILIZED


def test_missing_metrics_hold_and_start_the_window_anew() -> None:
    policy = Policy(minimum=1, maximum=20, down=Direction(60.0))
    made = run(policy, [*[2.0] * 11, None, *[2.0] * 11], n=10)
    assert {d.desired for d in made} == {10}
    assert made[11].bound is Bound.NO_DATA


def test_incomplete_data_may_grow_and_never_shrink() -> None:
    shrink, _ = decide(AT_ONCE, Observed(5, 0.5, complete=False), Memory(), 0.0)
    grow, _ = decide(AT_ONCE, Observed(5, 9.0, complete=False), Memory(), 0.0)
    assert (shrink.desired, shrink.bound) == (5, Bound.INCOMPLETE)
    assert grow.desired == 10


def test_zero_wakes_to_one_on_the_first_arrival() -> None:
    policy = replace(AT_ONCE, minimum=0)
    asleep, memory = decide(policy, Observed(0, 0.0), Memory(), 0.0)
    awake, _ = decide(policy, Observed(0, 0.001), memory, 5.0)
    assert (asleep.desired, awake.desired, awake.bound) == (0, 1, Bound.WAKE)


def test_a_fixed_gain_keeps_its_fraction_until_it_makes_a_whole() -> None:
    policy = replace(AT_ONCE, maximum=1000, alpha=0.1, target=0.5, tolerance=0.0)
    sizes = [d.desired for d in run(policy, [100.0] * 60, n=100)]
    assert sizes[0] == 101
    assert max(sizes) > 101  # rounding each tick away would stay at 101 for ever


def test_step_limits_count_as_in_hpa() -> None:
    limited = Direction(limits=(StepLimit("Pods", 2, 60), StepLimit("Percent", 50, 60)))
    most = replace(AT_ONCE, up=limited)
    least = replace(AT_ONCE, up=replace(limited, select="Min"))
    never = replace(AT_ONCE, up=replace(limited, select="Disabled"))
    assert [d.desired for d in run(most, [90.0] * 3, n=10)] == [15, 15, 15]
    assert [d.desired for d in run(least, [90.0] * 3, n=10)] == [12, 12, 12]
    assert [d.desired for d in run(never, [90.0] * 3, n=10)] == [10, 10, 10]


def test_threads_rise_at_once_and_fall_by_two_percent_a_second() -> None:
    sizes = [d.desired for d in run(THREAD_POLICY, [160.0, 10.0, 10.0], n=8, period=1.0)]
    assert sizes == [200, 196, 192]


def test_a_cap_found_at_run_time_bounds_even_the_minimum() -> None:
    decision, _ = decide(THREAD_POLICY, Observed(8, 100.0, cap=3), Memory(), 0.0)
    assert decision.desired == 3


numbers = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 200))
policies = st.builds(
    Policy,
    minimum=st.integers(0, 5),
    maximum=st.integers(5, 50),
    target=st.floats(0.1, 1.5),
    alpha=st.one_of(st.none(), st.floats(0.01, 20)),
    tolerance=st.floats(0, 0.9),
    down=st.builds(Direction, st.sampled_from([0.0, 30.0, 300.0])),
)


@given(policies, st.lists(numbers, max_size=30), st.integers(0, 60))
def test_no_input_whatever_leads_out_of_bounds(
    policy: Policy, demands: list[float | None], n: int
) -> None:
    for decision in run(policy, demands, n=n):
        assert policy.minimum <= decision.desired <= policy.maximum


@given(policies, st.integers(5, 50))
def test_at_the_target_nothing_moves(policy: Policy, n: int) -> None:
    steady = replace(policy, minimum=0, maximum=50)
    demand = steady.target * n
    assert {d.desired for d in run(steady, [demand] * 10, n=n)} == {n}


@given(st.floats(0.05, 45), st.floats(0.05, 45), st.floats(0.3, 1.2))
def test_a_step_is_answered_without_turning_back(
    before: float, after: float, target: float
) -> None:
    policy = Policy(minimum=1, maximum=200, target=target, down=Direction(30.0))
    start = run(policy, [before] * 20, n=1)[-1].desired
    sizes = [start, *(d.desired for d in run(policy, [after] * 40, n=start))]
    moves = [b - a for a, b in pairwise(sizes) if a != b]
    assert all(m > 0 for m in moves) or all(m < 0 for m in moves)


windows = st.sampled_from([10.0, 60.0, 300.0])
loads = st.lists(st.one_of(st.none(), st.floats(0, 40)), min_size=1, max_size=120)


@given(loads, windows, st.integers(1, 50))
def test_a_fall_goes_no_lower_than_anything_wanted_within_the_window(
    demands: list[float | None], window: float, n: int
) -> None:
    policy = Policy(minimum=1, maximum=50, down=Direction(window))
    made = run(policy, demands, n=n)
    for place, decision in enumerate(made):
        recent = [d for d in made[: place + 1] if decision.at - d.at < window]
        # Without data nobody knows what was wanted: N as it was counts.
        floor = max(d.wanted for d in recent)
        if decision.desired < decision.current:
            assert decision.desired >= floor
            assert recent[0] is not made[0] or decision.at - made[0].at >= window - 5.0


@given(loads, windows, st.integers(1, 50), st.floats(0, 40))
def test_a_fall_comes_when_the_window_is_over_whatever_was_before(
    demands: list[float | None], window: float, n: int, after: float
) -> None:
    policy = Policy(minimum=1, maximum=50, down=Direction(window), trim_gain=0.0)
    ticks = math.ceil(window * (1 + 1 / SLOTS) / 5.0) + 1
    made = run(policy, [*demands, *[after] * ticks], n=n)
    assert made[-1].desired == made[-1].wanted


@given(loads, windows, st.integers(1, 50))
def test_what_a_window_remembers_is_bounded(
    demands: list[float | None], window: float, n: int
) -> None:
    policy = Policy(minimum=1, maximum=50, up=Direction(window), down=Direction(window))
    memory = Memory()
    for tick, demand in enumerate(demands * 3):
        decision, memory = decide(policy, Observed(n, demand), memory, tick * 0.7)
        n = decision.desired
        assert len(memory.most) <= SLOTS + 1
        assert len(memory.least) <= SLOTS + 1
        assert Memory.from_dict(json.loads(json.dumps(memory.as_dict()))) == memory


@pytest.mark.parametrize("odd", [[[1, "x"]], [[2, 3], [1, 2]], "no", [[1, math.nan]], [[0, 1, 2]]])
def test_a_memory_that_can_not_be_one_lets_no_fall_come_early(odd: object) -> None:
    policy = Policy(minimum=1, maximum=20, down=Direction(60.0))
    decision, _ = decide(policy, Observed(10, 1.0), Memory.from_dict({"most": odd}), 1000.0)
    assert (decision.desired, decision.wait_seconds) == (10, 60.0)


def test_a_rise_that_has_a_window_goes_no_higher_than_all_of_it_wanted() -> None:
    policy = Policy(minimum=1, maximum=20, up=Direction(20.0))
    sizes = [d.desired for d in run(policy, [9.0, 9.0, 4.0, 9.0, 9.0, 9.0, 9.0], n=2)]
    assert sizes == [2, 2, 2, 2, 5, 5, 10]


@given(st.sampled_from([math.nan, math.inf, -math.inf, -1.0]))
def test_odd_numbers_are_ignored_and_said(odd: float) -> None:
    decision, memory = decide(AT_ONCE, Observed(4, odd), Memory(), 0.0)
    assert decision.desired == 4
    assert "running" in "".join(decision.ignored)
    assert "ignored" in reason_of(decision)
    assert memory == Memory()


@given(st.lists(st.floats(0, 60), min_size=1, max_size=20), st.floats(0.05, 5))
def test_memory_survives_storage(demands: list[float], alpha: float) -> None:
    policy = replace(AT_ONCE, alpha=alpha, down=Direction(20.0))
    memory, n = Memory(), 5
    for tick, demand in enumerate(demands):
        _, stored = decide(policy, Observed(n, demand), Memory.from_dict(memory.as_dict()), tick)
        decision, memory = decide(policy, Observed(n, demand), memory, tick)
        assert stored == memory
        n = decision.desired


def test_kappa_follows_what_saturated_pods_really_do() -> None:
    memory, n = Memory(), 4
    for tick in range(200):
        observed = Observed(n, 3.0, saturated_rate=0.6)
        decision, memory = decide(AT_ONCE, observed, memory, tick * 5.0)
    assert memory.kappa == pytest.approx(0.6, abs=0.01)
    assert decision.desired == 6
