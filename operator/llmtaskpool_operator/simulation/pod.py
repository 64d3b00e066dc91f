"""One pod of the event simulation: its step clock, what it runs, its place in line. Pure."""

from __future__ import annotations

from collections import deque
from math import inf

from llmtaskpool_worker.scheduling.latency_guard import LatencyGuard

FULL = 1 << 40
"""The load of a pod that takes nothing."""
PREFILL_LOAD = 8
"""A prompt that is not through counts as so many decoding sequences more in placement."""


class Pod:
    """One pod. ``k`` is its step clock at time ``at``, ``period`` the seconds per step now.

    ``prefill_step``: the seconds that the prompt at the head adds to each step. ``gpu_busy`` and
    ``sm_activity`` are of the last scrape; ``busy_seconds`` and ``sm_seconds`` since then.
    """

    __slots__ = (
        "activity",
        "arrived",
        "asked_at",
        "at",
        "batch",
        "busy_seconds",
        "done_work",
        "draining",
        "finishes",
        "gone_at",
        "gpu_busy",
        "guard",
        "k",
        "k_seen",
        "kv",
        "name",
        "period",
        "prefill_end",
        "prefill_step",
        "prefilling",
        "prefills",
        "ready",
        "ready_at",
        "running",
        "sm_activity",
        "sm_seconds",
        "threads",
        "threads_cap",
    )

    def __init__(self, name: str, asked_at: float, ready_at: float, threads: int) -> None:
        self.name, self.asked_at, self.ready_at, self.gone_at = name, asked_at, ready_at, inf
        self.ready = self.draining = False
        self.k = self.k_seen = 0.0
        self.at = ready_at
        self.period = inf
        self.activity = 0.0
        self.batch = self.running = self.kv = 0
        self.finishes: list[tuple[float, int]] = []
        self.prefills: deque[int] = deque()
        self.prefilling = -1
        self.prefill_end = inf
        self.prefill_step = 0.0
        self.threads = self.threads_cap = threads
        self.guard: LatencyGuard | None = None
        self.sm_seconds = self.busy_seconds = 0.0
        self.sm_activity: float | None = None
        self.gpu_busy: float | None = None
        self.arrived = self.done_work = 0.0

    def settle(self, now: float) -> None:
        """Bring the clock and the integrals to ``now``; no event lies between."""
        passed = now - self.at
        if passed > 0:
            self.k += passed / self.period
            self.sm_seconds += passed * self.activity
            if self.running:
                self.busy_seconds += passed
            self.at = now

    def load(self) -> int:
        """Its place in line for arrivals: less is sooner, FULL takes none."""
        if self.running >= self.threads:
            return FULL
        return self.running + PREFILL_LOAD * (len(self.prefills) + (self.prefilling >= 0))
