"""A server behind a model, as the pool counts and judges it."""

from __future__ import annotations

import pytest
from fakes.letters_engine import LettersEngine
from llmtaskpool_worker.engines.protocol import Gauges, ModelSpec, Ready
from llmtaskpool_worker.execution.engine_slots import EngineSlots
from llmtaskpool_worker.scheduling.climb import Climb
from llmtaskpool_worker.scheduling.delivery import Stretch
from llmtaskpool_worker.scheduling.seats import Seats


def slots_of(climb: Climb | None = None) -> EngineSlots:
    """``climb``: what is known of the server; else that it is best with all that it has."""
    engine = LettersEngine()
    engine.spec = ModelSpec("chat", "openai:http://127.0.0.1:1/v1")
    known = climb or Climb(wanted=256, home=256, doubling=False)
    slots = EngineSlots(engine, seats=Seats(256, climb=known))
    slots.ready = Ready(4096, 0, [], "upstream", "", max_threads=10)
    return slots


@pytest.mark.parametrize(
    ("seconds", "problem"), [(5.0, None), (29.0, None), (30.0, "stalled"), (300.0, "stalled")]
)
def test_no_token_for_thirty_seconds_with_streams_in_flight_is_told_and_named(seconds, problem):
    slots = slots_of()
    slots.began(1, "a", 100.0)
    slots.began(2, "b", 100.0)
    found = slots.problem(100.0 + seconds, 10.0)
    assert (found.code if found else None) == problem
    if found is not None:
        assert "has sent no token for" in found.message
        assert "2 requests in flight" in found.message


def test_at_rest_no_token_is_no_problem():
    slots = slots_of()
    slots.began(1, "a", 100.0)
    slots.ended(1, 110.0)
    assert slots.problem(5000.0, 10.0) is None


def test_n_is_what_the_server_holds_less_what_is_in_flight_and_none_while_it_refuses():
    slots = slots_of()
    slots.bound(0.0)
    assert slots.free("chat") == 10
    for number in range(8):
        slots.began(number, str(number), 0.0)
    assert slots.free("chat") == 2
    slots.seats.cut(8, 1.0)
    slots.bound(1.0)
    assert (slots.holds, slots.free("chat")) == (6, 0)
    for number in range(8):
        slots.ended(number, 2.0)
    assert slots.free("chat") == 6
    slots.seats.refused(0, 3.0, 2.0)
    slots.bound(2.0)
    assert slots.free("chat") == 0
    slots.bound(5.1)
    assert slots.free("chat") > 0


def test_the_server_is_shown_with_what_it_told_and_nothing_else():
    slots = slots_of()
    slots.bound(0.0)
    assert slots.upstream().model_dump(exclude_none=True) == {
        "in_flight": 0,
        "limit": 10,
        "turned_away_total": 0,
    }
    slots.gauges = Gauges(running=3.0, cache_usage=0.5)
    assert slots.upstream().running == 3.0
    assert slots.upstream().waiting is None


def test_a_fresh_server_gets_few_and_twice_as_many_once_it_told_of_them():
    slots = slots_of(Climb())
    slots.bound(0.0)
    assert slots.free("chat") == 4
    assert slots.holds == 10, "what others read is what it can hold"
    slots.seats.take_in(Stretch(4.0, 40.0), 64, 1.0)
    slots.bound(1.0)
    assert slots.free("chat") == 8
    slots.seats.take_in(Stretch(8.0, 80.0), 64, 2.0)
    slots.bound(2.0)
    assert slots.free("chat") == 10


def test_a_try_is_beyond_what_is_told_to_be_n():
    slots = slots_of(Climb(wanted=7, home=5, doubling=False))
    slots.bound(0.0)
    assert (slots.holds, slots.tries, slots.free("chat")) == (5, 2, 7)


def test_a_server_that_died_delivers_nothing_and_its_places_are_free():
    slots = slots_of()
    slots.bound(0.0)
    slots.began(1, "a", 0.0)
    slots.lost_all(1.0)
    assert slots.free("chat") == 10
