"""What a model's generation_config.json asks of each token, by transformers' own processors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
)


@dataclass(frozen=True, slots=True)
class Rules:
    """``each`` are asked for every token, ``begin`` are tokens that no answer begins with."""

    each: tuple[LogitsProcessor, ...]
    begin: tuple[int, ...]

    def ruled(self, tokens: Sequence[int], logits: Tensor, *, first: bool) -> Tensor:
        """(vocabulary,) after ``tokens``, the decoder's; ``first``: nothing was drawn yet."""
        if not self.each and not (first and self.begin):
            return logits
        scores = logits.float()[None]
        if self.each:
            ids = torch.tensor([tokens], device=logits.device)
            for rule in self.each:
                scores = rule(ids, scores)
        if first and self.begin:
            places = torch.tensor(self.begin, device=logits.device)
            scores = scores.index_fill(1, places, -math.inf)
        return scores[0]


def rules_of(asked: Any, eos: Sequence[int], device: torch.device) -> Rules:
    """The rules of a GenerationConfig, in the order in which transformers applies them."""
    each: list[LogitsProcessor] = []
    if (asked.repetition_penalty or 1.0) != 1.0:
        each.append(RepetitionPenaltyLogitsProcessor(penalty=asked.repetition_penalty))
    if asked.no_repeat_ngram_size:
        each.append(NoRepeatNGramLogitsProcessor(asked.no_repeat_ngram_size))
    if asked.bad_words_ids:
        each.append(NoBadWordsLogitsProcessor(asked.bad_words_ids, torch.tensor(list(eos))))
    if asked.min_length and eos:
        each.append(MinLengthLogitsProcessor(asked.min_length, list(eos), device=str(device)))
    if asked.suppress_tokens:
        each.append(SuppressTokensLogitsProcessor(asked.suppress_tokens, device=str(device)))
    return Rules(tuple(each), tuple(asked.begin_suppress_tokens or ()))
