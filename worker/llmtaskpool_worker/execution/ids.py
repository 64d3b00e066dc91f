"""Ids of tasks: UUIDs of version 7 (RFC 9562), which sort by the time of their making."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

_RANDOM_BITS = 74
_LOW_BITS = 62


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
