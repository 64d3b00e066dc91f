"""How long to wait after failures in a row. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """``first`` s after the first failure, doubled for each further one, at most ``most``."""

    first: float = 0.5
    most: float = 30.0

    def after(self, failures: int) -> float:
        """The wait after so many failures in a row (1 or more)."""
        return float(min(self.most, self.first * 2.0 ** min(failures - 1, 30)))
