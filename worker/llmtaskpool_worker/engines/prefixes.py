"""Whose keys and values are kept after they have left their slots, for who begins alike.

Pure: what is kept is known here by its tokens and a number; slot_cache.py holds it. The least
recently used goes first. A generation goes on as if it had computed all by itself: what is kept is
what the model made of exactly these tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_TOKENS = 16
"""A shorter beginning is computed as fast as it is copied."""
MOST_KEPT = 256
"""So many are compared with each new prompt: together under a millisecond."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Copy the first ``length`` cached tokens of a slot aside, as ``number``."""

    slot: int
    number: int
    length: int


@dataclass(frozen=True, slots=True)
class Load:
    """Copy the first ``length`` tokens that are kept as ``number`` into a slot."""

    number: int
    slot: int
    length: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Give back what is kept as ``number``."""

    number: int


class Prefixes:
    """Token sequences that are kept, in the order of their last use."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, NDArray[np.int32]] = OrderedDict()
        self._last_number = 0
        self.tokens = 0
        """How many are kept of all together."""

    def size(self, numbers: Iterable[int]) -> int:
        """Tokens that are kept under these numbers."""
        return sum(len(self._kept[number]) for number in numbers)

    def find(self, tokens: list[int]) -> Load | None:
        """What is kept of the longest common beginning, to be loaded into slot 0; it is used now.

        At least one token is left to compute: what follows is drawn from it.
        """
        wanted = np.array(tokens, dtype=np.int32)
        best, length = 0, LEAST_TOKENS - 1
        for number, kept in self._kept.items():
            common = min(_common(kept, wanted), len(wanted) - 1)
            if common > length:
                best, length = number, common
        if not best:
            return None
        self._kept.move_to_end(best)
        return Load(best, 0, length)

    def keep(self, slot: int, tokens: list[int], room: int) -> list[Keep | Drop]:
        """Keep what is cached of ``tokens`` in a slot, within ``room`` tokens of all.

        Shorter ones that begin it go for it; one that a longer one begins with is there already.
        """
        if len(tokens) < LEAST_TOKENS or len(tokens) > room:
            return []
        new = np.array(tokens, dtype=np.int32)
        covered = []
        for number, kept in self._kept.items():
            common = _common(kept, new)
            if common == len(new):
                self._kept.move_to_end(number)
                return []
            if common == len(kept):
                covered.append(number)
        changes: list[Keep | Drop] = [self._drop(number) for number in covered]
        while len(self._kept) >= MOST_KEPT:
            changes.append(self._drop(next(iter(self._kept))))
        changes += self.shrink(room - len(new))
        self._last_number += 1
        self._kept[self._last_number] = new
        self.tokens += len(new)
        return [*changes, Keep(slot, self._last_number, len(new))]

    def shrink(self, room: int, spare: Collection[int] = ()) -> list[Drop]:
        """Let go of the least recently used, but of none of ``spare``, until all fit."""
        drops: list[Drop] = []
        for number in list(self._kept):
            if self.tokens <= room:
                break
            if number not in spare:
                drops.append(self._drop(number))
        return drops

    def _drop(self, number: int) -> Drop:
        self.tokens -= len(self._kept.pop(number))
        return Drop(number)


def _common(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    """How many tokens both begin with."""
    shortest = min(len(one), len(other))
    differ = one[:shortest] != other[:shortest]
    first = int(differ.argmax()) if shortest else 0
    return first if shortest and differ[first] else shortest
