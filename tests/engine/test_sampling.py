"""Drawing tokens: what each parameter lets through."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from llmtaskpool_worker.engines.batching import Sequence
from llmtaskpool_worker.engines.protocol import Admit
from llmtaskpool_worker.engines.sampling import Sampler

PROBABILITIES = [0.5, 0.25, 0.15, 0.07, 0.03]
LOGITS = torch.tensor([PROBABILITIES]).log()


def drawn(count: int = 400, counts: dict[int, int] | None = None, **parameters: float) -> Counter:
    parameters = {"temperature": 1.0, "seed": 11} | parameters
    sequence = Sequence(Admit(1, [1], 1, **parameters), [1])  # type: ignore[arg-type]
    sequence.counts = counts or {}
    sampler = Sampler(torch.device("cpu"))
    return Counter(sampler.draw(LOGITS, [sequence])[0].token for _ in range(count))


def test_temperature_one_draws_by_the_models_probabilities() -> None:
    seen = drawn(4000)
    for token, probability in enumerate(PROBABILITIES):
        assert seen[token] / 4000 == pytest.approx(probability, abs=0.04)


def test_a_low_temperature_draws_the_best_token() -> None:
    assert set(drawn(temperature=0.05)) == {0}


def test_top_k_draws_from_the_k_best() -> None:
    assert set(drawn(top_k=2)) == {0, 1}


@pytest.mark.parametrize(("top_p", "kept"), [(0.1, {0}), (0.6, {0, 1}), (0.85, {0, 1, 2})])
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p: float, kept: set[int]) -> None:
    assert set(drawn(top_p=top_p)) == kept


def test_min_p_drops_what_is_far_below_the_best() -> None:
    assert set(drawn(min_p=0.29)) == {0, 1, 2}


def test_penalties_lower_what_was_drawn_before() -> None:
    assert set(drawn(temperature=0, counts={0: 1}, presence_penalty=2.0)) == {1}
    assert set(drawn(temperature=0, counts={0: 2, 1: 3}, frequency_penalty=1.0)) == {2}
    assert set(drawn(temperature=0, counts={0: 1}, presence_penalty=-2.0)) == {0}


def test_a_row_with_a_nan_draws_nothing_and_its_neighbour_does() -> None:
    logits = LOGITS.repeat(2, 1)
    logits[0, 3] = float("nan")
    rows = [Sequence(Admit(i, [1], 1), [1]) for i in range(2)]
    assert [d.token for d in Sampler(torch.device("cpu")).draw(logits, rows)] == [None, 0]
