"""What a server delivers with so many requests in flight: stretches of time at one number.

A stretch begins when the number has changed, or with the one before. Its first tokens are passed
over: requests that came together have their prompts read together, and none of them draws. It is
over when each request has drawn about STRETCH_TOKENS on average.

Delivered are tokens. A prompt's are read many at once and cost less than those that are drawn:
PROMPT_SHARE of one, from what was measured of llama.cpp on a CPU (0.12) and is told of vLLM on GPUs
(0.06 at few requests, 0.3 at many). As long as prompts and answers keep their proportion any share
tells the same. Pure; seconds are of the caller's clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

PROMPT_SHARE = 0.125
SETTLE_TOKENS, STRETCH_TOKENS, LEAST_TOKENS = 8, 24, 2
"""Of each request on average: passed over, measured, and enough when it takes long."""
ANSWER_TOKENS = 8
"""A shorter answer counts as so many of those: it tells of its prompt."""
LEAST_SECONDS, LONG_SECONDS = 1.0, 10.0
"""A stretch is at least the one; after the other it needs only LEAST_TOKENS."""
STEADY = 0.2
"""A stretch is of one number as long as that stays within this share of its mean, or one."""
FRESH_RATE = 0.1
AWAY_SECONDS = 0.5
"""So long may it be further off: who ends and who follows are not there in one moment."""


class Stretch(NamedTuple):
    """With ``in_flight`` requests on average ``rate`` tokens a second were delivered."""

    in_flight: float
    rate: float


@dataclass(slots=True)
class Delivery:
    """Of one server."""

    _now: float = 0.0
    _in_flight: int = 0
    _base: int = 0
    """The number that the stretch began with."""
    _away_since: float | None = None
    _settling: bool = True
    _began: float = 0.0
    _area: float = 0.0
    """Of requests in flight over time, since it began."""
    _tokens: float = 0.0
    """Those that tell how far the stretch is."""
    _work: float = 0.0
    _fresh: float = 1.0
    """Of prompts the share that the server did not have in its cache, lately."""

    def count(self, in_flight: int, now: float) -> None:
        """So many requests are in flight from now on."""
        self._pass(now)
        was_another, self._in_flight = self._is_another(), in_flight
        if was_another:
            self._begin(settling=True)
        elif abs(in_flight - self._base) <= max(1.0, STEADY * self._base):
            self._away_since = None
        elif self._away_since is None:
            self._away_since = self._now

    def drew(self, tokens: float, now: float) -> Stretch | None:
        """Tokens of an answer came; a stretch when they end one."""
        return self._came(tokens, tokens, now)

    def ended(self, tokens: int, now: float) -> Stretch | None:
        """An answer of so many tokens, all of them told, has ended."""
        return self._came(max(0, ANSWER_TOKENS - tokens), 0.0, now)

    def read(self, tokens: float, now: float) -> Stretch | None:
        """A prompt was read; its answer begins."""
        return self._came(0.0, PROMPT_SHARE * self._fresh * tokens, now)

    def was_known(self, cached: int, tokens: int) -> None:
        """Of a prompt's ``tokens`` the server had so many in its cache."""
        if tokens > 0:
            fresh = max(0.0, 1 - cached / tokens)
            self._fresh += FRESH_RATE * (fresh - self._fresh)

    def answered_at_once(self, tokens: float, now: float) -> Stretch | None:
        """A request without an answer of tokens ended: what it took is that of its own."""
        return self._came(STRETCH_TOKENS / 2, PROMPT_SHARE * max(1.0, tokens), now)

    def _came(self, tokens: float, work: float, now: float) -> Stretch | None:
        self._pass(now)
        if self._is_another():
            self._begin(settling=True)
        self._tokens += tokens
        self._work += work
        each = self._tokens / max(1, self._base)
        seconds = now - self._began
        if self._settling:
            if each >= SETTLE_TOKENS or (seconds >= LONG_SECONDS and each >= LEAST_TOKENS):
                self._begin(settling=False)
            return None
        enough = LEAST_TOKENS if seconds >= LONG_SECONDS else STRETCH_TOKENS
        if each < enough or seconds < LEAST_SECONDS:
            return None
        found = Stretch(self._area / seconds, self._work / seconds)
        self._begin(settling=False)
        return found

    def _is_another(self) -> bool:
        """Whether the number has left that of the stretch."""
        away = self._away_since
        return away is not None and (not self._base or self._now - away >= AWAY_SECONDS)

    def _begin(self, *, settling: bool) -> None:
        self._settling, self._base, self._away_since = settling, self._in_flight, None
        self._began, self._area, self._tokens, self._work = self._now, 0.0, 0.0, 0.0

    def _pass(self, now: float) -> None:
        self._area += self._in_flight * max(0.0, now - self._now)
        self._now = max(now, self._now)
