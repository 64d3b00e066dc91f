"""Self and cross caches of all running sequences, given to a decoder of transformers.

A decoder of transformers takes one length for all rows of a batch. Here each row has its own: the
caches are slots (slot_cache.py), masks are given whole, and positions come from the step's layout
instead of from the length of a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from llmtaskpool_worker.engines.batching import Clear, Move
from llmtaskpool_worker.engines.slot_cache import SlotCache
from llmtaskpool_worker.engines.weights import ModelRefused


@dataclass(slots=True)
class _Layout:
    """Which tokens of which slots a forward pass is over.

    ``positions``: (rows, tokens). ``first``: the slot of the first row; the others follow it.
    ``fresh``: these rows begin, so that all they attend to is in the pass.
    """

    positions: Tensor
    first: int
    length: int
    fresh: bool


class _Self:
    """The self-attention's part: writes what a pass brings, gives what its rows see."""

    is_sliding = is_linear = is_dummy = ()  # transformers looks for layers of other kinds

    def __init__(self, cache: SlotCache, layout: _Layout) -> None:
        self._cache, self._layout = cache, layout

    def get_seq_length(self, _layer: int = 0) -> int:
        return 0  # positions come from the layout

    def update(self, key: Tensor, value: Tensor, layer: int, **_: Any) -> tuple[Tensor, Tensor]:
        keys, values = self._cache.layer(layer, key, value)
        layout = self._layout
        rows = key.shape[0]
        slots = torch.arange(layout.first, layout.first + rows, device=key.device)[:, None]
        keys[slots, :, layout.positions] = key.transpose(1, 2)
        values[slots, :, layout.positions] = value.transpose(1, 2)
        if layout.fresh:
            return key, value
        end = layout.first + rows
        return (
            keys[layout.first : end, :, : layout.length],
            values[layout.first : end, :, : layout.length],
        )


@dataclass(frozen=True, slots=True)
class _LayerView:
    keys: Tensor
    values: Tensor


class _Cross:
    """The cross-attention's part: written once for a sequence, then read."""

    is_sliding = is_linear = is_dummy = ()

    def __init__(self, cache: SlotCache, first: int, rows: int, length: int) -> None:
        self._cache, self._first, self._end, self._length = cache, first, first + rows, length

    @property
    def layers(self) -> _Cross:
        return self

    def __getitem__(self, layer: int) -> _LayerView:
        return _LayerView(
            self._cache.keys[layer][self._first : self._end, :, : self._length],
            self._cache.values[layer][self._first : self._end, :, : self._length],
        )

    def update(self, key: Tensor, value: Tensor, layer: int, **_: Any) -> tuple[Tensor, Tensor]:
        keys, values = self._cache.layer(layer, key, value)
        keys[self._first : self._end, :, : key.shape[2]] = key
        values[self._first : self._end, :, : value.shape[2]] = value
        return key, value


class _Caches(EncoderDecoderCache):  # type: ignore[misc]  # transformers has no types for it
    """Both, as a decoder of transformers asks for them."""

    is_sliding = is_linear = is_dummy = ()

    def __init__(self, own: _Self, cross: _Cross, *, written: bool, layers: int) -> None:
        self.self_attention_cache = own
        self.cross_attention_cache = cross
        self.is_updated = dict.fromkeys(range(layers), written)


class _Positions(nn.Module):
    """A decoder's positions by the step's layout, whatever their module counts itself."""

    def __init__(self, inner: nn.Module, decoder: SlotDecoder) -> None:
        super().__init__()
        table: Any = getattr(inner, "weight", None)
        if table is None:  # sinusoids of M2M100 and NLLB stand behind the padding's place
            table = inner.weights
            self.offset = int(inner.padding_idx) + 1  # type: ignore[arg-type]  # an int there
        else:
            self.offset = int(getattr(inner, "offset", 0))  # BART keeps two places before them
        self.register_buffer("table", table.detach(), persistent=False)
        self._layout = [decoder]  # in a list: it is no part of this module

    def forward(self, *_args: Any, **_kwargs: Any) -> Tensor:
        table: Tensor = self.table  # type: ignore[assignment]  # as registered
        return functional.embedding(self._layout[0].layout.positions + self.offset, table)


class SlotDecoder:
    """An encoder-decoder of transformers whose decoder runs over slots.

    ``model`` is on its device, in its dtype, in eval mode. ``masked``: its cross-attention looks at
    lengths (Whisper's doesn't: all windows are as long).
    """

    def __init__(self, model: nn.Module, *, masked: bool = True) -> None:
        whole: Any = model
        self.model = whole
        self.masked = masked
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.encoder: Any = whole.get_encoder()
        self.decoder: Any = whole.get_decoder()
        self.own, self.cross = SlotCache(), SlotCache()
        self.layout = _Layout(torch.zeros(1, 1, dtype=torch.long), 0, 0, fresh=True)
        layers = getattr(self.decoder, "layers", None) or getattr(self.decoder, "block", None)
        if layers is None:
            raise ModelRefused("this model can't be served: its decoder is of an unknown kind")
        self.layers = layers
        self._name = "cache" if "cache" in _parameters(self.model) else "past_key_values"

    def take_over_positions(self) -> None:
        """From now on each row of a pass has positions of its own."""
        if hasattr(self.decoder, "embed_positions"):
            self.decoder.embed_positions = _Positions(self.decoder.embed_positions, self)
        for module in self.decoder.modules():
            if getattr(module, "has_relative_attention_bias", False):
                module.compute_bias = MethodType(self._bias, module)

    def _bias(self, module: Any, _query: int, length: int, **_: Any) -> Tensor:
        """T5's bias, (rows, heads, tokens, length), of rows with positions of their own."""
        places = torch.arange(length, device=self.device)
        buckets = module._relative_position_bucket(
            places[None, None] - self.layout.positions[:, :, None],
            bidirectional=False,
            num_buckets=module.relative_attention_num_buckets,
            max_distance=module.relative_attention_max_distance,
        )
        found: Tensor = module.relative_attention_bias(buckets).permute(0, 3, 1, 2)
        return found

    def reserve(self, slots: int, own: int, cross: int, filled: Sequence[tuple[int, int]]) -> None:
        """Room for ``slots`` sequences; ``filled``: what each running one has in both caches."""
        self.own.reserve(slots, own, [one for one, _ in filled], 1 << 62)
        self.cross.reserve(slots, cross, [one for _, one in filled], 1 << 62)

    def shrink(self, slots: int, own: int, cross: int, filled: Sequence[tuple[int, int]]) -> None:
        """Give back what these don't need."""
        self.own.shrink(slots, own, [one for one, _ in filled])
        self.cross.shrink(slots, cross, [one for _, one in filled])

    def move(self, source: int, target: int, own: int, cross: int) -> None:
        """A sequence goes to another slot."""
        self.own.apply([Move(source, target, own)])
        self.cross.apply([Move(source, target, cross)])

    def clear(self, slot: int, own: int, cross: int) -> None:
        """What a slot holds may be no numbers: 0 x NaN is NaN, wherever it is masked."""
        self.own.apply([Clear(slot, own)])
        self.cross.apply([Clear(slot, cross)])

    def encode(self, given: dict[str, Tensor]) -> Tensor:
        """(rows, length, size) of what the encoder reads."""
        hidden: Tensor = self.encoder(**given).last_hidden_state
        return hidden

    def begin(
        self, hidden: Tensor, lengths: Sequence[int], prefixes: Sequence[Sequence[int]], first: int
    ) -> Tensor:
        """Logits after each prefix, (rows, vocabulary); fills slots from ``first`` on.

        ``hidden`` is the encoder's, ``lengths`` how much of each row is no padding.
        """
        longest = max(map(len, prefixes))
        tokens = torch.zeros(len(prefixes), longest, dtype=torch.long)
        for row, prefix in enumerate(prefixes):
            tokens[row, : len(prefix)] = torch.tensor(prefix)
        places = torch.arange(longest, device=self.device)
        self.layout = _Layout(places[None].expand(len(prefixes), -1), first, longest, fresh=True)
        mask = self._additive(places[None] > places[:, None])[None, None]
        mask = mask.expand(len(prefixes), 1, -1, -1)
        ends = torch.tensor([len(prefix) - 1 for prefix in prefixes], device=self.device)
        cross = _Cross(self.cross, first, len(prefixes), hidden.shape[1])
        logits = self._run(tokens, hidden, mask, cross, lengths, written=False)
        return logits[torch.arange(len(prefixes), device=self.device), ends]

    def go_on(
        self, tokens: Sequence[int], positions: Sequence[int], lengths: Sequence[int]
    ) -> Tensor:
        """Logits after one more token of each of the first slots, (rows, vocabulary)."""
        rows, longest = len(tokens), max(lengths)
        places = torch.tensor(positions, device=self.device)
        length = max(positions) + 1
        self.layout = _Layout(places[:, None], 0, length, fresh=False)
        mask = self._additive(torch.arange(length, device=self.device)[None] > places[:, None])
        hidden = torch.zeros(1, 1, 1, device=self.device, dtype=self.dtype)
        cross = _Cross(self.cross, 0, rows, longest)
        logits = self._run(
            torch.tensor(tokens)[:, None],
            hidden.expand(rows, longest, 1),  # its shape alone is looked at
            mask[:, None, None],
            cross,
            lengths,
            written=True,
        )
        return logits[:, 0]

    def _run(
        self,
        tokens: Tensor,
        hidden: Tensor,
        mask: Tensor,
        cross: _Cross,
        lengths: Sequence[int],
        *,
        written: bool,
    ) -> Tensor:
        caches = _Caches(
            _Self(self.own, self.layout), cross, written=written, layers=len(self.layers)
        )
        given: dict[str, Any] = {self._name: caches}
        if self.masked:
            ends = torch.tensor(lengths, device=self.device)[:, None]
            hidden_places = torch.arange(hidden.shape[1], device=self.device)[None] >= ends
            given["attention_mask"] = self._additive(hidden_places)[:, None, None].expand(
                -1, 1, tokens.shape[1], -1
            )
        logits: Tensor = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            decoder_input_ids=tokens.to(self.device),
            decoder_attention_mask=mask,
            use_cache=True,
            **given,
        ).logits
        return logits

    def _additive(self, hidden: Tensor) -> Tensor:
        zeros = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        return zeros.masked_fill_(hidden, torch.finfo(self.dtype).min)


def _parameters(model: Any) -> frozenset[str]:
    from inspect import signature

    return frozenset(signature(model.forward).parameters)
