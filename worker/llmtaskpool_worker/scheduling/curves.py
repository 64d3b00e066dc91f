"""Seconds as a function of size, learned on line: the step-time and the prefill curve.

Pure. A curve starts from a straight-line prior, ``base + slope x size``, and bends to what is
measured. It is kept non-decreasing by the pool-adjacent-violators algorithm (Ayer et al., 1955),
because a bigger batch never takes less time and noise must not say so.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

FIRST_SAMPLES = 5
"""The median of so many samples stands before the running mean takes over."""

GRID: tuple[int, ...] = tuple(
    sorted({*range(1, 9), *(2**k for k in range(4, 15)), *(3 * 2**k for k in range(2, 13))})
)
"""Sizes at which a curve keeps an estimate: 1 to 8, then two points per octave."""


@dataclass(slots=True)
class RobustMean:
    """A running mean that one odd sample can't move far.

    The first five samples give their median; each later one x moves the mean by
    ``rate x (clip(x, mean / 4, 4 mean) - mean)``.
    """

    rate: float = 0.05
    count: int = 0
    value: float = 0.0
    _first: list[float] = field(default_factory=list)

    def observe(self, x: float) -> None:
        """Take in one sample, > 0."""
        self.count += 1
        if self.count <= FIRST_SAMPLES:
            self._first.append(x)
            self.value = median(self._first)
            return
        clipped = min(max(x, self.value / 4), 4 * self.value)
        self.value += max(self.rate, 1 / self.count) * (clipped - self.value)


class Curve:
    """Seconds by size (> 0), non-decreasing.

    Between grid points it is linear; beyond what is measured it follows the prior's shape,
    scaled to the nearest measured point.
    """

    def __init__(self, base_seconds: float, slope_seconds: float) -> None:
        self._base, self._slope = base_seconds, slope_seconds
        self._points: dict[int, RobustMean] = {}
        self._table: list[float] | None = None

    def prior(self, size: float) -> float:
        """Seconds before anything is measured."""
        return self._base + self._slope * size

    def observe(self, size: int, seconds: float) -> None:
        """Take in one measurement; sizes or seconds that can't be are passed over."""
        if size < 1 or not 0 < seconds < 3600:
            return
        at = _nearest(size)
        point = self._points.get(at)
        if point is None:
            point = self._points[at] = RobustMean()
        if at != size:
            # Carried along the prior to the grid point, so that its neighbours don't blur it.
            seconds *= self.prior(at) / self.prior(size)
        point.observe(seconds)
        self._table = None

    def seconds(self, size: float) -> float:
        """Seconds at ``size``; beyond the grid proportional to the size."""
        table = self._table = self._table or self._fit()
        if size >= GRID[-1]:
            return table[-1] * size / GRID[-1]
        right = bisect_left(GRID, size)
        if right == 0:
            return table[0]
        low, high = GRID[right - 1], GRID[right]
        share = (size - low) / (high - low)
        return table[right - 1] * (1 - share) + table[right] * share

    def measured(self, samples: int = 1) -> dict[int, float]:
        """The points that were measured so often at least, size to seconds."""
        points = sorted(self._points.items())
        return {size: point.value for size, point in points if point.count >= samples}

    def load(self, points: Mapping[int, float]) -> None:
        """Start from measured points (a calibration profile): each weighs as five samples."""
        for size, seconds in points.items():
            for _ in range(FIRST_SAMPLES):
                self.observe(size, seconds)

    def _fit(self) -> list[float]:
        if not self._points:
            return [self.prior(size) for size in GRID]
        sizes = sorted(self._points)
        values = _non_decreasing([(self._points[s].value, self._points[s].count) for s in sizes])
        ratios = [value / self.prior(size) for size, value in zip(sizes, values, strict=True)]
        table = [self.prior(size) * _between(sizes, ratios, size) for size in GRID]
        return _running_max(table)


def _nearest(size: int) -> int:
    right = min(bisect_left(GRID, size), len(GRID) - 1)
    if right and size - GRID[right - 1] < GRID[right] - size:
        return GRID[right - 1]
    return GRID[right]


def _between(sizes: list[int], values: list[float], size: int) -> float:
    """Linear interpolation of ``values`` at ``sizes``, constant beyond the ends."""
    right = bisect_left(sizes, size)
    if right == 0:
        return values[0]
    if right == len(sizes):
        return values[-1]
    share = (size - sizes[right - 1]) / (sizes[right] - sizes[right - 1])
    return values[right - 1] * (1 - share) + values[right] * share


def _non_decreasing(points: list[tuple[float, int]]) -> list[float]:
    """The closest non-decreasing values by weighted least squares (pool adjacent violators)."""
    blocks: list[tuple[float, int, int]] = []
    for value, weight in points:
        mean, mass, length = value, weight, 1
        while blocks and blocks[-1][0] > mean:
            before, before_mass, before_length = blocks.pop()
            mean = (before * before_mass + mean * mass) / (before_mass + mass)
            mass, length = mass + before_mass, length + before_length
        blocks.append((mean, mass, length))
    return [mean for mean, _, length in blocks for _ in range(length)]


def _running_max(values: list[float]) -> list[float]:
    highest = 0.0
    return [highest := max(highest, value) for value in values]
