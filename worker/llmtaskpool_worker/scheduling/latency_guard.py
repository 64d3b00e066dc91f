"""How many threads an engine may have before each answer becomes too slow.

The law of the study (``control.md``, line 5), once a second: the knee of the step-time curve
bounds N; when the measured time per output token exceeds 0.9 of its objective, the cap falls to
0.85 of what ran; while a full engine stays below 0.72 of it, the cap rises by one. Times are the
engine's own (hindrance.py): slowness that other processes cause is no reason to shrink. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

PERIOD_SECONDS = 1.0
COOLDOWN_SECONDS = 5.0
"""After a cut the shorter queue of steps must show before another."""
TOO_SLOW, ROOM = 0.9, 0.72
CUT = 0.85
FLOOR = 4
SMOOTHING = 0.1
"""Weight of the newest step in the running time per token. A slower guard (0.02), which one long
prompt can't move, serves long answers a little better and short ones worse (docs/simulate.md)."""


@dataclass(slots=True)
class LatencyGuard:
    """The cap of one engine. ``slo_seconds``: the objective for the time per output token."""

    slo_seconds: float
    tpot_seconds: float | None = None
    cap: int | None = None
    """What a cut left; None: the knee alone bounds."""
    _next_at: float = -inf
    _cool_at: float = -inf

    def observe(self, step_seconds: float) -> None:
        """Take in a step that decoded: every running answer waited that long for its token."""
        before = self.tpot_seconds
        self.tpot_seconds = (
            step_seconds if before is None else before + SMOOTHING * (step_seconds - before)
        )

    def adjust(self, active: int, knee: int, now: float) -> int:
        """The cap now, from 1 to ``knee``; moves at most once a second."""
        cap = knee if self.cap is None else min(self.cap, knee)
        if now >= self._next_at and self.tpot_seconds is not None:
            self._next_at = now + PERIOD_SECONDS
            moved = self._moved(cap, active, knee, now)
            # What the knee alone bounds rises with it at once; a cut is won back step by step.
            if moved != cap:
                self.cap = None if moved >= knee else moved
            cap = moved
        return cap

    def _moved(self, cap: int, active: int, knee: int, now: float) -> int:
        tpot = self.tpot_seconds or 0.0
        if tpot > TOO_SLOW * self.slo_seconds and active > cap / 2 and now >= self._cool_at:
            self._cool_at = now + COOLDOWN_SECONDS
            return min(cap, max(FLOOR, int(CUT * min(cap, active))))
        if tpot < ROOM * self.slo_seconds and active >= 0.9 * cap:
            return min(knee, cap + 1)
        return cap
