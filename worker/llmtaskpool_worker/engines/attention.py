"""Attention over the slot cache, given to transformers through its AttentionInterface.

A step is one packed row of tokens, (1, tokens): one token for each decoding sequence, then the
prefill chunks. Everything but attention treats tokens one by one, so only attention has to know
which token belongs to whom. Grouped queries are folded into the query length, so keys and values
are never repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from llmtaskpool_worker.engines.batching import Batch, Sequence
from llmtaskpool_worker.engines.slot_cache import SlotCache

_REFUSED = ("s_aux", "position_bias", "alibi")


class UnservableAttention(Exception):
    """The model's attention needs something that the slot cache doesn't have."""


@dataclass(slots=True)
class StepLayout:
    """Where the packed tokens of one step go. ``slots`` and ``positions``: (tokens,)."""

    batch: Batch
    slots: Tensor
    positions: Tensor
    decode_length: int
    masks: dict[tuple[int, int | None], Tensor]


class SlotAttention:
    """The attention function of one model, bound to its cache. One step at a time."""

    def __init__(self, cache: SlotCache) -> None:
        self.cache = cache
        self.layout: StepLayout | None = None
        self.beat: Callable[[], None] = _nobody
        self.name = f"llmtaskpool-slots-{id(self)}"
        AttentionInterface.register(self.name, self)
        AttentionMaskInterface.register(self.name, _no_mask)

    def lay_out(
        self, batch: Batch, running: list[Sequence], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Prepare a step; returns its token ids and positions, both of shape (1, tokens)."""
        tokens = [s.tokens[-1] for s in running[: batch.decode]]
        positions = [len(s.tokens) - 1 for s in running[: batch.decode]]
        slots = list(range(batch.decode))
        decode_length = max(positions, default=-1) + 1
        for chunk in batch.chunks:
            end = chunk.start + chunk.length
            tokens += running[chunk.slot].tokens[chunk.start : end]
            positions += range(chunk.start, end)
            slots += [chunk.slot] * chunk.length
        rows = torch.tensor([tokens, positions, slots], device=device)
        self.layout = StepLayout(batch, rows[2], rows[1], decode_length, {})
        return rows[0:1], rows[1:2]

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        _attention_mask: Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Attention of one layer. query: (1, query heads, tokens, dim); returns
        (1, tokens, query heads, value dim)."""
        self.beat()
        refused = [name for name in _REFUSED if kwargs.get(name) is not None]
        if refused:
            raise UnservableAttention(f"its attention uses {', '.join(refused)}")
        layout = self.layout
        assert layout is not None, "lay_out comes before the forward pass"  # noqa: S101 - invariant
        keys, values = self.cache.layer(int(module.layer_idx), key, value)  # type: ignore[arg-type]  # an int in every attention layer of transformers
        keys[layout.slots, :, layout.positions] = key[0].transpose(0, 1)
        values[layout.slots, :, layout.positions] = value[0].transpose(0, 1)
        parts = []
        if decode := layout.batch.decode:
            length = layout.decode_length
            part = _attend(
                query[0, :, :decode].transpose(0, 1).unsqueeze(2),
                keys[:decode, :, :length],
                values[:decode, :, :length],
                self._decode_mask(sliding_window, query.dtype),
                scaling,
                softcap,
            )
            parts.append(part[:, :, 0])
        offset = decode
        for number, chunk in enumerate(layout.batch.chunks):
            end = chunk.start + chunk.length
            part = _attend(
                query[:, :, offset : offset + chunk.length],
                keys[chunk.slot : chunk.slot + 1, :, :end],
                values[chunk.slot : chunk.slot + 1, :, :end],
                self._chunk_mask(number, chunk.start, end, sliding_window, query.dtype),
                scaling,
                softcap,
            )
            parts.append(part[0].transpose(0, 1))
            offset += chunk.length
        out = torch.cat(parts) if len(parts) > 1 else parts[0]
        return out.unsqueeze(0), None

    def _decode_mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive, (decode, 1, 1, length): a row sees its own tokens within the window."""
        layout = self.layout
        assert layout is not None  # noqa: S101 - invariant of __call__
        mask = layout.masks.get((-1, window))
        if mask is None:
            own = layout.positions[: layout.batch.decode, None]
            seen = torch.arange(layout.decode_length, device=own.device)[None]
            mask = layout.masks[-1, window] = _additive(seen, own, window, dtype)[:, None, None]
        return mask

    def _chunk_mask(
        self, number: int, start: int, end: int, window: int | None, dtype: torch.dtype
    ) -> Tensor:
        """Additive, (chunk, end): causal, within the window."""
        layout = self.layout
        assert layout is not None  # noqa: S101 - invariant of __call__
        mask = layout.masks.get((number, window))
        if mask is None:
            places = torch.arange(end, device=layout.positions.device)
            mask = _additive(places[None], places[start:, None], window, dtype)
            layout.masks[number, window] = mask
        return mask


def _nobody() -> None:
    """Hears of each layer, where nobody else does."""


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    """What transformers calls to build a mask: the layout says it all."""


def _additive(seen: Tensor, own: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    hidden = seen > own
    if window is not None:
        hidden = hidden | (seen <= own - window)
    zeros = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return zeros.masked_fill_(hidden, float("-inf"))


def _attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    """softmax(Q Kᵀ · scaling + mask) V with the query heads of a group folded into its length.

    query: (rows, query heads, tokens, dim), keys: (rows, heads, length, dim); returns
    (rows, query heads, tokens, value dim).
    """
    rows, query_heads, tokens, dim = query.shape
    heads = keys.shape[1]
    group = query_heads // heads
    folded = query.reshape(rows, heads, group * tokens, dim)
    if group > 1 and mask.shape[-2] > 1:
        mask = mask.repeat(*([1] * (mask.dim() - 2)), group, 1)
    if softcap is None:
        out = functional.scaled_dot_product_attention(
            folded, keys, values, attn_mask=mask, scale=scaling
        )
    else:
        scores = folded @ keys.transpose(-1, -2) * (scaling if scaling is not None else dim**-0.5)
        scores = torch.tanh(scores / softcap) * softcap + mask
        out = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ values
    return out.reshape(rows, query_heads, tokens, values.shape[-1])


def unservable(config: Any) -> str | None:
    """Why the slot cache can't serve a model with this configuration; None when it can."""
    if getattr(config, "is_encoder_decoder", False):
        return "it reads first and then writes: add task=translate, summarize or transcribe"
    kinds: Iterable[str] = getattr(config, "layer_types", None) or ()
    odd = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if odd:
        return f"it has layers of type {', '.join(odd)}"
    if getattr(config, "alibi", False):
        return "it uses ALiBi positions"
    return None
