"""What each holder of a lane's threads can count on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llmtaskpool_worker.scheduling.thread_shares import guaranteed

WEIGHTS = st.dictionaries(st.text(max_size=3), st.floats(0.01, 1000), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("threads", "weights", "parts"),
    [
        (8, {"chat": 1.0, "bulk": 1.0}, {"chat": 4, "bulk": 4}),
        (8, {"chat": 1.0, "bulk": 0.1}, {"chat": 7, "bulk": 1}),
        (7, {"a": 1.0, "b": 1.0}, {"a": 3, "b": 3}),
        (1, {"a": 1.0, "b": 100.0, "c": 1.0}, {"a": 1, "b": 1, "c": 1}),
    ],
)
def test_threads_are_guaranteed_by_weight_and_nobody_has_none(
    threads: int, weights: dict[str, float], parts: dict[str, int]
) -> None:
    assert guaranteed(threads, weights) == parts


@given(st.integers(1, 256), WEIGHTS)
def test_what_is_guaranteed_is_what_there_is_but_for_one_of_each(
    threads: int, weights: dict[str, float]
) -> None:
    parts = guaranteed(threads, weights)
    assert all(part >= 1 for part in parts.values())
    assert sum(part for part in parts.values() if part > 1) <= threads
    strongest = max(weights, key=lambda name: weights[name])
    assert parts[strongest] == max(parts.values())
