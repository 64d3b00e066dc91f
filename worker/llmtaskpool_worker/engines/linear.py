"""Linear layers whose weights lie in memory the way the CPU's matrix product reads them.

At the batch sizes of decoding (a few to some tens of rows) a product spends much of its time on
bringing the weight into its own order. oneDNN can do that once: measured on SmolLM2 in float32,
products of 16 rows then take 0.6 to 0.9 of the time (benchmarks/engine.md). In bfloat16 a weight is
half as long to read, and processors with instructions for it multiply faster.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROWS = 32
"""Rows for which the order is chosen; products of other sizes use it as well."""


class PackedLinear(nn.Module):
    """nn.Linear without gradients over a packed weight; input (..., in), output (..., out).

    Weight, bias, input and output are of ``dtype``.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else linear.bias.to(dtype)
        weight = linear.weight.detach().to(dtype)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)

    def forward(self, rows: Tensor) -> Tensor:
        """rows @ weight.T + bias."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self.packed, self.bias, "none", [], ""
        )
        return out


def pack_linears(model: nn.Module, dtype: torch.dtype = torch.float32) -> int:
    """Replace each nn.Linear of a model on a CPU; returns how many were replaced.

    Afterwards all parameters but the table of input embeddings are of ``dtype``, and that table
    gives numbers of ``dtype``. Nothing happens where this build of torch can't pack or packs to
    something that differs.
    """
    parameter = next(model.parameters())
    if parameter.device.type != "cpu" or not _usable(dtype):
        return 0
    if dtype == torch.float32 and parameter.dtype != dtype:
        return 0  # what came in shorter numbers is not made longer
    count = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child, dtype))
                count += 1
    if not count:
        return 0
    table = _input_table(model)
    # What is left (norms, embeddings) shares one buffer with the weights that were packed: a copy
    # lets that buffer go.
    for parameter in model.parameters():
        kept = parameter.dtype if parameter is table else dtype
        parameter.data = parameter.data.to(kept, copy=True)
    return count


def give_embeddings_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Let the table of input embeddings, of whatever dtype it is, give rows of ``dtype``."""

    def cast(_module: nn.Module, _ids: object, rows: Tensor) -> Tensor:
        return rows.to(dtype)

    model.get_input_embeddings().register_forward_hook(cast)  # type: ignore[operator]  # a method of every transformers model


def native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself (AVX-512 BF16 or AMX)."""
    asks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in asks)


def _input_table(model: nn.Module) -> nn.Parameter | None:
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    return getattr(embeddings, "weight", None)


def _usable(dtype: torch.dtype) -> bool:
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    close = 1e-4 if dtype == torch.float32 else 0.05
    try:
        with torch.inference_mode():
            linear, rows = nn.Linear(64, 48), torch.randn(3, 64)
            made = PackedLinear(linear.to(dtype), dtype)(rows.to(dtype)).float()
            return torch.allclose(made, linear.float()(rows), atol=close)
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
