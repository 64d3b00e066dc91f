"""Products and norms of a decoder's layers in fewer calls: by what is there, not by family.

A step of decoding is thousands of small calls. Where layers read one input (queries, keys and
values; gate and up) their weights are one matrix, and the first of them that is called computes
for all. Norms of the usual kind are one call of torch. Whether the model still computes the same
is checked by who loads it (decoder.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Children of one module that read the same input; what they are called in most families."""


class Joined(nn.Module):
    """The first of several linear layers, and the product of all of them.

    It keeps what it made of an input until each has had its part.
    """

    def __init__(self, linear: nn.Linear, sizes: list[int]) -> None:
        super().__init__()
        self.linear, self._sizes = linear, sizes
        self._rows: Tensor | None = None
        self._parts: list[Tensor | None] = [None] * len(sizes)

    def forward(self, rows: Tensor) -> Tensor:
        """As the first layer's."""
        return self.part(0, rows)

    def part(self, number: int, rows: Tensor) -> Tensor:
        """As layer ``number``'s. Of another input than the last one all is computed anew."""
        part = self._parts[number] if rows is self._rows else None
        if part is None:
            parts = torch.split(self.linear(rows), self._sizes, dim=-1)
            self._rows, self._parts, part = rows, list(parts), parts[number]
        self._parts[number] = None
        if all(one is None for one in self._parts):
            self._rows = None
        return part


class Part(nn.Module):
    """Stands where another of them stood."""

    def __init__(self, joined: Joined, number: int) -> None:
        super().__init__()
        self._joined = (joined,)  # in a tuple it is no module of this one
        self._number = number

    def forward(self, rows: Tensor) -> Tensor:
        """As the layer's."""
        return self._joined[0].part(self._number, rows)


class Norm(nn.Module):
    """Root mean square norm: ``x / sqrt(mean(x²) + eps) · weight`` (Zhang and Sennrich, 2019)."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, rows: Tensor) -> Tensor:
        """Over the last dimension."""
        return functional.rms_norm(rows, self.weight.shape, self.weight, self.eps)


def fuse(model: nn.Module) -> int:
    """Put them in place; returns how many modules were replaced."""
    count = 0
    for module in list(model.modules()):
        for names in TOGETHER:
            count += _join(module, names)
        for name, child in list(module.named_children()):
            norm = _norm_like(child)
            if norm is not None:
                setattr(module, name, norm)
                count += 1
    return count


def _join(module: nn.Module, names: tuple[str, ...]) -> int:
    layers = [getattr(module, name, None) for name in names]
    linears = [one for one in layers if type(one) is nn.Linear]
    if len(linears) < len(names) or len({one.in_features for one in linears}) > 1:
        return 0
    sizes = [one.out_features for one in linears]
    weight = torch.cat([one.weight.detach() for one in linears])
    linear = nn.Linear(1, 1, bias=False, device="meta")
    linear.in_features, linear.out_features = linears[0].in_features, sum(sizes)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if any(one.bias is not None for one in linears):
        biases = [
            weight.new_zeros(one.out_features) if one.bias is None else one.bias.detach()
            for one in linears
        ]
        linear.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    joined = Joined(linear, sizes)
    setattr(module, names[0], joined)
    for number, name in enumerate(names[1:], 1):
        setattr(module, name, Part(joined, number))
    return len(names)


def _norm_like(module: nn.Module) -> Norm | None:
    """The same norm in one call; None where it is another one."""
    if not type(module).__name__.endswith("RMSNorm"):
        return None
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or not isinstance(eps, float):
        return None
    norm = Norm(weight, eps)
    drawn = torch.Generator().manual_seed(0)
    rows = torch.randn(2, weight.numel(), generator=drawn).to(weight)
    close = 1e-4 if weight.dtype == torch.float32 else 2e-2
    with torch.inference_mode():
        same = torch.allclose(norm(rows).float(), module(rows).float(), rtol=close, atol=close)
    return norm if same else None
