"""A fresh server gets few requests first, and twice as many each time these have told something.

How a server's steps grow with its batch (seats.py) can be learned only from batches that differ:
one that is full from its first second on tells of one size, and N stays at all that it has. So the
places that are used double from START, as soon as ENOUGH samples came from a batch about as large,
or as many requests have ended (short answers give no samples), or PATIENCE_SECONDS have passed in
which all were taken. This takes seconds, once, and only under load. Pure; seconds are of the
caller's clock.
"""

from __future__ import annotations

from dataclasses import dataclass

START = 4
ENOUGH = 16
NEARLY = 0.75
"""A batch of this share of the places tells of them."""
PATIENCE_SECONDS = 10.0


@dataclass(slots=True)
class Ramp:
    """``places`` may be used now."""

    places: int = START
    _samples: int = 0
    _ended: int = 0
    _full_since: float | None = None

    def measured(self, streams: int) -> None:
        """A step over so many streams was measured."""
        if streams >= NEARLY * self.places:
            self._samples += 1
            if self._samples >= ENOUGH:
                self._double()

    def ended(self, in_flight: int) -> None:
        """A request ended; ``in_flight`` counts it still."""
        if in_flight >= self.places:
            self._ended += 1
            if self._ended >= self.places:
                self._double()

    def look(self, in_flight: int, now: float) -> None:
        """Time has passed."""
        if in_flight < self.places:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = now
        elif now - self._full_since >= PATIENCE_SECONDS:
            self._double()

    def _double(self) -> None:
        self.places *= 2
        self._samples, self._ended, self._full_since = 0, 0, None
