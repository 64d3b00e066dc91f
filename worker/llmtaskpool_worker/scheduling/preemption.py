"""When a running generation makes way for a waiting one, and which.

A waiting task may have the place of a running one when its P = W / T is at least ``factor`` times
as high and it would wait longer than ``wait_seconds`` for a thread otherwise. The running task with
the lowest P makes way, of equals the one that has drawn least; it keeps what it has drawn and
computes only its cache again (preemption by recompute, as vLLM's). ``factor`` is above 1, so equals
never take each other's place, and a task makes way at most ``times`` times: then it runs to its
end. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Preemption:
    """The rule's numbers. ``factor`` of at most 1: nobody makes way."""

    factor: float = 10.0
    wait_seconds: float = 0.1
    times: int = 2


@dataclass(frozen=True, slots=True)
class Occupant:
    """A running generation: its P, how long it probably runs on, how often it made way.

    ``drawn``: tokens that it has so far, which are computed again.
    """

    id: str
    priority: float
    remaining_seconds: float
    made_way: int
    drawn: int = 0


def expected_tokens_left(expected: float, drawn: int, most: int) -> float:
    """Of an answer that was expected to have ``expected`` tokens and has ``drawn`` of ``most``.

    One that is longer than expected is taken to go half of the way that is left.
    """
    left = min(expected, most) - drawn
    return left if left > 0 else (most - drawn) / 2


def who_makes_way(
    waiting_priority: float, occupants: Sequence[Occupant], rule: Preemption
) -> str | None:
    """The id of the task that makes way for one of ``waiting_priority``; None: nobody does."""
    if not occupants or not rule.factor > 1:
        return None
    if min(one.remaining_seconds for one in occupants) <= rule.wait_seconds:
        return None
    able = [one for one in occupants if one.made_way < rule.times]
    lowest = min(able, key=lambda one: (one.priority, one.drawn), default=None)
    if lowest is None or waiting_priority < rule.factor * lowest.priority:
        return None
    return lowest.id
