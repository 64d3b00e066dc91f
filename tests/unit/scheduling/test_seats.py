"""How many requests a server gets: the knee of a + b N, cuts and how they are won back."""

from __future__ import annotations

import random
from math import inf
from statistics import mean

import pytest
from llmtaskpool_worker.scheduling.cost import CostModel
from llmtaskpool_worker.scheduling.ramp import Ramp
from llmtaskpool_worker.scheduling.seats import Seats, knee, line
from llmtaskpool_worker.scheduling.task import Forward, TaskRequest


def steps(base: float, slope: float, sizes=(1, 2, 4, 8, 16)) -> dict[int, float]:
    return {size: base + slope * size for size in sizes}


@pytest.mark.parametrize(
    ("base", "slope", "best"),
    [
        (0.010, 0.010, 19),
        (0.020, 0.001, 380),
        (0.015, 0.0015, 190),
        (0.001, 0.010, 1.9),
        (0.030, 0.005, 114),
    ],
)
def test_the_knee_is_where_one_more_brings_a_twentieth_of_the_mean(base, slope, best):
    assert knee(steps(base, slope)) == pytest.approx(best)

    def rate(n: float) -> float:
        return n / (base + slope * n)

    marginal = (rate(best + 1e-4) - rate(best)) / 1e-4
    assert marginal == pytest.approx(0.05 * rate(best) / best, rel=1e-2)


@pytest.mark.parametrize(
    "points",
    [
        {},
        {8: 0.03},
        {8: 0.03, 9: 0.04, 12: 0.05},
        {1: 0.02, 8: 0.02},
        {1: 0.03, 8: 0.02},
        {4: 0.02, 16: 0.08},
        {4: 0.154, 7: 0.418, 8: 0.378, 12: 0.364, 16: 0.588},
    ],
    ids=["nothing", "one", "alike", "flat", "falling", "two", "a busy machine's"],
)
def test_there_is_no_knee_before_it_can_be_told(points):
    assert knee(points) == inf


def test_a_line_is_found_in_noise():
    drawn = random.Random(4)
    noisy = {n: (0.02 + 0.001 * n) * drawn.uniform(0.95, 1.05) for n in (1, 2, 3, 4, 8, 16, 32)}
    base, slope = line(noisy)
    assert base == pytest.approx(0.02, rel=0.1)
    assert slope == pytest.approx(0.001, rel=0.2)


@pytest.mark.parametrize(
    ("most", "points", "expected"),
    [
        (256, {}, 256),
        (8, steps(0.02, 0.001), 8),
        (256, steps(0.010, 0.010), 19),
        (256, steps(0.0001, 0.010), 4),
        (2, steps(0.0001, 0.010), 2),
        (0, {}, 1),
    ],
)
def test_n_is_within_the_server_s_own_bound_and_its_knee(most, points, expected):
    assert Seats(most).limit(points, 0.0) == expected


def test_a_cut_is_a_fifth_and_is_won_back_by_one_in_ten_seconds():
    seats = Seats(32)
    seats.cut(20, 100.0)
    assert [seats.limit({}, 100.0 + after) for after in (0, 9.9, 10, 25, 30)] == [
        16,
        16,
        17,
        18,
        19,
    ]
    assert seats.limit({}, 100.0 + 1000) == 32


def test_news_of_one_overload_cut_once():
    seats = Seats(32)
    for at in (100.0, 100.1, 104.9):
        seats.cut(20, at)
    assert seats.limit({}, 105.0) == 16
    seats.cut(16, 106.0)
    assert seats.limit({}, 106.0) == 12
    seats.cut(1, 120.0)
    assert seats.limit({}, 120.0) == 1


def test_a_refusal_with_others_in_flight_lowers_n_and_needs_no_pause():
    seats = Seats(32)
    seats.refused(9, None, 5.0)
    assert (seats.limit({}, 5.0), seats.paused(5.0), seats.turned_away) == (8, False, 1)


def test_a_server_that_refuses_the_only_request_is_asked_ever_less_often_until_it_takes_one():
    seats, now, pauses = Seats(4), 0.0, []
    for _ in range(7):
        seats.refused(0, None, now)
        began = now
        while seats.paused(now):
            now += 0.05
        pauses.append(now - began)
    assert pauses == pytest.approx([0.25, 0.5, 1, 2, 4, 5, 5], abs=0.06)
    seats.took()
    seats.refused(0, None, now)
    assert not seats.paused(now + 0.26)


@pytest.mark.parametrize(("asked", "waits"), [(3.0, 3.0), (600.0, 10.0), (0.0, 0.25)])
def test_retry_after_is_kept_within_reason(asked, waits):
    seats = Seats(4)
    seats.refused(3, asked, 0.0)
    assert seats.paused(waits - 0.01)
    assert not seats.paused(waits)


def test_a_queue_inside_the_server_bounds_n_until_it_is_won_back():
    seats = Seats(64)
    seats.hold(10, 0.0)
    seats.hold(30, 1.0)
    assert [seats.limit({}, at) for at in (1.0, 20.0)] == [10, 12]


def learned_over_best(
    base: float, slope: float, most: int, seed: int, *, law_grows: bool = True
) -> float:
    """N after a minute of load over the best that a sweep finds; steps vary by 30 %.

    ``law_grows``: the operator raises N; else it is large at once, and the ramp alone holds it.
    """
    drawn, cost, seats, ramp = random.Random(seed), CostModel(), Seats(most), Ramp()

    def rate(n: int) -> float:
        return n / (base + slope * n)

    best = max(
        n for n in range(1, most + 1) if n == 1 or rate(n) - rate(n - 1) >= 0.05 * rate(n) / n
    )
    running = 1 if law_grows else min(most, ramp.places)
    for second in range(60):
        step = base + slope * running
        for _ in range(max(1, round(running / step / 8))):  # a sample of each stream in 8 tokens
            gaps = [step * drawn.uniform(0.7, 1.3) for _ in range(8)]
            cost.observe_step("m", running, 0, mean(gaps))
            ramp.measured(running)
        limit = seats.limit(cost.steps("m"), float(second))
        grown = running + max(1, running // 4) if law_grows else limit  # as the law, at most
        running = min(limit, ramp.places, grown)
    return running / best


@pytest.mark.parametrize(
    ("base", "slope", "most"),
    [
        (0.020, 0.004, 256),
        (0.015, 0.010, 256),
        (0.030, 0.001, 256),
        (0.030, 0.010, 16),
        (0.050, 0.012, 256),
    ],
)
@pytest.mark.parametrize("law_grows", [True, False], ids=["the law grows", "full at once"])
def test_within_a_minute_of_load_n_is_near_the_best_that_a_sweep_finds(
    base, slope, most, law_grows
):
    found = [learned_over_best(base, slope, most, seed, law_grows=law_grows) for seed in range(20)]
    near = [one for one in found if abs(one - 1) <= 0.15]
    assert len(near) >= 18


def request(letters: int, most: int | None = None) -> TaskRequest:
    return TaskRequest("chat", Forward("chat/completions", b"{}", letters, None, most), "chat")


def test_letters_become_tokens_by_what_the_server_counted():
    cost = CostModel()
    long = request(4000)
    assert cost.prompt_tokens("chat", long.payload) == 1000
    for _ in range(20):
        cost.observe_prompt("chat", request(600).payload, 300)
        cost.observe_prompt("chat", request(5).payload, 40)  # a template's tokens alone
    assert cost.prompt_tokens("chat", long.payload) == pytest.approx(2000)
    counted = Forward("chat/completions", b"{}", 4000, 123)
    assert cost.prompt_tokens("chat", counted) == 123


def test_a_longer_prompt_and_a_longer_answer_cost_more():
    cost = CostModel()
    loads = [
        cost.load(cost.classify(request(letters, most)))
        for letters, most in ((100, 10), (100, 100), (100_000, 100), (100_000, None))
    ]
    assert loads == sorted(loads)
    assert len(set(loads)) == 4


def test_a_knee_that_was_low_for_a_moment_costs_no_seat_for_good():
    seats = Seats(16)
    assert seats.limit(steps(0.010, 0.010), 0.0) == 16
    seats.limit(steps(0.0001, 0.010), 5.0)
    assert seats.limit({}, 5.0) < 16
    found = [seats.limit({}, 5.0 + second) for second in range(1, 40)]
    assert found[-1] == 16
    assert found == sorted(found)
