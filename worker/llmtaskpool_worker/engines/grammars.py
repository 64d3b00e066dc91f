"""Answers that have to keep a grammar: which tokens may come next, by llguidance.

A matcher for each request follows what is drawn. Its mask is applied before the draw, so that no
answer breaks its grammar; one that is cut by max_tokens is only the beginning of one.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llmtaskpool_worker.engines.resident import give_back

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

log = logging.getLogger("llmtaskpool.engine")


class GrammarFailed(Exception):
    """The grammar can't be followed any further; its text has no words of the request."""


class Grammars:
    """Matchers of one model's running requests.

    ``folder`` has its tokenizer.json, ``vocab_size`` is the number of its logits. The tokenizer is
    read with the first grammar: it takes 0.2 s and 30 MiB, and many pools never need it.
    """

    def __init__(self, folder: Path, vocab_size: int, eos_token_ids: list[int]) -> None:
        self._make = partial(_tokenizer_of, folder, vocab_size, eos_token_ids)
        self._tokenizer: LLTokenizer | None = None
        self._matchers: dict[int, LLMatcher] = {}

    def mask(self, request_id: int, grammar: str, logits: Tensor) -> Tensor:
        """``logits`` (vocabulary) with minus infinity where the grammar has no way.

        Raises GrammarFailed.
        """
        if self._tokenizer is None:
            self._tokenizer = self._make()
        matcher = self._matchers.get(request_id)
        if matcher is None:
            from llguidance import LLMatcher

            matcher = self._matchers[request_id] = LLMatcher(self._tokenizer, grammar, log_level=0)
        allowed = matcher.compute_logit_bias()
        if matcher.is_error():
            raise GrammarFailed(str(matcher.stop_reason()))
        barred = torch.frombuffer(bytearray(allowed), dtype=torch.uint8) == 0
        return logits.masked_fill(barred.to(logits.device), float("-inf"))

    def drawn(self, request_id: int, token: int) -> bool:
        """A token was drawn; whether the answer is whole and nothing may follow.

        Raises GrammarFailed.
        """
        matcher = self._matchers[request_id]
        if not matcher.consume_token(token):
            raise GrammarFailed(str(matcher.stop_reason()))
        return matcher.is_stopped()

    def forget(self, request_id: int) -> None:
        """The request has ended."""
        self._matchers.pop(request_id, None)


def _tokenizer_of(folder: Path, vocab_size: int, eos_token_ids: list[int]) -> LLTokenizer:
    from llguidance import LLTokenizer  # 20 MiB

    try:
        text = (folder / "tokenizer.json").read_text()
        made = LLTokenizer(text, n_vocab=vocab_size, eos_token=eos_token_ids)
    except (OSError, ValueError, RuntimeError) as error:
        log.warning("no structured output: %s", type(error).__name__)
        raise GrammarFailed("this model's tokenizer can't be read for it") from None
    give_back()
    return made
