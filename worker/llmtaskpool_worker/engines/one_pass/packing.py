"""Texts of all lengths in one row without padding: (1, tokens of all), attention text by text.

Everything in an encoder but attention and positions treats tokens one by one, so nothing is
computed for padding, and a text gets what it would get alone. Whether a model can be run like this
is found out at load, against its own output on padded rows: positions may count from elsewhere
(RoBERTa), attention may have a bias of its own (MPNet) or not be asked for by transformers'
AttentionInterface at all. On a GPU padded rows are faster: an attention kernel for each text of
each layer costs more than the padding.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

_REFUSED = ("position_bias", "softcap", "s_aux", "alibi", "sliding_window")
_SAMPLE = (9, 3, 14)
"""Tokens of the texts on which a packed run is compared with a padded one."""
TOLERANCE = 1e-4
"""Of the largest value: the two add in another order."""


class PackedAttention:
    """Attention within each text of a packed row. Threads run rows of their own side by side."""

    def __init__(self) -> None:
        self._own = threading.local()
        self.called = False
        self.name = f"llmtaskpool-packed-{id(self)}"
        AttentionInterface.register(self.name, self)
        AttentionMaskInterface.register(self.name, _no_mask)

    def lay_out(self, lengths: list[int]) -> None:
        """Say how long the texts are of the row that this thread runs next."""
        self._own.lengths = lengths

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        _attention_mask: Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """query: (1, heads, tokens, dim); returns (1, tokens, heads, dim)."""
        if any(kwargs.get(name) is not None for name in _REFUSED) or query.shape[0] != 1:
            raise NotImplementedError(type(module).__name__)
        self.called = True
        parts, begin = [], 0
        for length in self._own.lengths:
            own = slice(begin, begin + length)
            begin += length
            part = functional.scaled_dot_product_attention(
                query[:, :, own], key[:, :, own], value[:, :, own], scale=scaling
            )
            parts.append(part.transpose(1, 2))
        return torch.cat(parts, dim=1), None


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    """What transformers calls to build a mask: the lengths say it all."""


class PackedBackbone(nn.Module):
    """Stands in a model where its encoder did: takes padded rows, and runs them packed.

    ``first_position`` is the position of a text's first token.
    """

    def __init__(
        self, backbone: nn.Module, attention: PackedAttention, first_position: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.attention = attention
        self.first_position = first_position

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """As the encoder's, for (texts, longest); hidden states of padding are 0."""
        places = attention_mask.bool()
        self.attention.lay_out(attention_mask.sum(dim=1).tolist())
        longest = input_ids.shape[1]
        positions = torch.arange(longest).expand_as(input_ids) + self.first_position
        given: dict[str, Any] = {"position_ids": positions[places][None]}
        if token_type_ids is not None:
            given["token_type_ids"] = token_type_ids[places][None]
        options = {name: value for name, value in options.items() if value is not None}
        out = self.backbone(input_ids=input_ids[places][None], **given, **options)
        hidden = out.last_hidden_state.new_zeros(
            (*input_ids.shape, out.last_hidden_state.shape[-1])
        )
        hidden[places] = out.last_hidden_state[0]
        out["last_hidden_state"] = hidden
        pooler = getattr(self.backbone, "pooler", None)
        if pooler is not None:
            out["pooler_output"] = pooler(hidden)
        return out


Run = Callable[[Sequence[Sequence[int]]], Sequence[Tensor]]
"""What a model makes of texts, one tensor each."""


def pack(model: Any, run: Callable[[Any], Run], first_positions: Sequence[int]) -> tuple[Any, bool]:
    """The model that runs packed, or ``model`` as it is where that gives something else.

    ``run(model)`` runs texts through a model; ``first_positions`` are tried in turn. Returns also
    whether it runs packed.
    """
    if next(model.parameters()).device.type != "cpu":
        return model, False
    texts = [[5 + (7 * place) % 11 for place in range(length)] for length in _SAMPLE]
    wanted = run(model)(texts)
    prefix = model.base_model_prefix
    inner = getattr(model, prefix, None)
    backbone = model if inner is None else inner
    usual = model.config._attn_implementation
    attention = PackedAttention()
    model.set_attn_implementation(attention.name)
    for first in first_positions:
        packed: Any = PackedBackbone(backbone, attention, first)
        if inner is not None:
            setattr(model, prefix, packed)
            packed = model
        try:
            found = run(packed)(texts)
        except Exception:
            found = []  # its attention, or its positions, are not for this
        if attention.called and found and _equal(found, wanted):
            return packed, True
        if inner is not None:
            setattr(model, prefix, inner)
    model.set_attn_implementation(usual)
    return model, False


def _equal(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    return all(
        one.shape == other.shape
        and float((one - other).abs().max()) <= TOLERANCE * max(1.0, float(other.abs().max()))
        for one, other in zip(found, wanted, strict=True)
    )
