"""Batch norms folded into the convolutions before them.

A norm at rest is one product and one sum for each channel, as a convolution's weights and bias are:
the two become one (torch.nn.utils.fusion has the formula), and a pass over all numbers of a layer
is saved. Which norm follows which convolution is seen as the model runs. Where a convolution's
output went elsewhere too, what the model gives would change: then all stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

TOLERANCE = 1e-4
"""Of the largest value: the two multiply in another order."""


@torch.no_grad()
def fold_norms(model: nn.Module, run: Callable[[], Tensor]) -> int:
    """Fold what can be folded. ``run``: a pass through ``model``, and its output.

    Returns how many norms were folded.
    """
    pairs, expected = _seen(model, run)
    if not pairs:
        return 0
    before: list[tuple[nn.Module, str, nn.BatchNorm2d, nn.Conv2d, Any, Any]] = []
    parents = {
        id(child): (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
    }
    for norm, conv in pairs:
        parent, name = parents[id(norm)]
        assert norm.running_mean is not None  # noqa: S101 - it tracks them
        assert norm.running_var is not None  # noqa: S101
        before.append((parent, name, norm, conv, conv.weight, conv.bias))
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        setattr(parent, name, nn.Identity())
    found = run()
    if found.shape == expected.shape and _equal(found, expected):
        return len(pairs)
    for parent, name, norm, conv, weight, bias in before:
        setattr(parent, name, norm)
        conv.weight, conv.bias = weight, bias
    return 0


def _seen(
    model: nn.Module, run: Callable[[], Tensor]
) -> tuple[list[tuple[nn.BatchNorm2d, nn.Conv2d]], Tensor]:
    """Norms and the convolutions whose output they took, each once; and the model's output."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensors are kept: ids would come again
    taken: list[tuple[nn.BatchNorm2d, nn.Conv2d]] = []

    def convolved(conv: nn.Module, _given: Any, out: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)  # noqa: S101 - hooked to no other
        made[id(out)] = (conv, out)

    def normed(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)  # noqa: S101
        if id(given[0]) in made:
            taken.append((norm, made[id(given[0])][0]))

    hooks: list[Any] = []
    for module in model.modules():
        if type(module) is nn.Conv2d:
            hooks.append(module.register_forward_hook(convolved))
        elif type(module) is nn.BatchNorm2d and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(normed))
    try:
        out = run()
    finally:
        for hook in hooks:
            hook.remove()
    norms, convs = [norm for norm, _ in taken], [conv for _, conv in taken]
    alone = [
        (norm, conv) for norm, conv in taken if norms.count(norm) == 1 and convs.count(conv) == 1
    ]
    return alone, out


def _equal(found: Tensor, expected: Tensor) -> bool:
    largest = max(1.0, float(expected.abs().max()))
    return bool(((found - expected).abs() <= TOLERANCE * largest).all())
