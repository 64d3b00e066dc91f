"""What memory an engine plans with, from what was measured; what can never fit is told at once.

Pure. Of all engines: weights and what else a process holds (measured once it has loaded), and what
a step holds for a moment (measured over probes: of a row of tokens, a picture, a row of a table).
Of those that write also the cache: what one token takes, measured, times as many as there is room
for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CACHE_SHARE = 0.5
"""Of the memory that is free after loading, what the cache may grow to; or, where nothing is
cached, what a step may hold."""
SPARE_BYTES, SPARE_SHARE = 512 << 20, 0.25
"""What a process may hold beyond its plan, at least and of what it held when it had loaded: holes
in its heap, grammars, requests. An engine beyond it leaks."""


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes: of the process when it has loaded, free on its device then, and of a step."""

    own: int
    free: int
    step: int
    on_gpu: bool = False


def cache_budget(options: Mapping[str, Any], held: Held) -> int:
    """Bytes for the cache; none or fewer where there is no room.

    ``options``: ``cache_bytes`` says it; ``memory_bytes`` is the most for all of the engine;
    ``memory_share`` is its part of the machine beside other engines.
    """
    if (told := options.get("cache_bytes")) is not None:
        return int(told)
    most = int(held.free * CACHE_SHARE * float(options.get("memory_share", 1)))
    if (whole := options.get("memory_bytes")) is None or held.on_gpu:
        return most
    return min(most, int(whole) - held.own - held.step)


def step_room(options: Mapping[str, Any], held: Held) -> int:
    """Bytes that a step may hold for a moment, where nothing is cached; ``options`` as above.

    ``held.step`` isn't looked at: it is what is to be found out.
    """
    most = int(held.free * CACHE_SHARE * float(options.get("memory_share", 1)))
    if (whole := options.get("memory_bytes")) is None or held.on_gpu:
        return most
    return min(most, int(whole) - held.own)


@dataclass(frozen=True, slots=True)
class RowBytes:
    """What a step holds of a row of n tokens: ``each`` x n + ``pairs`` x n^2 bytes.

    The second part is of attention that compares every token with every other.
    """

    each: float
    pairs: float = 0.0

    def of(self, tokens: int) -> int:
        """Bytes of a row of so many."""
        return math.ceil(self.each * tokens + self.pairs * tokens * tokens)

    def longest(self, room: int, most: int) -> int:
        """Tokens of the longest row that ``room`` bytes hold, at most ``most``.

        The positive root of pairs n^2 + each n = room, in the form that is exact for pairs = 0.
        """
        if room <= 0:
            return 0
        root = self.each + math.sqrt(self.each**2 + 4 * self.pairs * room)
        return min(most, int(2 * room / root))


def row_bytes(measured: Mapping[int, int]) -> RowBytes:
    """From what steps over one row were measured to hold: tokens to bytes, of one length or two.

    What the kernel did not tell (0) is taken for a byte a token.
    """
    (size, peak), *others = sorted(measured.items(), reverse=True)
    pairs = 0.0
    if others:
        ((shorter, less),) = others
        pairs = max(0.0, (peak / size - less / shorter) / (size - shorter))
    return RowBytes(max(1.0, peak / size - pairs * size), pairs)


def memory_budget(options: Mapping[str, Any], held: Held, cache_bytes: int) -> int:
    """What the process should hold at most. ``cache_bytes``: of a cache that lies in it."""
    if (whole := options.get("memory_bytes")) is not None:
        return int(whole)
    spare = max(SPARE_BYTES, int(held.own * SPARE_SHARE))
    return held.own + (0 if held.on_gpu else cache_bytes) + held.step + spare


def too_large(numbers: int, dtype: str, bytes_each: int, most: int | None) -> str | None:
    """Why weights of so many numbers never fit into ``most`` bytes; None where they do."""
    needed = numbers * bytes_each
    if most is None or needed <= most:
        return None
    return (
        f"its weights take {gigabytes(needed)} in {dtype}, and its engine may have "
        f"{gigabytes(most)}: give the container more memory, raise memory_bytes where it is set, "
        "or name a smaller model"
    )


def no_room(needed: int, left: int) -> str:
    """Why a model that is loaded can't answer anything."""
    return (
        f"there is no room for its cache: the shortest takes {megabytes(needed)}, and "
        f"{megabytes(max(0, left))} are left beside its weights: give the container more memory, "
        "raise memory_bytes or cache_bytes, or name a smaller model"
    )


def no_step(needed: int, left: int) -> str:
    """Why a model that is loaded can't run anything, where nothing is cached."""
    return (
        f"there is no room for a step: the least takes {megabytes(needed)}, and "
        f"{megabytes(max(0, left))} are left beside its weights: give the container more memory, "
        "raise memory_bytes, or name a smaller model"
    )


def held_context(context_length: int, budget_tokens: int, granule: int) -> int:
    """The longest context that memory holds for one sequence, at most the model's own."""
    return min(context_length, budget_tokens // granule * granule)


def gigabytes(count: int) -> str:
    """In words: 1.5 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else megabytes(count)


def megabytes(count: int) -> str:
    """In words: 1.5 MB."""
    return f"{count / 1e6:.1f} MB"
