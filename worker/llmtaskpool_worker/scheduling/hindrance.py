"""How long a step would have taken, had no other process held the CPUs.

A step that waits for a CPU takes longer and uses no more CPU seconds. An engine that has its CPUs
to itself uses about ``best`` of them at once in steps of one size, the most that was seen there
lately; so its own time is::

    own = min(wall, cpu / best)

Where the CPU seconds are not told (0), the own time is the wall time. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FORGETTING = 0.9998
"""A best that is never reached again fades within an hour of steps, not within a busy minute."""
FIRST_SHARE = 0.8
"""Of its threads an engine is expected to use so many at once, until more is seen."""


@dataclass(slots=True)
class Unhindered:
    """The own time of one engine's steps. ``threads``: CPU threads that it computes with."""

    threads: int = 1
    _best: dict[int, float] = field(default_factory=dict)

    def own_seconds(self, batch: int, seconds: float, cpu_seconds: float) -> float:
        """Of a step over ``batch`` sequences that took ``seconds`` and used ``cpu_seconds``."""
        if cpu_seconds <= 0 or seconds <= 0:
            return seconds
        size = batch.bit_length()
        used = cpu_seconds / seconds
        best = max(self._best.get(size, FIRST_SHARE * self.threads) * FORGETTING, used)
        self._best[size] = best
        return min(seconds, cpu_seconds / best)
