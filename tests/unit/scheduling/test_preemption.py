"""Who makes way for whom."""

from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st
from llmtaskpool_worker.scheduling.preemption import (
    Occupant,
    Preemption,
    expected_tokens_left,
    who_makes_way,
)

RULE = Preemption(factor=10.0, wait_seconds=2.0, times=2)


def test_the_lowest_makes_way_for_one_that_is_ten_times_as_urgent() -> None:
    running = [Occupant("a", 1.0, 20.0, 0), Occupant("b", 0.5, 20.0, 0)]
    assert who_makes_way(5.0, running, RULE) == "b"
    assert who_makes_way(4.9, running, RULE) is None


def test_nobody_makes_way_when_a_thread_is_free_soon() -> None:
    running = [Occupant("a", 1.0, 20.0, 0), Occupant("b", 0.5, 1.9, 0)]
    assert who_makes_way(1000.0, running, RULE) is None


def test_who_made_way_twice_runs_to_its_end() -> None:
    running = [Occupant("a", 1.0, 20.0, 1), Occupant("b", 0.5, 20.0, 2)]
    assert who_makes_way(10.0, running, RULE) == "a"
    assert who_makes_way(10.0, running[1:], RULE) is None


def test_of_equals_the_one_that_has_drawn_least_makes_way() -> None:
    running = [Occupant("a", 1.0, 20.0, 0, drawn=300), Occupant("b", 1.0, 20.0, 0, drawn=3)]
    assert who_makes_way(10.0, running, RULE) == "b"


occupants = st.lists(
    st.builds(
        Occupant,
        st.uuids().map(str),
        st.floats(1e-6, 1e6),
        st.floats(0, 1e6),
        st.integers(0, 3),
    )
)


@given(st.floats(1e-6, 1e6), occupants, st.sampled_from([0.0, 1.0, 1.5, 10.0, inf]))
def test_equals_never_take_each_others_place(
    urgent: float, running: list[Occupant], factor: float
) -> None:
    rule = Preemption(factor=factor)
    asked = who_makes_way(urgent, running, rule)
    if asked is not None:
        one = next(one for one in running if one.id == asked)
        assert factor > 1
        assert urgent > one.priority
        assert urgent >= factor * one.priority
        assert one.made_way < rule.times


def test_an_answer_longer_than_expected_is_taken_to_go_half_of_the_way_left() -> None:
    assert expected_tokens_left(100, 40, 700) == 60
    assert expected_tokens_left(100, 300, 700) == 200
    assert expected_tokens_left(1000, 40, 100) == 60
