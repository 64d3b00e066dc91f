"""Which files of sound are unpacked now: as many as memory holds, in the order they came. Pure.

A file of some hundred kilobytes may hold half an hour, which is a gigabyte on its way to what a
model hears.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(slots=True)
class Unpacking:
    """``room``: bytes for all files at once; ``second_bytes``: what a second of one takes.

    Without a room all are unpacked as they come.
    """

    room: int | None = None
    second_bytes: int = 0
    _held: dict[int, float] = field(default_factory=dict)
    _waiting: dict[int, float] = field(default_factory=dict)

    @property
    def longest(self) -> float:
        """Seconds of the longest file that memory holds."""
        return math.inf if self.room is None else self.room / max(1, self.second_bytes)

    def come(self, number: int, seconds: float) -> list[int]:
        """A file has come; those whose turn it is now."""
        self._waiting[number] = seconds
        return self._begun()

    def leave(self, number: int) -> list[int]:
        """A file is no longer wanted, or not now; those whose turn it is now."""
        self._waiting.pop(number, None)
        self._held.pop(number, None)
        return self._begun()

    def _begun(self) -> list[int]:
        begun = []
        while self._waiting:
            number, seconds = next(iter(self._waiting.items()))
            if self._held and sum(self._held.values()) + seconds > self.longest:
                break
            self._held[number] = self._waiting.pop(number)
            begun.append(number)
        return begun
