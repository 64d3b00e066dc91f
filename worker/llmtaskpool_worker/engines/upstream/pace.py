"""How fast a server's streams go: samples of one step's seconds, from the gaps between tokens.

A stream's tokens come one a step, so its gap is the step of all streams that draw at that time. A
sample is the mean of SAMPLE_TOKENS gaps: packets join and part what was sent. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

SAMPLE_TOKENS = 8


class Sample(NamedTuple):
    """A step over ``streams`` took ``seconds``."""

    streams: int
    seconds: float


@dataclass(slots=True)
class _Stream:
    since: float
    tokens: int = 0
    streams: int = 0
    """Summed over its tokens, for a mean."""


class Pace:
    """The streams of one server that draw now."""

    def __init__(self) -> None:
        self._drawing: dict[int, _Stream] = {}

    def drew(self, stream: int, tokens: int, now: float) -> Sample | None:
        """A stream drew ``tokens`` at ``now``; a sample when it is time for one.

        The first ones begin it: what went before was the prompt.
        """
        known = self._drawing.get(stream)
        if known is None:
            self._drawing[stream] = _Stream(now)
            return None
        known.tokens += tokens
        known.streams += tokens * len(self._drawing)
        if known.tokens < SAMPLE_TOKENS:
            return None
        seconds = (now - known.since) / known.tokens
        streams = round(known.streams / known.tokens)
        self._drawing[stream] = _Stream(now)
        return Sample(streams, seconds) if seconds > 0 else None

    def left(self, stream: int) -> None:
        """A stream ended, however. Idempotent."""
        self._drawing.pop(stream, None)
