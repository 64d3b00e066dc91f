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
        self._stops = StopMatcher(payload.stop)
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._told = 0
        self.cached_tokens = 0
        """Of the prompt, as the engine told when it began."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string came: nothing after it belongs to the answer."""
        return self._stops.stopped

    @property
    def tokens(self) -> int:
        """Tokens drawn so far."""
        return len(self._tokens)

    def push(self, token: int, logprob: TokenLogprob | None) -> TextDelta | None:
        """Take in one token; the text that became certain, if any did."""
        self._tokens.append(token)
        if logprob is not None:
            self._logprobs.append(logprob)
        return self._delta(self._stops.push(self._detokenizer.push(token)))

    def finish(self) -> TextDelta | None:
        """The text that was held back, and log-probabilities not told, once no token follows."""
        rest = self._stops.push(self._detokenizer.finish())
        text = rest + self._stops.finish()
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
        since, self._told = self._told, len(self._tokens)
        logprobs = tuple(self._logprobs[since:]) if self._logprobs else ()
        return TextDelta(text, tuple(self._tokens[since:]), logprobs)
