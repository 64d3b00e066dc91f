"""Norms folded into convolutions: the same numbers, and nothing where they would be others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from llmtaskpool_worker.engines.one_pass.folding import fold_norms
from torch import Tensor, nn


def trained(module: nn.Module) -> nn.Module:
    """With norms that have seen something."""
    for one in module.modules():
        if isinstance(one, nn.BatchNorm2d):
            nn.init.normal_(one.running_mean)
            nn.init.uniform_(one.running_var, 0.5, 2.0)
            nn.init.normal_(one.weight)
            nn.init.normal_(one.bias)
    return module.eval()


class Plain(nn.Module):
    """A convolution and its norm, one with a bias, and one beside another."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.deep = nn.Sequential(nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.ReLU6())

    def forward(self, given: Tensor) -> Tensor:
        return self.deep(self.norm(self.conv(given)).relu())  # type: ignore[no-any-return]


class Elsewhere(Plain):
    """What the convolution gives is used before the norm too."""

    def forward(self, given: Tensor) -> Tensor:
        seen = self.conv(given)
        return self.norm(seen) + seen  # type: ignore[no-any-return]


class Twice(Plain):
    """One norm for two convolutions."""

    def forward(self, given: Tensor) -> Tensor:
        return self.norm(self.norm(self.conv(given)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("made", "folded"), [(Plain, 2), (Elsewhere, 0), (Twice, 0)])
def test_what_a_model_gives_stays(made: Any, folded: int) -> None:
    torch.manual_seed(0)
    model, given = trained(made()), torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        expected = model(given)
        assert fold_norms(model, lambda: model(given)) == folded
        torch.testing.assert_close(model(given), expected, atol=1e-5, rtol=1e-5)
    left = [one for one in model.modules() if isinstance(one, nn.BatchNorm2d)]
    assert len(left) == 2 - folded
