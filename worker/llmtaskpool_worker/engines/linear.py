"""Linear layers whose weights lie in memory the way the CPU's matrix product reads them.

At the batch sizes of decoding (a few to some tens of rows) a product spends much of its time on
bringing the weight into its own order. oneDNN can do that once: measured on SmolLM2 in float32,
products of 16 rows then take 0.6 to 0.9 of the time (benchmarks/engine.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROWS = 32
"""Rows for which the order is chosen; products of other sizes use it as well."""


class PackedLinear(nn.Module):
    """nn.Linear without gradients over a packed weight; input (..., in), output (..., out)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)

    def forward(self, rows: Tensor) -> Tensor:
        """rows @ weight.T + bias."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self.packed, self.bias, "none", [], ""
        )
        return out


def pack_linears(model: nn.Module) -> int:
    """Replace each nn.Linear of a float32 model on a CPU; returns how many were replaced.

    Nothing happens where this build of torch can't pack or packs to something that differs.
    """
    parameter = next(model.parameters())
    if parameter.device.type != "cpu" or parameter.dtype != torch.float32 or not _usable():
        return 0
    count = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child))
                count += 1
    # What is left (norms, embeddings) shares one buffer with the weights that were packed: a copy
    # lets that buffer go.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return count


def _usable() -> bool:
    try:
        with torch.inference_mode():
            linear, rows = nn.Linear(64, 48), torch.randn(3, 64)
            return torch.allclose(PackedLinear(linear)(rows), linear(rows), atol=1e-4)
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
