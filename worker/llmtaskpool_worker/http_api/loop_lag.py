"""How long the event loop lets others wait, measured by asking it for a turn again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

TICK_SECONDS = 0.01
"""A stall that falls between two ticks is measured short by at most so much."""


async def watch_loop(observe: Callable[[float], None], tick_seconds: float = TICK_SECONDS) -> None:
    """Tell ``observe`` by how many seconds each tick was late; runs until it is cancelled.

    Several seconds of standing still are one tick, and one observation.
    """
    while True:
        due = monotonic() + tick_seconds
        await asyncio.sleep(tick_seconds)
        observe(max(0.0, monotonic() - due))
