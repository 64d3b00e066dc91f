"""Which N a server is given, learned by trying: first few, then more, then what was best.

A fresh server gets START requests and twice as many until that brought too little twice. From then
on the law of all that was measured (knee.py) says where N belongs, and N goes there step by step.
Now and then a neighbour is tried for one stretch, ever less often while nothing changes: what is
never tried is not known, and what was known grows old.

What a server delivers changes with what it is asked and with what else its machine does, too. So a
stretch at the same number as the one before tells of the level, which is that of all numbers; one
at another number tells of the difference between the two. Pure; seconds are of the caller's clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp, exp2, inf, log

from llmtaskpool_worker.scheduling.delivery import Stretch
from llmtaskpool_worker.scheduling.knee import LEAST_MARGIN, Point, fitted

START = 4
"""And the least: too few requests at a server cost more than too many."""
FALLS = -0.25
"""Twice as many that bring so much less are the last. Those that bring no more are not: a server
can rest and go on (llama.cpp's has 45 tokens a second with 4, 51 with 8, 53 with 11, 67 with 16).
"""
TRIED_ANYWAY = 16
"""Up to so many are tried whatever fewer brought: it costs seconds, and a server can rest there."""
SURE = 2
"""Stretches that say so."""
REACHED = 0.8
"""With this share of what was tried in flight it is tried."""
APART = 0.75
"""Numbers are compared that differ by this factor at least."""
STEP = 1.4
"""N goes, and tries, so far at once."""
NEAR = 1.15
"""N stays where the law is so near."""
LEVEL_AFTER = 4
"""After a move what differs is the number's; from so many stretches on half of it the level's."""
LEVEL_RATE = 0.5
ODD = 0.7
"""No stretch moves what is known by more (of a logarithm)."""
UNSETTLED = 0.4
"""A stretch like the one before that is so far off tells of the level alone, and that nothing is
to be decided before it has settled."""
HALF_LIFE_SECONDS = 180.0
MOST_COUNTED = 6
"""So many stretches count in a mean."""
CLEAR_GAIN = 0.15
"""More that bring so much (a power of N) are worth it whatever the law says, which is smooth where
a server is not; and fewer are not tried as long as that is fresh: each try costs what they lack.
"""
CLEAR_FALL = -0.15
"""And more that bring so much less are left at once."""
FRESH = 0.25
"""Half-lives are two."""
REST, LONGEST_REST = 1, 64
"""Stretches between tries."""
TRIED = 2
"""Stretches after which a try is over, whatever was in flight."""
NUMBERS = 32
"""So many are kept at most."""


def most_tried(n: int) -> int:
    """So many more than N are tried at most."""
    return max(1, round(n * STEP) - n)


@dataclass(slots=True)
class _Known:
    rate: float
    """Its natural logarithm."""
    at: float
    count: float = 1.0


@dataclass(slots=True)
class Climb:
    """``wanted`` may be in flight now; ``home`` is what is best as far as it is known."""

    wanted: int = START
    home: int = START
    doubling: bool = True
    """Whether it is not known yet, and more is tried than ever before."""
    _known: dict[int, _Known] = field(default_factory=dict)
    _rested: bool = False
    """Whether the last doubling brought too little."""
    _last: int = 0
    _again: int = 0
    """Stretches at that number in a row, but the first."""
    _stayed: int = 0
    _rest: int = REST
    _up_next: bool = False

    def take_in(self, stretch: Stretch, most: int, threads: int, now: float) -> None:
        """A stretch was measured. ``most``: what the server has; ``threads``: what may be sent."""
        size = round(stretch.in_flight)
        if size < 1 or not stretch.rate > 0:
            return
        moved = self._learn(size, log(stretch.rate), now)
        if abs(moved) >= UNSETTLED and size == self.home and not self.doubling:
            self._rest, self._stayed = REST, 0  # something has changed: what was known may be old
        elif self.doubling:
            if size >= REACHED * min(self.wanted, most, threads):
                self._double(size, most, threads, now)
        else:
            self._look(size, most, now)

    def _learn(self, size: int, rate: float, now: float) -> float:
        """How far it was from what was known."""
        self._again = self._again + 1 if size == self._last else 0
        self._last, known = size, self._known.get(size)
        if known is None:
            self._known[size] = _Known(rate, now)
            if len(self._known) > NUMBERS:
                del self._known[min(self._known, key=lambda one: self._known[one].at)]
            return 0.0
        known.count = min(known.count * self._fresh(known, now) + 1, MOST_COUNTED)
        known.at = now
        moved = max(-ODD, min(rate - known.rate, ODD))
        of_level = self._again / (self._again + LEVEL_AFTER)
        level = LEVEL_RATE * of_level * moved
        if abs(moved) >= UNSETTLED and self._again:
            of_level, level = 1.0, moved
        for one in self._known.values():
            one.rate += level
        known.rate += (1 - of_level) * moved / known.count
        return moved

    def _double(self, size: int, most: int, threads: int, now: float) -> None:
        less = max((one for one in self._known if one <= APART * size), default=None)
        gain = inf
        if less is not None:
            gain = (self._known[size].rate - self._known[less].rate) / log(size / less)
        if size < min(most, threads, TRIED_ANYWAY):
            self.wanted = self.home = 2 * size
        elif gain < LEAST_MARGIN and (self._rested or gain < FALLS or size >= most):
            if self._known[size].count > SURE - 0.5:
                self._come_home(size, most, now)
        elif size >= most:
            self._come_home(size, most, now)
        else:
            self._rested = gain < LEAST_MARGIN
            self.wanted = self.home = 2 * size

    def _come_home(self, size: int, most: int, now: float) -> None:
        """Try no more, and go from there a step at a time: each was measured once or twice."""
        self.doubling, self.home = False, max(1, min(size, most))
        self._go(most, now)
        self.wanted = self.home

    def _look(self, size: int, most: int, now: float) -> None:
        before, tried = self.home, self.wanted != self.home
        self._go(most, now)
        if self.home != before:
            self._rest, self._stayed = REST, 0
            self.wanted = self.home
            return
        self._stayed += 1
        if tried:  # the first stretch may be of the time before, and a lane may be too small
            if self._stayed >= TRIED or abs(size - self.wanted) < abs(size - self.home):
                self.wanted, self._stayed = self.home, 0
        elif self._stayed >= self._rest:
            self._try(most, now)

    def _try(self, most: int, now: float) -> None:
        """A neighbour, for one stretch; up and down in turn."""
        self._stayed, self._rest = 0, min(2 * self._rest, LONGEST_REST)
        up = min(most, self.home + most_tried(self.home))
        down = min(self.home, max(START, min(self.home - 1, round(self.home / STEP))))
        gain = self._gain(now)
        if gain is not None and gain >= CLEAR_GAIN:
            down = self.home
        ways = [up, down] if self._up_next else [down, up]
        self._up_next = not self._up_next
        self.wanted = next((one for one in ways if one != self.home), self.home)

    def _go(self, most: int, now: float) -> None:
        """Home, one step towards the knee."""
        bound = max(START, min(self._knee(now), most))
        if bound > NEAR * self.home or bound >= most:
            self.home = round(min(bound, max(self.home + 1, self.home * STEP)))
        elif bound < self.home / NEAR and self._fewer_do(now):
            self.home = round(max(bound, self.home / STEP))
        self.home = max(1, min(self.home, most))

    def _fewer_do(self, now: float) -> bool:
        """Whether it is sure enough that fewer bring not clearly less: a level that drifts while
        each number is measured once looks like a knee, and too few cost more than too many."""
        once, twice = self._gain(now), self._gain(now, SURE - 0.5)
        return (once is not None and once < CLEAR_FALL) or (
            twice is not None and twice < CLEAR_GAIN
        )

    def _gain(self, now: float, sure: float = 0.0) -> float | None:
        """The power of N by which home brings more than the most that are clearly fewer.

        None: that was not measured lately, or not by stretches that count for ``sure``.
        """
        counts = {size: one.count * self._fresh(one, now) for size, one in self._known.items()}
        sizes = [size for size, count in counts.items() if count >= max(sure, FRESH)]
        here = min(sizes, key=lambda size: abs(log(size / self.home)), default=None)
        fewer = max((size for size in sizes if size <= APART * self.home), default=None)
        if here is None or fewer is None or max(here, self.home) > NEAR * min(here, self.home):
            return None
        return (self._known[here].rate - self._known[fewer].rate) / log(here / fewer)

    def _knee(self, now: float) -> float:
        law = fitted([self._point(size, known, now) for size, known in self._known.items()])
        return self.home if law is None else law.knee()

    def _point(self, size: int, known: _Known, now: float) -> Point:
        return Point(size, size * exp(-known.rate), known.count * self._fresh(known, now))

    @staticmethod
    def _fresh(known: _Known, now: float) -> float:
        return exp2(-(now - known.at) / HALF_LIFE_SECONDS)
