"""Linear layers whose weights lie in memory the way the CPU's matrix product reads them.

At the batch sizes of decoding (a few to some tens of rows) a product spends much of its time on
bringing the weight into its own order. oneDNN can do that once: measured on SmolLM2 in float32,
products of 16 rows then take 0.6 to 0.9 of the time (benchmarks/engine.md). In bfloat16 a weight is
half as long to read, and processors with instructions for it multiply faster.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmtaskpool_worker.engines import int8

ROWS = 32
"""Rows for which the order is chosen; products of other sizes use it as well."""
LEAST_SHARE = 0.5
"""Of a model's numbers in linear layers, for it to be held in 8 bits."""


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
    for module, name, child in _linears(model):
        setattr(module, name, PackedLinear(child, dtype))
        count += 1
    if count:
        _let_go(model, dtype)
    return count


def to_int8(model: nn.Module) -> float:
    """Replace each nn.Linear of a model on a CPU by one in 8 bits; the rest is float32 afterwards.

    Returns which share of the model's numbers they have, without the table of input embeddings,
    which stays as it is and gives float32. Where it is less than LEAST_SHARE nothing is changed.
    """
    table = _input_table(model)
    linears = [one for one in _linears(model) if int8.takes(one[2])]
    apart = {id(one.weight) for _, _, one in linears} | {id(table)}
    rest = sum(one.numel() for one in model.parameters() if id(one) not in apart)
    ours = sum(one.weight.numel() for _, _, one in linears)
    share = ours / max(1, ours + rest)
    if share < LEAST_SHARE:
        return share
    with int8.UseFbgemm():
        for module, name, child in linears:
            setattr(module, name, int8.Int8Linear(child))
    _let_go(model, torch.float32)
    return share


def _linears(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    return [
        (module, name, child)
        for module in model.modules()
        for name, child in module.named_children()
        if type(child) is nn.Linear
    ]


def _let_go(model: nn.Module, dtype: torch.dtype) -> None:
    """Let go of the weights that were packed: what is left (norms, embeddings) shares one buffer
    with them, and is copied out of it."""
    table = _input_table(model)
    for parameter in model.parameters():
        kept = parameter.dtype if parameter is table else dtype
        parameter.data = parameter.data.to(kept, copy=True)


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
