"""Which sequences run, in which slots, and what they take. Pure: no torch.

A slot's number is a sequence's place among those that run; who leaves is replaced by the last.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from llmtaskpool_worker.engines.batching import Sequence

GRANULE = 64
"""Tokens by which caches grow."""


@dataclass(slots=True, eq=False)
class Writing(Sequence):
    """One sequence: ``tokens`` are the decoder's, its prefix first. ``source`` is what is read.

    ``size``: of the source, in what the encoder makes of it. ``most``: tokens that it may come to.
    """

    source: Any = None
    size: int = 0
    prefix: int = 1
    most: int = 0
    logprob: float = 0.0
    """Sum of the log-probabilities of what was drawn, where they are asked for."""
    notes: Any = None
    """What a kind of model keeps of it between steps."""


@dataclass(slots=True)
class Room:
    """What caches may take, in bytes; ``own`` and ``cross`` are bytes of a token in each."""

    budget: int
    own: int
    cross: int

    @property
    def tokens(self) -> int:
        """As many as fit, where both caches are as long."""
        return 2 * self.budget // max(1, self.own + self.cross)

    def fits(self, sequences: int, own: int, cross: int) -> bool:
        """Whether so many of these lengths do."""
        return sequences * (own * self.own + cross * self.cross) <= self.budget


@dataclass(slots=True)
class Writers:
    """Waiting, running and parked sequences. ``threads`` is N."""

    threads: int
    room: Room
    waiting: deque[Writing] = field(default_factory=deque)
    running: list[Writing] = field(default_factory=list)
    parked: dict[int, Writing] = field(default_factory=dict)

    def needed(self, extra: Writing | None = None) -> tuple[int, int]:
        """Lengths of both caches, in granules: a running one may come to all that it may write."""
        all_of = [*self.running, extra] if extra is not None else self.running
        own = max((one.most for one in all_of), default=0)
        cross = max((one.size for one in all_of), default=0)
        return granules(own), granules(cross)

    def ever_fits(self, one: Writing) -> bool:
        """Whether there is room for it when it is alone."""
        return self.room.fits(1, granules(one.most), granules(one.size))

    def admitted(self, budget: int) -> list[Writing]:
        """Those that begin now: as many as there is room for, and sources worth ``budget``.

        They run from now on, behind those that did.
        """
        begun: list[Writing] = []
        longest = 0
        while self.waiting and len(self.running) < self.threads:
            first = self.waiting[0]
            longest = max(longest, first.size)
            fits = self.room.fits(len(self.running) + 1, *self.needed(first))
            if self.running and (not fits or (begun and longest * (len(begun) + 1) > budget)):
                break
            begun.append(self.waiting.popleft())
            self.running.append(begun[-1])
        return begun

    def find(self, request_id: int) -> int | None:
        """The slot in which a request runs."""
        return next((s for s, one in enumerate(self.running) if one.request.id == request_id), None)

    def leave(self, slot: int) -> int | None:
        """Take a sequence out; the slot whose sequence is to be moved to its place, if any."""
        last = len(self.running) - 1
        moved = self.running.pop()
        if slot == last:
            return None
        self.running[slot] = moved
        return last

    def take_waiting(self, request_id: int) -> Writing | None:
        """Take one out that has not begun."""
        for one in self.waiting:
            if one.request.id == request_id:
                self.waiting.remove(one)
                return one
        return None

    def filled(self) -> list[tuple[int, int]]:
        """Tokens of each running one in both caches; none of one that has not begun."""
        return [(one.filled, one.size if one.filled else 0) for one in self.running]


def granules(tokens: int) -> int:
    """The length of a cache for so many tokens."""
    return -(-max(tokens, 1) // GRANULE) * GRANULE
