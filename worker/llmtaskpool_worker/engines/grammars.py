"""Answers that have to keep a grammar: which tokens may come next, by llguidance.

A matcher for each request follows what is drawn. Its mask is applied before the draw, so that no
answer breaks its grammar; one that is cut by max_tokens is only the beginning of one.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

log = logging.getLogger("llmtaskpool.engine")


class GrammarFailed(Exception):
    """The grammar can't be followed any further; its text has no words of the request."""


class Grammars:
    """Matchers of one model's running requests.

    ``tokenizer`` is the text of its tokenizer.json, ``vocab_size`` the number of its logits.
    """

    def __init__(self, tokenizer: str, vocab_size: int, eos_token_ids: list[int]) -> None:
        self._tokenizer = LLTokenizer(tokenizer, n_vocab=vocab_size, eos_token=eos_token_ids)
        self._matchers: dict[int, LLMatcher] = {}

    def mask(self, request_id: int, grammar: str, logits: Tensor) -> Tensor:
        """``logits`` (vocabulary) with minus infinity where the grammar has no way.

        Raises GrammarFailed.
        """
        matcher = self._matchers.get(request_id)
        if matcher is None:
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


def load_grammars(folder: Path, vocab_size: int, eos_token_ids: list[int]) -> Grammars | None:
    """Of the model in ``folder``; None where its tokenizer can't be read by llguidance."""
    try:
        text = (folder / "tokenizer.json").read_text()
        return Grammars(text, vocab_size, eos_token_ids)
    except (OSError, ValueError, RuntimeError) as error:
        log.warning("no structured output: %s", type(error).__name__)
        return None
