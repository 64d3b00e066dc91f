"""Who has to go when the front is full."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from llmtaskpool_operator.local.front_places import FRESH_SECONDS, Places

now = itertools.count(0.0, FRESH_SECONDS)


def arrive(places: Places, address: str = "stranger"):
    place, victim = places.arrive(address, next(now))
    assert place is not None
    return place, victim


def answered(places: Places, address: str = "friend", *, good: bool = True):
    place, _ = arrive(places, address)
    places.begin(place)
    places.end(place, good=good)
    return place


def test_who_rests_longest_without_a_good_answer_goes_first():
    places = Places(most=3, kept=0)
    friend = answered(places)
    first, _ = arrive(places)
    second, _ = arrive(places)
    assert arrive(places)[1] is first
    assert arrive(places)[1] is second
    assert len(places) == 3
    assert friend.known


def test_who_waits_for_an_answer_never_goes():
    places = Places(most=2, kept=0)
    busy = [arrive(places)[0] for _ in range(2)]
    for place in busy:
        places.begin(place)
    assert places.arrive("stranger", next(now)) == (None, None)
    places.end(busy[0], good=False)
    assert arrive(places)[1] is busy[0]


def test_a_share_is_kept_for_who_had_a_good_answer():
    places = Places(most=8, kept=2)
    friends = [answered(places) for _ in range(2)]
    for _ in range(4):
        places.begin(arrive(places)[0])
    assert places.arrive("stranger", next(now)) == (None, None)  # strangers have filled their part
    assert arrive(places, "friend")[1] is None
    assert arrive(places, "friend")[1] is None
    assert len(places) == 8
    places.begin(friends[0])
    assert friends[1].known


def test_who_has_just_come_is_let_speak():
    places = Places(most=2, kept=0)
    first, _ = places.arrive("stranger", 10.0)
    places.arrive("stranger", 10.5)
    assert places.arrive("stranger", 10.9) == (None, None)
    assert places.arrive("stranger", 11.0)[1] is first


def test_beyond_their_share_the_known_go_too():
    places = Places(most=4, kept=1)
    friends = [answered(places) for _ in range(3)]
    assert arrive(places)[1] is friends[0]


def test_a_refused_request_makes_nobody_known():
    places = Places(most=4, kept=1)
    assert not answered(places, good=False).known
    assert arrive(places, "friend")[0] is not None
    for _ in range(3):
        places.begin(arrive(places)[0])
    assert places.arrive("friend", next(now)) == (None, None)


@given(st.lists(st.tuples(st.sampled_from("abcle"), st.integers(0, 9)), max_size=200))
def test_there_are_never_more_than_allowed_and_the_busy_stay(steps):
    places, mine = Places(most=5, kept=2), []
    for step, number in steps:
        if step in "abc":
            place, victim = places.arrive(step, next(now))
            assert victim is None or not victim.busy
            mine = [one for one in mine if one is not victim] + ([place] if place else [])
        elif mine:
            place = mine[number % len(mine)]
            if step == "l":
                places.leave(place)
                mine.remove(place)
            elif place.busy:
                places.end(place, good=number % 2 == 0)
            else:
                places.begin(place)
        assert len(places) == len(mine) <= 5
