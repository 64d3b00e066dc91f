"""Work of one step side by side on the cores of a CPU, each with rows of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from llmtaskpool_worker.engines.nice_steps import own_niceness

Rows = Sequence[Any]


class Cores:
    """As many parts of a batch as torch has threads, each run by one; on a GPU one part.

    A product over some thousand numbers is over before the last of several threads has begun: two
    cores that wait for each other at each operation of each layer do less than two that don't, on a
    busy machine by far (benchmarks/engines.md).
    """

    def __init__(self, device: torch.device) -> None:
        self.count = 1 if device.type != "cpu" else torch.get_num_threads()
        self._pools: dict[int, ThreadPoolExecutor] = {}
        """By how nice the step is: a thread is as nice as who made it, and stays so."""

    def run(
        self, rows: Rows, sizes: Sequence[int], run: Callable[[Rows], Sequence[Any]]
    ) -> list[Any]:
        """``run`` of all rows, in parts of about the same size."""
        if self.count == 1 or len(rows) == 1:
            return list(run(rows))
        parts: list[list[int]] = [[] for _ in range(min(self.count, len(rows)))]
        totals = [0] * len(parts)
        for place in sorted(range(len(rows)), key=lambda place: -sizes[place]):
            least = totals.index(min(totals))
            parts[least].append(place)
            totals[least] += sizes[place]

        def ran(part: list[int]) -> Sequence[Any]:
            with torch.inference_mode():
                return run([rows[place] for place in part])

        found: list[Any] = [None] * len(rows)
        for part, values in zip(parts, self._pool().map(ran, parts), strict=True):
            for place, value in zip(part, values, strict=True):
                found[place] = value
        return found

    def _pool(self) -> ThreadPoolExecutor:
        level = own_niceness()
        if level not in self._pools:
            # Their own count of threads is their own: the one that steps keeps all of them, for a
            # row that is alone.
            self._pools[level] = ThreadPoolExecutor(
                self.count, "one-pass", initializer=lambda: torch.set_num_threads(1)
            )
        return self._pools[level]
