"""Every way in which two writers with stale reads can act on a pool of at most 5 pods.

Two operators (a leader and one that doesn't know yet that it isn't) decide about the same pool.
At each tick each of them sleeps, acts on what is true, or acts on what was true a tick before.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import pytest
from llmtaskpool_operator.autoscaler.law import Direction, Memory, Observed, Policy, decide

HOLD = 2
NOW = 1000.0
POLICY = Policy(minimum=1, maximum=5, down=Direction(float(HOLD)), trim_gain=0.0)
STALE = {"stale high": 4.2, "stale low": 0.3}
"""What a stale read may show of the demand."""
DEMANDS = (0.3, 1.2, 2.0, 3.4, 4.4, 9.0)


class Carried(NamedTuple):
    """What a writer remembers: what was wanted, as pairs of its age in ticks and its value."""

    most: tuple[tuple[int, int], ...] = ()


class State(NamedTuple):
    """The pool, what a stale read of it shows, and the writers' memories."""

    replicas: int
    before: int
    writers: tuple[Carried, Carried]


def acted(carried: Carried, pool: int, seen: int, demand: float) -> tuple[int, Carried]:
    """One writer's turn; it writes only what differs from what it saw, as the plan does."""
    most = tuple((NOW - age, value) for age, value in carried.most)
    decision, after = decide(POLICY, Observed(current=seen, running=demand), Memory(most=most), NOW)
    kept = Carried(tuple((int(NOW - at), value) for at, value in after.most))
    return (pool if decision.desired == seen else decision.desired), kept


def older(writer: Carried) -> Carried:
    """A tick later. What is older than the window only says that the window is known."""
    pairs = [(age + 1, value) for age, value in writer.most]
    young = [pair for pair in pairs if pair[0] < HOLD]
    return Carried(tuple(young or [(HOLD, value) for _, value in pairs[-1:]]))


def following(state: State, moves: tuple[str, str], order: tuple[int, int], demand: float) -> State:
    """The state after a tick in which the writers made these moves in this order."""
    pool, writers = state.replicas, [older(writer) for writer in state.writers]
    for writer in order:
        move = moves[writer]
        if move == "sleeps":
            continue
        fresh = move == "fresh"
        seen, load = (pool, demand) if fresh else (state.before, STALE[move])
        pool, writers[writer] = acted(writers[writer], pool, seen, load)
    return State(pool, state.replicas, (writers[0], writers[1]))


def reachable(demand: float) -> set[State]:
    """All states that any behaviour of the writers can lead to."""
    found = {State(n, n, (Carried(), Carried())) for n in range(1, 6)}
    new = list(found)
    while new:
        state = new.pop()
        for moves in product(("sleeps", "fresh", *STALE), repeat=2):
            for order in ((0, 1), (1, 0)):
                after = following(state, moves, order, demand)
                if after not in found:
                    found.add(after)
                    new.append(after)
    return found


@pytest.mark.parametrize("demand", DEMANDS)
def test_two_writers_end_at_the_same_size_whatever_they_did_before(demand: float) -> None:
    settled = decide(POLICY, Observed(current=5, running=demand), Memory(), 0.0)[0].wanted
    states = reachable(demand)
    assert len(states) > 50
    assert all(1 <= state.replicas <= 5 for state in states)
    # From any of them, once reads are true again, every schedule in which somebody acts settles
    # within the hold and a tick, and stays: so there is no livelock.
    schedules = [
        (moves, order)
        for moves in (("fresh", "fresh"), ("fresh", "sleeps"), ("sleeps", "fresh"))
        for order in ((0, 1), (1, 0))
    ]
    front = states
    for _ in range(2 * HOLD + 2):
        front = {following(state, *schedule, demand) for state in front for schedule in schedules}
    assert {state.replicas for state in front} == {settled}
    later = {following(state, *schedule, demand) for state in front for schedule in schedules}
    assert {state.replicas for state in later} == {settled}


def test_a_stale_read_can_undo_a_step_but_only_while_it_is_stale() -> None:
    # The exploration has teeth: stale reads do move the pool away from what is right.
    states = reachable(0.3)
    moved = {
        following(state, ("stale high", "sleeps"), (0, 1), 0.3).replicas
        for state in states
        if state.replicas == 1
    }
    assert max(moved) > 1
