"""What a model that translates or summarizes reads: token ids."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmtaskpool_worker.engines.memory_plan import no_step, row_bytes
from llmtaskpool_worker.engines.protocol import Admit, AdmitSound, FromEngine
from llmtaskpool_worker.engines.seq2seq.loop import Fault, PeakOf
from llmtaskpool_worker.engines.seq2seq.rules import Rules
from llmtaskpool_worker.engines.seq2seq.running import Writing
from llmtaskpool_worker.engines.weights import ModelRefused

PROBES = (256, 64)
"""Tokens of the texts over which is measured what a step holds."""
LEAST_TOKENS = 16
"""Of a text that must fit."""
log = logging.getLogger("llmtaskpool.engine")


class Texts:
    """A Reader of token ids. ``start``: the tokens that every answer begins with."""

    def __init__(
        self,
        *,
        about: dict[str, Any],
        rules: Rules,
        device: torch.device,
        pad: int,
        start: Sequence[int],
        context_length: int,
        most: int,
        budget: int,
        vocab_size: int,
    ) -> None:
        self.about, self.budget = about, budget
        self.context_length, self.most = context_length, most
        self._rules, self._device, self._pad = rules, device, pad
        self._start, self._vocab_size = list(start), vocab_size

    def taken(self, message: Admit | AdmitSound) -> Writing | Fault:
        """A sequence, or why it can't be run."""
        if isinstance(message, AdmitSound):
            return "wrong_model", "this model reads texts; it can't hear"
        size, prefix = len(message.prompt), list(message.prefix) or self._start
        if not size:
            return "empty_prompt", "the text has no tokens"
        if size > self.context_length:
            return "context_length_exceeded", (
                f"the text has {size} tokens and the model reads {self.context_length}; "
                "send it in parts"
            )
        if message.max_tokens < 1 or len(prefix) >= self.most:
            return "invalid_max_tokens", "max_tokens is below 1"
        named = [*message.prompt, *prefix, *message.stop_token_ids]
        named += [token for token, _ in message.logit_bias]
        if not 0 <= min(named) <= max(named) < self._vocab_size:
            return "token_out_of_range", f"a token id is not in 0 to {self._vocab_size - 1}"
        most = min(self.most, len(prefix) + message.max_tokens)
        return Writing(
            message, list(prefix), source=message.prompt, size=size, prefix=len(prefix), most=most
        )

    def sample(self) -> tuple[dict[str, Tensor], list[int]]:
        """Two texts of different lengths."""
        lengths = [9, 5]
        ids = torch.full((2, 9), self._pad)
        for row, size in enumerate(lengths):
            ids[row, :size] = 1 + torch.arange(size) * 11 % (self._vocab_size - 1)
        mask = torch.arange(9)[None] < torch.tensor(lengths)[:, None]
        return {
            "input_ids": ids.to(self._device),
            "attention_mask": mask.long().to(self._device),
        }, lengths

    @property
    def shortest(self) -> tuple[int, int]:
        """One granule of each."""
        return 1, 1

    def fit_into(self, room: int, peak_of: PeakOf) -> int:
        """See Reader: by a long text and a short one."""
        most = self.context_length
        sizes = {min(size, most) for size in PROBES}
        row = row_bytes({size: peak_of(self._probe(size), size) for size in sizes})
        longest = row.longest(room, most)
        if longest < (least := min(LEAST_TOKENS, most)):
            raise ModelRefused(no_step(row.of(least), room))
        if longest < most:
            log.warning("memory holds %d of %d tokens of a text", longest, most)
            self.context_length = longest
        self.budget = max(longest, min(self.budget, room // row.of(longest) * longest))
        return -(-self.budget // longest) * row.of(longest)

    def _probe(self, size: int) -> dict[str, Tensor]:
        ids = 1 + torch.arange(size)[None] * 11 % (self._vocab_size - 1)
        return {
            "input_ids": ids.to(self._device),
            "attention_mask": torch.ones_like(ids).to(self._device),
        }

    def fit_beside(self, _room: int) -> int:
        """Nothing: texts are there."""
        return 0

    def prepared(self, _writing: Writing, *, wait: bool) -> bool | Fault:  # noqa: ARG002
        """Always: a text is there as soon as its request is."""
        return True

    def given(self, sequences: Sequence[Writing]) -> dict[str, Tensor]:
        """Token ids, filled up, and which of them are no padding."""
        longest = max(one.size for one in sequences)
        ids = torch.full((len(sequences), longest), self._pad)
        mask = torch.zeros_like(ids)
        for row, one in enumerate(sequences):
            ids[row, : one.size] = torch.tensor(one.source)
            mask[row, : one.size] = 1
        return {"input_ids": ids.to(self._device), "attention_mask": mask.to(self._device)}

    def ruled(self, writing: Writing, logits: Tensor) -> Tensor:
        """By the rules of its generation_config.json."""
        return self._rules.ruled(writing.tokens, logits, first=writing.drawn == 0)

    def drawn(self, _writing: Writing, _token: int) -> bool:
        """All are told."""
        return True

    def ended(self, _writing: Writing) -> bool:
        """Always: a text has one part."""
        return True

    def conclusion(self, _writing: Writing) -> FromEngine | None:
        """Nothing: its tokens were told."""
        return None

    def put_aside(self, _writing: Writing) -> None:
        """Nothing is kept beside the sequence."""

    def forget(self, _writing: Writing) -> None:
        """Nothing is kept beside the sequence."""
