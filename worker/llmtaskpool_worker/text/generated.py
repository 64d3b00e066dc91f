"""From an engine's tokens to the text a client sees: detokenized, cut at stop strings."""

from __future__ import annotations

from typing import Protocol

from llmtaskpool_worker.scheduling.task import (
    FinishReason,
    Generate,
    Generated,
    TextDelta,
    TokenLogprob,
)
from llmtaskpool_worker.text.tokens import StopMatcher


class Detokenizes(Protocol):
    """An incremental detokenizer (tokens.Detokenizer)."""

    def push(self, token: int) -> str:
        """Text that became certain with this token."""

    def finish(self) -> str:
        """What is left."""


class GenerationText:
    """The answer of one generation as it grows."""

    def __init__(self, payload: Generate, detokenizer: Detokenizes) -> None:
        self._prompt_tokens = len(payload.prompt)
        self._detokenizer = detokenizer
        self._stops = StopMatcher(payload.stop) if payload.stop else None
        self.stopped = False
        """Whether a stop string came: nothing after it belongs to the answer."""
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._told = 0
        self.cached_tokens = 0
        """Of the prompt, as the engine told when it began."""

    @property
    def tokens(self) -> int:
        """Tokens drawn so far."""
        return len(self._tokens)

    def push(self, token: int, logprob: TokenLogprob | None) -> TextDelta | None:
        """Take in one token; the text that became certain, if any did."""
        self._tokens.append(token)
        if logprob is not None:
            self._logprobs.append(logprob)
        text = self._detokenizer.push(token)
        if self._stops is not None:
            text = self._stops.push(text)
            self.stopped = self._stops.stopped
        return self._delta(text) if text else None

    def finish(self) -> TextDelta | None:
        """The text that was held back, and log-probabilities not told, once no token follows."""
        text = self._detokenizer.finish()
        if self._stops is not None:
            text = self._stops.push(text) + self._stops.finish()
            self.stopped = self._stops.stopped
        return self._delta(text, even_without_text=self._told < len(self._logprobs))

    def result(self, reason: FinishReason) -> Generated:
        """The whole answer."""
        return Generated(
            text="".join(self._text),
            tokens=tuple(self._tokens),
            prompt_tokens=self._prompt_tokens,
            finish_reason=reason,
            logprobs=tuple(self._logprobs),
            cached_tokens=self.cached_tokens,
        )

    def _delta(self, text: str, *, even_without_text: bool = False) -> TextDelta | None:
        if not text and not even_without_text:
            return None
        self._text.append(text)
        tokens, since = self._tokens, self._told
        self._told = len(tokens)
        logprobs = tuple(self._logprobs[since:]) if self._logprobs else ()
        new = (tokens[-1],) if since == len(tokens) - 1 else tuple(tokens[since:])
        return TextDelta(text, new, logprobs)
