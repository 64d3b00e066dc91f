"""Ids that sort by the time of their making: UUIDs of version 7 (RFC 9562), or shorter ones."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

_RANDOM_BITS = 74
_LOW_BITS = 62

_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PAIRS = [a + b for a in _LETTERS for b in _LETTERS]
_SHORT_PAIRS = 8
_SHORT_CHANCE_BITS = 54
"""62^16 is 2^95.2: 41 bits of milliseconds last until 2094, and of those who make ids in the same
millisecond two make the same one with a chance of 6e-17."""
_SHORT_SINCE_MS = 1_735_689_600_000
"""2025-01-01, UTC."""


def ids(
    wall_ns: Callable[[], int] = time.time_ns, random: Callable[[int], bytes] = os.urandom
) -> Callable[[], str]:
    """A maker of ids as 32 hex digits; those that it makes rise, whatever the clock does."""
    last = 0

    def new_id() -> str:
        nonlocal last
        milliseconds = wall_ns() // 1_000_000 & (1 << 48) - 1
        chance = int.from_bytes(random(10), "big") & (1 << _RANDOM_BITS) - 1
        value = (
            milliseconds << 80
            | 7 << 76
            | chance >> _LOW_BITS << 64
            | 2 << _LOW_BITS
            | chance & (1 << _LOW_BITS) - 1
        )
        last = value if value > last else last + 1
        return f"{last:032x}"

    return new_id


def short_ids(
    wall_ns: Callable[[], int] = time.time_ns, random: Callable[[int], bytes] = os.urandom
) -> Callable[[], str]:
    """The same as 16 letters and digits: where each task's id is kept four times over."""
    last = 0

    def new_id() -> str:
        nonlocal last
        milliseconds = max(0, wall_ns() // 1_000_000 - _SHORT_SINCE_MS) & (1 << 41) - 1
        chance = int.from_bytes(random(7), "big") & (1 << _SHORT_CHANCE_BITS) - 1
        value = milliseconds << _SHORT_CHANCE_BITS | chance
        last = value if value > last else last + 1
        pairs, rest = [], last
        for _ in range(_SHORT_PAIRS):
            rest, pair = divmod(rest, len(_PAIRS))
            pairs.append(_PAIRS[pair])
        return "".join(reversed(pairs))

    return new_id
