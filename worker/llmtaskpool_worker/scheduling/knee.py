"""How many requests in flight a server is best with, from what it delivered with others.

The time that one round over N requests takes, ``N / rate(N)``, is modelled as a universal
scalability law (Gunther, 1993)::

    N / rate(N) = a + b N + c N^2,      a, b, c >= 0

``a`` is what a step costs whoever is in it, ``b`` what each request adds, ``c`` what they cost each
other (caches, memory, a CPU's few cores): with it more requests bring less in all. One more stream
brings ``dR/dN`` of the rate; over what a stream brings on average, ``R / N``, that is
``(a - c N^2) / (a + b N + c N^2)``. The knee is where it falls to LEAST_MARGIN::

    (1 - m) a - m b N - (1 + m) c N^2 = 0

With ``c = 0`` it is ``19 a / b``. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import NamedTuple

LEAST_MARGIN = 0.05
BEND = 0.03**2
"""A law with ``c`` has to be nearer to what was measured by this (mean square of shares)."""


class Point(NamedTuple):
    """With ``n`` requests in flight a round took ``seconds``; ``weight``: how sure that is."""

    n: float
    seconds: float
    weight: float


@dataclass(frozen=True, slots=True)
class Law:
    """Seconds of a round over N: ``a + b N + c N^2``."""

    a: float
    b: float
    c: float

    def seconds(self, n: float) -> float:
        """Of a round over ``n`` requests."""
        return self.a + self.b * n + self.c * n * n

    def knee(self) -> float:
        """The largest N whose last request still brings 5 % of the mean; 0: none; inf: any."""
        m = LEAST_MARGIN
        a, b, c = (1 - m) * self.a, m * self.b, (1 + m) * self.c
        if c > 0:
            return (sqrt(b * b + 4 * a * c) - b) / (2 * c)
        if b > 0:
            return a / b
        return inf


def fitted(points: Sequence[Point]) -> Law | None:
    """The law nearest to measured points, by shares of their seconds; None: fewer than two.

    ``c`` needs three. Of the laws whose parameters are not negative the one with the least squares:
    all subsets of parameters are tried.
    """
    if len({n for n, _, _ in points}) < 2:
        return None
    curved = len({n for n, _, _ in points}) > 2
    total = sum(w for _, _, w in points)
    best: tuple[float, Law] | None = None
    for used in ((0, 1, 2), (0, 1), (0, 2), (1, 2), (0,), (1,), (2,)):
        if 2 in used and not curved:
            continue
        found = _least_squares(points, used)
        if found is None or min(found) < 0:
            continue
        values = [0.0, 0.0, 0.0]
        for place, value in zip(used, found, strict=True):
            values[place] = value
        law = Law(*values)
        missed = sum(w * (law.seconds(n) / y - 1) ** 2 for n, y, w in points)
        missed = missed / total + (BEND if 2 in used else 0.0)
        if best is None or missed < best[0]:
            best = missed, law
    return None if best is None else best[1]


def _least_squares(points: Sequence[Point], used: tuple[int, ...]) -> list[float] | None:
    """Coefficients of these powers of N; None where the points don't tell them."""
    size = len(used)
    most = max(n for n, _, _ in points)  # powers of N / most are of one size
    rows = [[0.0] * (size + 1) for _ in used]
    for n, seconds, weight in points:
        shares = [(n / most) ** power / seconds for power in used]
        for i in range(size):
            for j in range(size):
                rows[i][j] += weight * shares[i] * shares[j]
            rows[i][size] += weight * shares[i]
    for i in range(size):
        pivot = max(range(i, size), key=lambda row: abs(rows[row][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        if abs(rows[i][i]) <= 1e-12 * max(map(abs, rows[i])):
            return None
        for other in range(size):
            if other != i:
                share = rows[other][i] / rows[i][i]
                rows[other] = [x - share * y for x, y in zip(rows[other], rows[i], strict=True)]
    return [rows[i][size] / rows[i][i] / most**power for i, power in enumerate(used)]
