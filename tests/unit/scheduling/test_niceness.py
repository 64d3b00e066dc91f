"""How nice one engine is to others on the same processors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llmtaskpool_worker.scheduling.niceness import LATELY_SECONDS, MOST, Lately, niceness

WEIGHTS = st.floats(min_value=1e-6, max_value=1e6)


@pytest.mark.parametrize(
    ("weight", "most", "levels"),
    [
        (1.0, 1.0, 0),
        (2.0, 1.0, 0),
        (0.5, 1.0, 0),  # 3 levels: no band of its own
        (0.3, 1.0, 5),
        (0.1, 1.0, 10),
        (1.0, 10.0, 10),
        (0.0001, 1.0, 10),
        (5e-324, 1e6, 10),  # their ratio is more than a float holds
    ],
)
def test_levels_follow_the_ratio_of_the_weights(weight: float, most: float, levels: int) -> None:
    assert niceness(weight, most) == levels


@given(WEIGHTS, WEIGHTS)
def test_nobody_gets_less_of_a_processor_than_its_weight_gives(weight: float, most: float) -> None:
    n = niceness(weight, most)
    assert 0 <= n <= MOST
    assert 1.25**-n >= min(1.0, weight / most) * (1 - 1e-9)


def test_the_heaviest_counts_for_a_minute_after_it_was_last_seen() -> None:
    lately = Lately()
    assert [lately.seen(1.0, 0.0), lately.seen(0.1, 1.0), lately.seen(1.0, 10.0)] == [1.0] * 3
    assert lately.seen(0.1, 10.0 + LATELY_SECONDS - 1) == 1.0
    assert lately.seen(0.1, 10.0 + LATELY_SECONDS) == 0.1
    assert lately.seen(0.5, 10.0 + LATELY_SECONDS + 1) == 0.5, "a heavier one counts at once"
