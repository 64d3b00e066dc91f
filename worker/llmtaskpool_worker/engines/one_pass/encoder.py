"""An encoder over rows of token ids: checked, padded or packed, run once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llmtaskpool_worker.engines.linear import pack_linears
from llmtaskpool_worker.engines.memory_plan import RowBytes, no_step, row_bytes
from llmtaskpool_worker.engines.one_pass.cores import Cores
from llmtaskpool_worker.engines.one_pass.head import Fault, Message
from llmtaskpool_worker.engines.one_pass.packing import pack
from llmtaskpool_worker.engines.protocol import AdmitEmbedding
from llmtaskpool_worker.engines.weights import ModelRefused

log = logging.getLogger("llmtaskpool.engine")

STEP_TOKENS = 1024
"""Tokens of a step for each core: what they bring about stays in its caches, and others get a
turn soon."""
STEP_TOKENS_CUDA = 16_384
Ids = NDArray[np.int64]
PROBES = (256, 64)
"""Tokens of the rows over which is measured what a step holds. What grows with the square of a row
shows in the first; a model of 300 M numbers takes a second or two for it."""
LEAST_TOKENS = 16
"""Of a text that must fit: a model that can't read so much is of no use to anybody."""


@dataclass(frozen=True, slots=True)
class Row:
    """A text, or two: the second one's tokens are from ``second`` to ``end``."""

    tokens: Ids
    second: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a model takes: tokens of a row, and the ids that it knows."""

    context_length: int
    vocab_size: int

    def rows(self, message: Message) -> list[Row] | Fault:
        """The rows of a request, or why one of them can't be run."""
        if isinstance(message, AdmitEmbedding):
            rows = [Row(np.array(message.tokens, dtype=np.int64))]
        else:
            rows = [
                Row(np.frombuffer(text.tokens, "<u4").astype(np.int64), text.second, text.end)
                for text in message.texts
            ]
        if not rows:
            return Fault("empty_prompt", "there is no text")
        return next((fault for row in rows if (fault := self._fault(row))), rows)

    def _fault(self, row: Row) -> Fault | None:
        size = len(row.tokens)
        if not size:
            return Fault("empty_prompt", "the text has no tokens")
        if size > self.context_length:
            return Fault(
                "context_length_exceeded",
                f"the text has {size} tokens and the model takes {self.context_length}; "
                "split the text",
            )
        if not 0 <= row.tokens.min() <= row.tokens.max() < self.vocab_size:
            return Fault("token_out_of_range", f"a token id is not in 0 to {self.vocab_size - 1}")
        if not 0 <= row.second <= row.end <= size:
            return Fault("token_out_of_range", "the second text is not within the row")
        return None


def padded(rows: Sequence[Row], pad_token_id: int) -> tuple[Ids, Ids, Ids]:
    """(texts, longest) of token ids, of what is no padding, and of which text a token is."""
    longest = max(len(row.tokens) for row in rows)
    ids = np.full((len(rows), longest), pad_token_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    types = np.zeros_like(ids)
    for place, row in enumerate(rows):
        size = len(row.tokens)
        ids[place, :size] = row.tokens
        mask[place, :size] = 1
        if row.second:
            types[place, row.second : size] = 1
    return ids, mask, types


class Reads(Protocol):
    """What a head over texts asks of the model below it. ``device`` and ``dtype``: to be told."""

    bounds: Bounds
    budget: int
    device: torch.device
    dtype: torch.dtype
    room: int | None

    def fit_into(self, room: int, peak_of: Callable[[Row], int]) -> int:
        """See Head. ``peak_of``: what a step over one row was measured to hold."""

    def needs(self, rows: Sequence[Row]) -> int:
        """See Head."""

    def cost(self, sizes: Sequence[int]) -> int:
        """Tokens that a batch of texts of these sizes is run as."""

    def run(self, rows: Sequence[Row]) -> tuple[Any, Tensor]:
        """What the model gives for (texts, longest), and the mask of what is no padding."""

    def side_by_side(
        self, rows: Sequence[Row], run: Callable[[Sequence[Row]], Sequence[Any]]
    ) -> list[Any]:
        """``run`` of all rows, each core with texts of its own where that is faster."""

    def beat_with(self, beat: Callable[[], None]) -> None:
        """Call ``beat`` while it runs from now on."""


class Fitted:
    """What is the same of all that read: which texts and steps fit into memory.

    ``packed``: no text is filled up to the length of another.
    """

    bounds: Bounds
    budget: int
    packed: bool
    room: int | None = None
    row_bytes: RowBytes = RowBytes(1.0)

    def cost(self, sizes: Sequence[int]) -> int:
        """Tokens that a batch of texts of these sizes is run as."""
        return sum(sizes) if self.packed else max(sizes) * len(sizes)

    def fit_into(self, room: int, peak_of: Callable[[Row], int]) -> int:
        """See Head. ``peak_of``: what a step over one row was measured to hold."""
        most = self.bounds.context_length
        sizes = {min(size, most) for size in PROBES}
        self.row_bytes = row_bytes({size: peak_of(_probe(size)) for size in sizes})
        longest = self.row_bytes.longest(room, most)
        if longest < min(LEAST_TOKENS, most):
            raise ModelRefused(no_step(self.row_bytes.of(min(LEAST_TOKENS, most)), room))
        if longest < most:
            log.warning("memory holds %d of %d tokens of a text", longest, most)
            self.bounds = replace(self.bounds, context_length=longest)
        whole, left = divmod(max(self.budget, longest), longest)
        fullest = whole * self.row_bytes.of(longest) + self.row_bytes.of(left)
        self.room = None if fullest <= room else room
        return min(fullest, room)

    def needs(self, rows: Sequence[Row]) -> int:
        """See Head."""
        sizes = [len(row.tokens) for row in rows]
        if self.packed:
            return sum(map(self.row_bytes.of, sizes))
        return self.row_bytes.of(max(sizes)) * len(sizes)


def _probe(size: int) -> Row:
    return Row(5 + 7 * np.arange(size, dtype=np.int64) % 11)


class Encoder(Fitted):
    """A model of transformers that takes token ids, and the bounds of what it takes.

    ``first``: of what the model gives, the part that is compared to see whether it can be packed.
    """

    def __init__(self, model: nn.Module, bounds: Bounds, *, first: Callable[[Any], Tensor]) -> None:
        config: Any = model.config
        self.bounds = bounds
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.types = int(getattr(config, "type_vocab_size", 0) or 0) > 1
        self.pad_token_id = int(config.pad_token_id or 0)
        self.layers = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
        pack_linears(model)
        self.model: Any = model
        self._pack_texts(first)
        self.cores = Cores(self.device)
        on_cpu = self.device.type == "cpu"
        self.budget = STEP_TOKENS * self.cores.count if on_cpu else STEP_TOKENS_CUDA

    def side_by_side(
        self, rows: Sequence[Row], run: Callable[[Sequence[Row]], Sequence[Any]]
    ) -> list[Any]:
        """``run`` of all rows, on a CPU each core with texts of its own."""
        return self.cores.run(rows, [len(row.tokens) for row in rows], run)

    def _pack_texts(self, first: Callable[[Any], Tensor]) -> None:
        def run(model: nn.Module) -> Callable[[Sequence[Sequence[int]]], list[Tensor]]:
            def ran(texts: Sequence[Sequence[int]]) -> list[Tensor]:
                rows = [Row(np.array(text, dtype=np.int64)) for text in texts]
                with torch.inference_mode():
                    found = first(self._run(model, rows)[0])
                return [one[: len(text)] for one, text in zip(found, texts, strict=True)]

            return ran

        self.model, self.packed = pack(self.model, run, (0, self.pad_token_id + 1))

    def run(self, rows: Sequence[Row]) -> tuple[Any, Tensor]:
        """What the model gives for (texts, longest), and the mask of what is no padding."""
        return self._run(self.model, rows)

    def _run(self, model: nn.Module, rows: Sequence[Row]) -> tuple[Any, Tensor]:
        ids, mask, types = padded(rows, self.pad_token_id)
        attended = torch.from_numpy(mask).to(self.device)
        given = {"token_type_ids": torch.from_numpy(types).to(self.device)} if self.types else {}
        out = model(
            input_ids=torch.from_numpy(ids).to(self.device), attention_mask=attended, **given
        )
        return out, attended

    def beat_with(self, beat: Callable[[], None]) -> None:
        """Call ``beat`` at each layer from now on."""
        for layers in self.layers:
            for layer in layers:
                layer.register_forward_pre_hook(lambda *_: beat())
