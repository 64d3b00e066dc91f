"""Activations that write in place: the same numbers, and not where somebody reads them later."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from llmtaskpool_worker.engines.one_pass.in_place import act_in_place
from torch import Tensor, nn


class Chain(nn.Module):
    """Each activation alone reads what it writes over."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 6, 3), nn.ReLU6(), nn.Hardswish()

    def forward(self, given: Tensor) -> Tensor:
        return self.two(self.one(self.conv(given)) - 1)  # type: ignore[no-any-return]


class ReadLater(Chain):
    """What an activation would write over is added at the end."""

    def forward(self, given: Tensor) -> Tensor:
        seen = self.conv(given)
        return self.two(self.one(seen)) + seen  # type: ignore[no-any-return]


@pytest.mark.parametrize(("made", "in_place"), [(Chain, 2), (ReadLater, 0)])
def test_what_a_model_gives_stays_to_the_bit(made: Any, in_place: int) -> None:
    torch.manual_seed(0)
    model, given = made().eval(), torch.randn(2, 3, 12, 12)
    with torch.inference_mode():
        expected = model(given)
        assert act_in_place(model, lambda: model(given)) == in_place
        assert torch.equal(model(given), expected)
    assert [one.inplace for one in (model.one, model.two)] == [in_place > 0] * 2
