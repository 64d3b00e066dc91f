"""How many requests a server gets: what it is best with, cuts and how they are won back."""

from __future__ import annotations

import pytest
from llmtaskpool_worker.scheduling.climb import Climb
from llmtaskpool_worker.scheduling.cost import CostModel
from llmtaskpool_worker.scheduling.delivery import Stretch
from llmtaskpool_worker.scheduling.seats import Seats
from llmtaskpool_worker.scheduling.task import Forward, TaskRequest


def learned(home: int, wanted: int | None = None) -> Climb:
    return Climb(wanted=wanted or home, home=home, doubling=False)


@pytest.mark.parametrize(
    ("most", "climb", "limit", "opened"),
    [
        (256, Climb(), 256, 4),
        (256, Climb(wanted=16), 256, 16),
        (2, Climb(), 2, 2),
        (8, learned(64), 8, 8),
        (256, learned(19), 19, 19),
        (256, learned(19, wanted=27), 19, 27),
        (256, learned(19, wanted=14), 19, 14),
        (0, Climb(), 1, 1),
    ],
    ids=["fresh", "doubling", "small", "bound", "learned", "more is tried", "less", "nothing"],
)
def test_n_is_within_the_server_s_own_bound_and_what_it_is_best_with(most, climb, limit, opened):
    seats = Seats(most, climb=climb)
    assert (seats.limit(0.0), seats.open(0.0)) == (limit, opened)


def test_what_was_delivered_moves_n_within_what_the_lane_may_send():
    seats = Seats(64)
    seats.take_in(None, 8, 1.0)
    seats.take_in(Stretch(4.0, 40.0), 8, 2.0)
    assert seats.open(2.0) == 8
    for stretch in range(14):  # whatever is in flight: fewer do as well, as is seen by and by
        now = 10.0 + 5 * stretch
        seats.take_in(Stretch(min(8, seats.open(now)), 41.0), 8, now)
    assert seats.limit(80.0) < 8


def test_a_cut_is_a_fifth_and_is_won_back_by_one_in_ten_seconds():
    seats = Seats(32)
    seats.cut(20, 100.0)
    assert [seats.limit(100.0 + after) for after in (0, 9.9, 10, 25, 30)] == [
        16,
        16,
        17,
        18,
        19,
    ]
    assert seats.limit(100.0 + 1000) == 32


def test_news_of_one_overload_cut_once():
    seats = Seats(32)
    for at in (100.0, 100.1, 104.9):
        seats.cut(20, at)
    assert seats.limit(105.0) == 16
    seats.cut(16, 106.0)
    assert seats.limit(106.0) == 12
    seats.cut(1, 120.0)
    assert seats.limit(120.0) == 1


def test_a_refusal_with_others_in_flight_lowers_n_and_needs_no_pause():
    seats = Seats(32)
    seats.refused(9, None, 5.0)
    assert (seats.limit(5.0), seats.paused(5.0), seats.turned_away) == (8, False, 1)


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
    assert [seats.limit(at) for at in (1.0, 20.0)] == [10, 12]


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
