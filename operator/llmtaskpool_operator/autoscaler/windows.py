"""What was wanted within a window: the most of it holds back a fall, the least of it a rise.

HPA's stabilization (``stabilizationWindowSeconds``), kept as a monotone queue: of the values
wanted within the window only those that can still become its extreme. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from math import floor, isfinite

Wanted = tuple[tuple[float, int], ...]
"""(time, value) pairs; times rise, and the first value is the window's extreme."""
Extreme = Callable[[int, int], int]
"""``max`` for a window that holds back falls, ``min`` for one that holds back rises."""

SLOTS = 60
"""A window has so many slots. Values of one slot count until its latest time: memory is bounded
by SLOTS + 1 pairs, and a change comes late by less than a slot, never early."""


def noted(
    known: Wanted, value: int, unknown: int, extreme: Extreme, seconds: float, gap: float,
    now: float,
) -> Wanted:  # fmt: skip
    """``known`` with the ``value`` wanted now, without what is as old as the window.

    After more than ``gap`` seconds of silence, and at first, nobody knows what was wanted:
    ``unknown`` (N as it is) then counts as wanted now, and the window begins there.
    """
    if not known or now - known[-1][0] > gap:
        value = extreme(value, unknown)
    kept = [(min(at, now), old) for at, old in known if now - at < seconds]
    while kept and extreme(kept[-1][1], value) == value:
        kept.pop()
    slot = max(seconds, 1e-6) / SLOTS
    if kept and floor(kept[-1][0] / slot) == floor(now / slot):
        kept[-1] = (now, kept[-1][1])
    else:
        kept.append((now, value))
    return tuple(kept)


def allowed(
    known: Wanted, n: int, wanted: int, extreme: Extreme, seconds: float, now: float
) -> tuple[int, float]:
    """How far from ``n`` towards ``wanted`` the window lets go now, and the wait to go farther.

    ``known`` has ``wanted`` noted. The wait is 0 when ``wanted`` is reached.
    """
    nearer: Extreme = min if extreme is max else max
    goal = nearer(n, extreme(wanted, known[0][1])) if known else wanted
    if goal == wanted:
        return goal, 0.0
    last = max(at for at, value in known if extreme(value, goal) == value)
    return goal, last + seconds - now


def as_wanted(raw: object, extreme: Extreme) -> Wanted:
    """The pairs from JSON; none of them when one can't be a pair, so that a window begins anew."""
    pairs: list[tuple[float, int]] = []
    for pair in raw if isinstance(raw, list | tuple) else ():
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(map(_finite, pair)):
            return ()
        at, value = float(pair[0]), int(pair[1])
        if pairs and (at <= pairs[-1][0] or extreme(value, pairs[-1][1]) == value):
            return ()
        pairs.append((at, value))
    return tuple(pairs) if len(pairs) <= SLOTS + 1 else ()


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
