"""How long to wait before the next try."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Doubles from ``first`` to ``longest`` seconds."""

    first: float
    longest: float
    times: int = 0

    def next(self) -> float:
        """Seconds to wait now."""
        self.times += 1
        return min(self.first * 2.0 ** min(self.times - 1, 30), self.longest)

    def begin_anew(self) -> None:
        """All was well for a while."""
        self.times = 0
