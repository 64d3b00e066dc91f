"""Places at a server that are for the urgent alone."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llmtaskpool_worker.scheduling.climb import Climb
from llmtaskpool_worker.scheduling.reserve import (
    KEPT_SECONDS,
    beyond,
    is_urgent,
    kept,
    yields,
)
from llmtaskpool_worker.scheduling.seats import Seats

BEST_WITH_12 = Climb(wanted=12, home=12, doubling=False)


def test_without_urgent_ones_n_is_all_that_the_server_has():
    seats = Seats(4)
    assert (seats.limit(0.0), seats.with_urgent(4, 0.0)) == (4, 4)


def test_while_urgent_ones_come_one_of_four_places_is_theirs():
    seats = Seats(4)
    seats.urgent_came(100.0)
    assert seats.limit(100.0) == 3
    assert seats.with_urgent(3, 100.0) == 4
    assert seats.limit(99.0 + KEPT_SECONDS) == 3
    assert seats.limit(100.0 + KEPT_SECONDS) == 4


def test_a_server_with_more_places_than_n_keeps_none_back():
    seats = Seats(64, climb=BEST_WITH_12)
    assert seats.limit(0.0) == 12
    seats.urgent_came(0.0)
    seats.yielding_came(0.0)
    assert seats.limit(0.0) == 12
    assert seats.with_urgent(12, 0.0) == 13


def test_a_server_that_has_too_much_gets_no_more_by_way_of_the_urgent():
    seats = Seats(64)
    seats.cut(20, 100.0)
    seats.urgent_came(100.0)
    limit = seats.limit(100.0)
    assert limit == 15
    assert seats.with_urgent(limit, 100.0) == 16


@pytest.mark.parametrize(
    ("places", "limit"), [(1, 1), (2, 2), (3, 3), (4, 3), (8, 7), (32, 30), (256, 240)]
)
def test_few_are_kept_of_many_and_none_of_few(places, limit):
    seats = Seats(places)
    seats.urgent_came(0.0)
    assert seats.limit(0.0) == limit


@pytest.mark.parametrize(
    ("places", "limit"), [(1, 1), (3, 3), (4, 3), (8, 7), (32, 31), (256, 255)]
)
def test_one_place_is_kept_from_requests_that_yield_before_the_first_urgent_one_came(places, limit):
    seats = Seats(places)
    seats.yielding_came(100.0)
    assert seats.limit(100.0) == limit
    assert seats.with_urgent(limit, 100.0) == places
    assert seats.limit(100.0 + KEPT_SECONDS) == places


@pytest.mark.parametrize(
    ("weight", "factor", "answer"),
    [
        (1.0, 10.0, False),
        (0.25, 10.0, False),
        (0.1, 10.0, True),
        (0.01, 10.0, True),
        (0.5, 2.0, True),
        (0.001, 1.0, False),
        (0.001, 0.0, False),
    ],
)
def test_those_yield_beside_whom_an_ordinary_request_is_urgent(weight, factor, answer):
    assert yields(weight, factor) is answer


@given(st.integers(1, 5000), st.booleans())
def test_what_is_kept_can_be_used_and_no_server_gets_more_than_it_has(most, comes):
    seats = Seats(most)
    if comes:
        seats.urgent_came(0.0)
    limit = seats.limit(0.0)
    assert 1 <= limit <= seats.with_urgent(limit, 0.0) <= most
    for_urgent = seats.with_urgent(limit, 0.0) - limit
    assert for_urgent <= min(kept(most), beyond(limit))
    assert (for_urgent > 0) is (comes and kept(most) > 0)


@pytest.mark.parametrize(
    ("waiting", "running", "factor", "urgent"),
    [
        (10.0, [1.0], 10.0, True),
        (9.9, [1.0], 10.0, False),
        (10.0, [5.0, 1.0, 20.0], 10.0, True),
        (10.0, [], 10.0, False),
        (1e9, [1.0], 0.0, False),
        (1e9, [1.0], 1.0, False),
        (1e9, [1.0], inf, False),
    ],
)
def test_urgent_is_who_could_have_the_place_of_one_that_runs(waiting, running, factor, urgent):
    assert is_urgent(waiting, running, factor) is urgent
