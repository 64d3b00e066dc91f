"""Linear layers in 8 bits, for decoders on processors that don't multiply bfloat16 themselves.

A weight is a quarter as long to read as in float32, and fbgemm multiplies bytes: measured here, a
product of 8 rows takes a quarter of the time, one of 128 rows half (benchmarks/engines.md).

    y = x W^T = (x H)(W H)^T,    x H ~ s q,    (W H)_o ~ t_o p_o

H is a Hadamard matrix in blocks of up to 64 over the inputs, which is orthogonal. It spreads the
few large numbers among a decoder's activations over their neighbours (Ashkboos et al., QuaRot,
2024): without it one step s for a whole row costs SmolLM2 a fifth of its perplexity, with it a
tenth of a percent. ``t_o`` is of each output's weights, ``s`` of each row at the time: so a row
comes to the same numbers, bit for bit, whoever is computed beside it.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

LARGEST_BLOCK, SMALLEST_BLOCK = 64, 16
WEIGHT_LEVELS = 127
LEVELS = 96
"""To each side of zero, of a row. A processor without VNNI adds up two products of bytes in 16
bits, and cuts off what doesn't fit: with 127 levels often, with 63 never, with 96 as good as never.
Fewer levels round more (SmolLM2: 0.0178, 0.0125 and 0.0076 nats)."""
_TINY = 1e-30


def block_of(inputs: int) -> int:
    """The largest power of two that divides ``inputs``, up to LARGEST_BLOCK."""
    return min(inputs & -inputs, LARGEST_BLOCK)


def hadamard(size: int) -> Tensor:
    """(size, size), orthogonal and symmetric; ``size`` is a power of two (Sylvester, 1867)."""
    made = torch.ones(1, 1)
    while len(made) < size:
        made = torch.cat([torch.cat([made, made], 1), torch.cat([made, -made], 1)])
    made /= size**0.5
    return made


class Int8Linear(nn.Module):
    """nn.Linear without gradients over a weight in 8 bits; float32 (..., in) to (..., out)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else linear.bias.float()
        self._turn = hadamard(block_of(self.in_features))
        weight = self._turned(linear.weight.detach().float())
        steps = weight.abs().amax(1).clamp_(min=_TINY) / WEIGHT_LEVELS
        zeros = torch.zeros(self.out_features, dtype=torch.long)
        with warnings.catch_warnings():  # torch lets go of such tensors; fbgemm has no other door
            warnings.simplefilter("ignore", UserWarning)
            rounded = torch.quantize_per_channel(weight, steps.double(), zeros, 0, torch.qint8)
            self._packed = torch.ops.quantized.linear_prepack(rounded, None)

    def _turned(self, rows: Tensor) -> Tensor:
        return (rows.reshape(-1, len(self._turn)) @ self._turn).view(rows.shape)

    def forward(self, rows: Tensor) -> Tensor:
        """rows @ weight.T + bias."""
        turned = self._turned(rows)
        # Not vector_norm(inf), which takes 10 times as long where there are many rows.
        largest = turned.abs().amax(-1, keepdim=True).clamp_(min=_TINY)
        out: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            turned.div_(largest), 1 / LEVELS, LEVELS, self._packed
        )
        out.mul_(largest)
        if self.bias is not None:
            out.add_(self.bias)
        return out


def takes(linear: nn.Linear) -> bool:
    """Whether its inputs can be turned in blocks that are worth it."""
    return block_of(linear.in_features) >= SMALLEST_BLOCK


class UseFbgemm:
    """While weights are packed: the library that packs is a setting of the whole process."""

    def __enter__(self) -> None:
        self._before = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"

    def __exit__(self, *_: object) -> None:
        torch.backends.quantized.engine = self._before


def usable() -> bool:
    """Whether this processor and this build of torch can (fbgemm asks for AVX2)."""
    try:
        with torch.inference_mode(), UseFbgemm():
            drawn = torch.Generator().manual_seed(0)
            rows, linear = torch.randn(3, 64, generator=drawn), nn.Linear(64, 48, bias=False)
            linear.weight.copy_(torch.randn(48, 64, generator=drawn))
            expected = linear(rows)
            near = 0.05 * float(expected.abs().max())
            return torch.allclose(Int8Linear(linear)(rows), expected, atol=near, rtol=0)
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
