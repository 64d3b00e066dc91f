"""What an engine's process holds of what it should, and when it is to begin anew. Pure.

An engine beyond its budget is told to give back what it doesn't need. One that stays beyond it
leaks: it takes nothing new, what runs in it ends as it would have, then its process ends and starts
again. So nothing is lost by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmtaskpool_worker.contract import ModelMemory
from llmtaskpool_worker.engines.protocol import Memory

SETTLE_SECONDS = 10.0
"""So long after it was told to give back it may be beyond its budget."""


@dataclass(slots=True)
class EngineMemory:
    """Of one engine. ``parked``: generations that are put aside in its process."""

    own_bytes: int | None = None
    budget_bytes: int | None = None
    given_back_bytes: int = 0
    recycled: int = 0
    parked: int = 0
    leaving: bool = False
    """It takes nothing new, because it is to begin anew."""
    _over_since: float | None = None
    _stopped: bool = False

    def began(self, budget_bytes: int | None) -> None:
        """Its process is ready."""
        self.budget_bytes, self.own_bytes, self.parked = budget_bytes, None, 0
        self.leaving = self._stopped = False
        self._over_since = None

    def told(self, memory: Memory) -> None:
        """It said what it holds."""
        self.own_bytes = memory.own_bytes
        self.given_back_bytes += memory.given_back_bytes

    def look(self, now: float, in_flight: int) -> Literal["trim", "leave", "stop"] | None:
        """What it is to do: give back; take nothing new, which is done here; or end."""
        if self._stopped or self.own_bytes is None or self.budget_bytes is None:
            return None
        if self.leaving:
            return self._end(now, in_flight)
        if self.own_bytes <= self.budget_bytes:
            self._over_since = None
        elif self._over_since is None:
            self._over_since = now
            return "trim"
        elif now - self._over_since >= SETTLE_SECONDS:
            self.leaving = True
            return "leave"
        return None

    def _end(self, now: float, in_flight: int) -> Literal["stop"] | None:
        if in_flight:
            return None
        if self.parked:  # they can end only in this process: they go on first
            self.leaving, self._over_since = False, now
            return None
        self._stopped = True
        self.recycled += 1
        return "stop"

    def state(self) -> ModelMemory | None:
        """As others may see it; None before it has said anything."""
        if self.own_bytes is None and not self.recycled and not self.given_back_bytes:
            return None
        return ModelMemory(
            own_bytes=self.own_bytes,
            budget_bytes=self.budget_bytes,
            given_back_bytes_total=self.given_back_bytes,
            recycled_total=self.recycled,
        )
