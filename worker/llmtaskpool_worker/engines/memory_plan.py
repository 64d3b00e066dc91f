"""What memory an engine plans with, from what was measured; what can never fit is told at once.

Pure. Of a decoder: weights and what else a process holds (measured once it has loaded), its cache
(what one token takes, measured, times as many as there is room for), and what a step holds for a
moment (measured over a probe).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CACHE_SHARE = 0.5
"""Of the memory that is free after loading, what the cache may grow to."""
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
        f"{gigabytes(most)}: give the container more memory, or name a smaller model"
    )


def no_room(needed: int, left: int) -> str:
    """Why a model that is loaded can't answer anything."""
    return (
        f"there is no room for its cache: the shortest takes {megabytes(needed)}, and "
        f"{megabytes(max(0, left))} are left beside its weights: give the container more memory, "
        "raise memory_bytes or cache_bytes, or name a smaller model"
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
