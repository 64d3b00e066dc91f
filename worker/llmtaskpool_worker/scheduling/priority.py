"""P = W / T: who goes first, and the bound on waiting.

Weighted shortest job first: running jobs in falling order of W / T gives the least sum of
weighted completion times on one machine (W. E. Smith, "Various optimizers for single-stage
production", Naval Research Logistics Quarterly 3, 1956). Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

SMALLEST_LOAD_SECONDS = 1e-6
"""T is never less: a task that seems free must not get an endless priority."""


class QueuePolicy(StrEnum):
    """The order of a queue.

    PRIORITY: falling P, ties by arrival; those that have waited ``ageing_seconds`` get a share of
    the thread-seconds, the oldest first (aged_share.py).

    NEWEST_FIRST: as PRIORITY until the oldest has waited ``ageing_seconds``; from then on (an
    overloaded queue, where the oldest have missed their time anyway) the newest goes first.
    """

    PRIORITY = "priority"
    NEWEST_FIRST = "newest-first"


def priority(weight: float, load_seconds: float) -> float:
    """P = W / T, W > 0 and T in thread-seconds."""
    return weight / max(load_seconds, SMALLEST_LOAD_SECONDS)


def order(weights: Sequence[float], loads_seconds: Sequence[float]) -> list[int]:
    """The indices of tasks from first to last by falling P, ties by arrival."""
    ranks = [priority(w, t) for w, t in zip(weights, loads_seconds, strict=True)]
    return sorted(range(len(ranks)), key=lambda i: (-ranks[i], i))


def aged(arrived_at: float, now: float, ageing_seconds: float) -> bool:
    """Whether a task has waited its bound, and has a part in the share of the aged."""
    return now - arrived_at >= ageing_seconds
