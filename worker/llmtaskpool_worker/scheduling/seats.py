"""How many requests may be in flight at a server that batches them itself.

N is what the server is best with, as it is learned from what it delivers (delivery.py, knee.py,
climb.py), and within what it or its owner says that it holds. A server that turned a request away
(429, 503), put one aside (a preemption), or whose cache is nearly full has more than it can take: N
falls by a fifth, and is won back by one every 10 seconds (engines.md, section 4: 1,065 preemptions
cost 5 % of the tokens and doubled the slow ones' gaps). Pure; seconds are of the caller's clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import floor, inf

from llmtaskpool_worker.scheduling.climb import Climb
from llmtaskpool_worker.scheduling.delivery import Delivery, Stretch
from llmtaskpool_worker.scheduling.reserve import KEPT_SECONDS, beyond, kept

KEEP_OF_A_CUT = 0.8
BACK_SECONDS = 10.0
CUT_PAUSE_SECONDS = 5.0
"""What was in flight at a cut may be turned away too: that is the same news."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 5.0
"""A server that turns away although nothing is in flight is asked again after so long."""
CACHE_FULL = 0.9


@dataclass(slots=True)
class Seats:
    """The bound of one server: ``most`` is what it or its owner says that it holds."""

    most: int
    turned_away: int = 0
    """Requests that it did not take, since the start."""
    delivery: Delivery = field(default_factory=Delivery)
    climb: Climb = field(default_factory=Climb)
    _urgent_at: float = -inf
    _yielding_at: float = -inf
    _cap: int | None = None
    _cap_at: float = -inf
    _cut_at: float = -inf
    _paused_until: float = -inf
    _in_a_row: int = 0

    def limit(self, now: float) -> int:
        """N now, at least 1: what the server is best with, as far as that is known."""
        places = self._places(now)
        return self._for_all(places if self.climb.doubling else self.climb.home, places, now)

    def open(self, now: float) -> int:
        """The most in flight now: less than N while N is learned, more when more is tried."""
        return self._for_all(self.climb.wanted, self._places(now), now)

    def with_urgent(self, limit: int, now: float) -> int:
        """The most in flight when urgent ones are among them; ``limit`` is N."""
        return max(limit, min(limit + beyond(limit), self._places(now)))

    def urgent_came(self, now: float) -> None:
        """An urgent request found none of the N places free."""
        self._urgent_at = now

    def urgent_lately(self, now: float) -> bool:
        """Whether one came in the last KEPT_SECONDS."""
        return now - self._urgent_at < KEPT_SECONDS

    def yielding_came(self, now: float) -> None:
        """One began that says of itself that ordinary ones may go before it."""
        self._yielding_at = now

    def take_in(self, stretch: Stretch | None, threads: int, now: float) -> None:
        """Learn from what it delivered; ``threads``: N of the lane, which may be less."""
        if stretch is not None:
            self.climb.take_in(stretch, max(1, self.most), threads, now)

    def _for_all(self, wanted: int, places: int, now: float) -> int:
        """So many of ``wanted`` may be any requests: some places are kept for urgent ones."""
        back = 0
        if self.urgent_lately(now):
            back = kept(places)
        elif now - self._yielding_at < KEPT_SECONDS:
            back = min(1, kept(places))
        return max(1, min(wanted, places - back))

    def _places(self, now: float) -> int:
        """What the server has, or can take now that it had too much."""
        most = max(1, self.most)
        if self._cap is not None:
            back = floor((now - self._cap_at) / BACK_SECONDS)
            if back > 0:
                self._cap += back
                self._cap_at += back * BACK_SECONDS
            if self._cap >= most:
                self._cap = None
            else:
                most = self._cap
        return most

    def paused(self, now: float) -> bool:
        """Whether nothing is to be sent just now."""
        return now < self._paused_until

    def cut(self, in_flight: int, now: float) -> None:
        """The server has more than it can take: N falls by a fifth of what is in flight."""
        if now - self._cut_at < CUT_PAUSE_SECONDS:
            return
        self._cut_at = self._cap_at = now
        kept = floor(KEEP_OF_A_CUT * min(in_flight, self._cap or in_flight))
        self._cap = max(1, kept)

    def hold(self, most: int, now: float) -> None:
        """No more than these are to be in flight: the server lets others wait."""
        if self._cap is None or most < self._cap:
            self._cap, self._cap_at = max(1, most), now

    def refused(self, in_flight: int, retry_after_seconds: float | None, now: float) -> None:
        """A request was turned away; ``in_flight`` counts it no longer."""
        self.turned_away += 1
        self.cut(in_flight + 1, now)
        if in_flight and retry_after_seconds is None:
            return  # those who run make room when they end
        pause = min(FIRST_PAUSE_SECONDS * 2.0 ** min(self._in_a_row, 8), LONGEST_PAUSE_SECONDS)
        if retry_after_seconds is not None:
            pause = min(max(pause, retry_after_seconds), 2 * LONGEST_PAUSE_SECONDS)
        self._in_a_row += 1
        self._paused_until = max(self._paused_until, now + pause)

    def took(self) -> None:
        """The server took a request."""
        self._in_a_row = 0
