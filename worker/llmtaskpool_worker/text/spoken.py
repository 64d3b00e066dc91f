"""What was said in a file of sound, as it grows and as a whole. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

from llmtaskpool_worker.scheduling.task import Evaluated, TextDelta, TokenLogprob, Transcribe
from llmtaskpool_worker.text.generated import Detokenizes


def _compression(text: str) -> float:
    """How much shorter zlib makes it: what is repeated over and over has a high number."""
    plain = text.encode()
    return round(len(plain) / len(zlib.compress(plain)), 4) if plain else 0.0


class SpokenText:
    """The text of one file. Tokens from ``text_below`` on are times and languages, and no text.

    ``decode`` makes a text of tokens.
    """

    stopped = False
    """There are no stop strings in what somebody says."""

    def __init__(
        self,
        payload: Transcribe,
        detokenizer: Detokenizes,
        decode: Callable[[Sequence[int]], str],
        text_below: int,
    ) -> None:
        self._payload, self._detokenizer, self._decode = payload, detokenizer, decode
        self._text_below = text_below
        self.tokens = 0
        self._untold: list[int] = []

    def push(self, token: int, _logprob: TokenLogprob | None) -> TextDelta | None:
        """Take in one token; the text that became certain, if any did."""
        self.tokens += 1
        if token >= self._text_below:
            return None
        self._untold.append(token)
        return self._delta(self._detokenizer.push(token))

    def finish(self) -> TextDelta | None:
        """The text that was held back, once no token follows."""
        return self._delta(self._detokenizer.finish())

    def concluded(self, values: Sequence[Any]) -> Evaluated:
        """The whole: ``values`` are the language's code and of each part [start, end, tokens,
        mean log-probability]."""
        language, parts = values
        segments = [
            {
                "id": number,
                "start": round(start, 2),
                "end": round(end, 2),
                "text": self._text(tokens),
                "tokens": list(tokens),
                "temperature": self._payload.temperature,
                "avg_logprob": logprob,
                "compression_ratio": _compression(self._text(tokens)),
            }
            for number, (start, end, tokens, logprob) in enumerate(parts)
        ]
        value = {
            "text": "".join(one["text"] for one in segments).strip(),
            "language": language,
            "duration": round(self._payload.seconds, 3),
            "segments": segments,
        }
        return Evaluated(value, self._payload.size)

    def _text(self, tokens: Sequence[int]) -> str:
        return self._decode([token for token in tokens if token < self._text_below])

    def _delta(self, text: str) -> TextDelta | None:
        if not text:
            return None
        told, self._untold = tuple(self._untold), []
        return TextDelta(text, told)
