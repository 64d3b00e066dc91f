"""How many requests may be in flight at a server that batches them itself.

The server's batch is not ours to see, so it is learned from our own streams. A step over N of them
takes ``step(N) = a + b N``, as told by the gaps between their tokens. One more stream brings
``dR/dN`` of the rate ``R(N) = N / step(N)``; over what a stream brings on average, ``R / N``, that
is ``a / (a + b N)``. The knee is where it falls to 5 %::

    N = (1 / 0.05 - 1) a / b = 19 a / b

Beyond it a request more makes all others slower by about as much as it gets. A fresh server's
places are used step by step, so that batches of several sizes are measured (ramp.py). A server that
turned a request away (429, 503), put one aside (a preemption), or whose cache is nearly full has
more than it can take: N falls by a fifth, and is won back by one every 10 seconds (engines.md,
section 4: 1,065 preemptions cost 5 % of the tokens and doubled the slow ones' gaps). Pure; seconds
are of the caller's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, floor, inf

from llmtaskpool_worker.scheduling.reserve import KEPT_SECONDS, beyond, kept

LEAST_MARGIN = 0.05
KEEP_OF_A_CUT = 0.8
BACK_SECONDS = 10.0
CUT_PAUSE_SECONDS = 5.0
"""What was in flight at a cut may be turned away too: that is the same news."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 5.0
"""A server that turns away although nothing is in flight is asked again after so long."""
SETTLE_SECONDS = 5.0
SPREAD = 2.0
"""A line is drawn through measured batches that differ by this factor at least."""
POINTS, MISFIT = 3, 0.1
"""A line is believed from so many points on, when they lie within this share of it (root mean
square): too few requests at a server cost more than too many."""
CACHE_FULL = 0.9
FLOOR = 4
"""The knee is never told to be less: what is measured of tiny batches alone can't mend itself."""


def line(points: Mapping[int, float]) -> tuple[float, float] | None:
    """``a`` and ``b`` of ``step(N) = a + b N``, by least squares of the measured steps' shares.

    Each point is weighed by 1 / seconds^2, so that a large batch's error counts as a small one's.
    None: the batches are too alike to tell.
    """
    sizes = [size for size, seconds in points.items() if size >= 1 and seconds > 0]
    if len(sizes) < 2 or max(sizes) < SPREAD * min(sizes):
        return None
    weights = {size: points[size] ** -2 for size in sizes}
    total = sum(weights.values())
    middle = sum(weights[n] * n for n in sizes) / total
    mean = sum(weights[n] * points[n] for n in sizes) / total
    spread = sum(weights[n] * (n - middle) ** 2 for n in sizes)
    slope = sum(weights[n] * (n - middle) * (points[n] - mean) for n in sizes) / spread
    slope = max(slope, 0.0)
    base = mean - slope * middle
    if base <= 0:  # steeper than in proportion: no batch is free of what one costs alone
        return 0.0, mean / middle
    return base, slope


def knee(points: Mapping[int, float]) -> float:
    """The largest N whose last stream still brings 5 % of what one brings on average; at least 1.

    inf as long as that can't be told: with few points, with none on a line, or with a line that
    does not rise.
    """
    found = line(points)
    if found is None or found[1] <= 0 or len(points) < POINTS:
        return inf
    base, slope = found
    misses = [(base + slope * size) / seconds - 1 for size, seconds in points.items()]
    if sum(one * one for one in misses) / len(misses) > MISFIT**2:
        return inf  # no line: what else ran on the machine, and not the batch, made the difference
    return max(1.0, (1 / LEAST_MARGIN - 1) * base / slope)


@dataclass(slots=True)
class Seats:
    """The bound of one server: ``most`` is what it or its owner says that it holds."""

    most: int
    turned_away: int = 0
    """Requests that it did not take, since the start."""
    _urgent_at: float = -inf
    _knee: float | None = None
    _knee_at: float = -inf
    _cap: int | None = None
    _cap_at: float = -inf
    _cut_at: float = -inf
    _paused_until: float = -inf
    _in_a_row: int = 0

    def limit(self, points: Mapping[int, float], now: float) -> int:
        """N now, at least 1. ``points``: measured seconds of a step by streams."""
        places = most = self._places(now)
        bound = self._settled(min(knee(points), max(1, self.most)), now)
        if bound < most:
            most = min(most, max(FLOOR, round(bound)))
        if self.keeps(now):
            most = min(most, max(1, places - kept(places)))
        return most

    def with_urgent(self, limit: int, now: float) -> int:
        """The most in flight when urgent ones are among them; ``limit`` is N."""
        return max(limit, min(limit + beyond(limit), self._places(now)))

    def keeps(self, now: float) -> bool:
        """Whether places are kept for urgent ones: one came not long ago."""
        return now - self._urgent_at < KEPT_SECONDS

    def urgent_came(self, now: float) -> None:
        """An urgent request found none of the N places free."""
        self._urgent_at = now

    def _settled(self, bound: float, now: float) -> float:
        """The knee's geometric mean over about SETTLE_SECONDS: single samples don't move N."""
        if self._knee is None or now <= self._knee_at:
            self._knee = bound if self._knee is None else self._knee
        else:
            share = exp(-(now - self._knee_at) / SETTLE_SECONDS)
            self._knee = self._knee**share * bound ** (1 - share)
        self._knee_at = max(now, self._knee_at)
        return self._knee

    def _places(self, now: float) -> int:
        """What the server has, or can take now that it had too much."""
        most = max(1, self.most)
        if self._cap is not None:
            back = floor((now - self._cap_at) / BACK_SECONDS)
            if back > 0:
                self._cap += back
                self._cap_at += back * BACK_SECONDS
            if self._cap >= most:
                self._cap = None
            else:
                most = self._cap
        return most

    def paused(self, now: float) -> bool:
        """Whether nothing is to be sent just now."""
        return now < self._paused_until

    def cut(self, in_flight: int, now: float) -> None:
        """The server has more than it can take: N falls by a fifth of what is in flight."""
        if now - self._cut_at < CUT_PAUSE_SECONDS:
            return
        self._cut_at = self._cap_at = now
        kept = floor(KEEP_OF_A_CUT * min(in_flight, self._cap or in_flight))
        self._cap = max(1, kept)

    def hold(self, most: int, now: float) -> None:
        """No more than these are to be in flight: the server lets others wait."""
        if self._cap is None or most < self._cap:
            self._cap, self._cap_at = max(1, most), now

    def refused(self, in_flight: int, retry_after_seconds: float | None, now: float) -> None:
        """A request was turned away; ``in_flight`` counts it no longer."""
        self.turned_away += 1
        self.cut(in_flight + 1, now)
        if in_flight and retry_after_seconds is None:
            return  # those who run make room when they end
        pause = min(FIRST_PAUSE_SECONDS * 2.0 ** min(self._in_a_row, 8), LONGEST_PAUSE_SECONDS)
        if retry_after_seconds is not None:
            pause = min(max(pause, retry_after_seconds), 2 * LONGEST_PAUSE_SECONDS)
        self._in_a_row += 1
        self._paused_until = max(self._paused_until, now + pause)

    def took(self) -> None:
        """The server took a request."""
        self._in_a_row = 0
