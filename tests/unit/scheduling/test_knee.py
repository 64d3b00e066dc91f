"""The law of a server's rate over its requests in flight, and its knee."""

from __future__ import annotations

import random
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llmtaskpool_worker.scheduling.knee import Law, Point, fitted


def rounds(a: float, b: float, c: float = 0.0, sizes=(1, 2, 4, 8, 16)) -> list[Point]:
    return [Point(n, a + b * n + c * n * n, 1.0) for n in sizes]


@pytest.mark.parametrize(
    ("law", "best"),
    [
        (Law(0.010, 0.010, 0.0), 19),
        (Law(0.020, 0.001, 0.0), 380),
        (Law(0.001, 0.010, 0.0), 1.9),
        (Law(0.030, 0.005, 0.0), 114),
        (Law(0.036, 0.0, 0.001), 5.707),
        (Law(0.020, 0.004, 0.0004), 6.490),
    ],
)
def test_the_knee_is_where_one_more_brings_a_twentieth_of_the_mean(law, best):
    assert law.knee() == pytest.approx(best, rel=1e-3)

    def rate(n: float) -> float:
        return n / law.seconds(n)

    marginal = (rate(best + 1e-4) - rate(best)) / 1e-4
    assert marginal == pytest.approx(0.05 * rate(best) / best, rel=2e-2)


@pytest.mark.parametrize(
    ("points", "knee"),
    [
        (rounds(0.02, 0.0), inf),
        (rounds(0.0, 0.02), 0.0),
        (rounds(0.01, 0.01), 19.0),
        (rounds(0.036, 0.0, 0.001), 5.707),
        ([Point(4, 0.08, 1.0), Point(8, 0.08, 1.0)], inf),
        ([Point(4, 0.08, 1.0), Point(8, 0.07, 1.0)], inf),
        ([Point(4, 0.08, 1.0), Point(8, 0.20, 1.0)], 0.0),
    ],
    ids=["free", "one after the other", "a line", "a parabola", "two free", "falling", "steep"],
)
def test_a_law_is_found_in_what_was_measured(points, knee):
    assert fitted(points).knee() == pytest.approx(knee, rel=1e-3, abs=1e-6)


def test_no_law_is_known_of_fewer_than_two_numbers():
    assert fitted([]) is None
    assert fitted([Point(8, 0.03, 1.0)] * 3) is None


def test_a_law_is_found_in_noise_and_noise_alone_bends_no_line():
    drawn = random.Random(4)
    for _ in range(50):
        noisy = [
            Point(n, (0.02 + 0.001 * n) * drawn.uniform(0.95, 1.05), 1.0)
            for n in (1, 2, 3, 4, 8, 16, 32, 64)
        ]
        assert fitted(noisy).knee() >= 150


def test_what_is_old_counts_less():
    stale = [Point(n, 0.02 + 0.02 * n, 0.001) for n in (1, 2, 4, 8)]
    fresh = [Point(n, 0.02 + 0.001 * n, 1.0) for n in (4, 8, 16)]
    assert fitted(stale + fresh).knee() == pytest.approx(380, rel=0.2)


@given(
    st.lists(
        st.tuples(st.integers(1, 4096), st.floats(1e-4, 1e3), st.floats(0.01, 8.0)),
        max_size=12,
    )
)
def test_whatever_was_measured_no_share_of_a_law_is_negative(measured):
    law = fitted([Point(*one) for one in measured])
    if law is not None:
        assert min(law.a, law.b, law.c) >= 0
        assert law.knee() >= 0
