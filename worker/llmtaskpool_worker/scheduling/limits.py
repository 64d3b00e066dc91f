"""The bounds a worker runs within: one frozen value, made by the settings, read by all rooms.

Pure: seconds are of the caller's monotonic clock, sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.scheduling.preemption import Preemption
from llmtaskpool_worker.scheduling.priority import QueuePolicy


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """One lane: N at start, the most N may become, and how much may wait."""

    threads: int
    threads_max: int
    queue_tasks: int = 10_000
    queue_bytes: int = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ResultLimits:
    """How long and how many tasks' results are kept for their owners to fetch.

    ``ttl_seconds`` after its end while at most half of the room is taken, down to
    ``ttl_least_seconds`` (brokers/retention.py); answers that were read at once can be looked at
    for ``ttl_least_seconds`` more.
    """

    tasks: int = 50_000
    bytes: int = 64 * 1024 * 1024
    ttl_seconds: float = 600.0
    ttl_least_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """All bounds of one worker.

    ``ageing_seconds`` is the ageing bound of priority.py; ``stall_seconds`` without a step while
    work runs makes the worker not alive, ``stall_kill_seconds`` restarts the engine.
    ``tpot_slo_seconds`` is the time per output token that the latency guard protects; None: the
    memory of the engine alone bounds N.
    """

    compute: LaneLimits = LaneLimits(threads=8, threads_max=256)
    io: LaneLimits = LaneLimits(threads=32, threads_max=1024)
    policy: QueuePolicy = QueuePolicy.PRIORITY
    ageing_seconds: float = 300.0
    queue_timeout_seconds: float = 600.0
    run_timeout_seconds: float = 3600.0
    max_attempts: int = 3
    stall_seconds: float = 60.0
    stall_kill_seconds: float = 120.0
    trim_idle_seconds: float = 30.0
    tpot_slo_seconds: float | None = None
    preemption: Preemption = field(default_factory=Preemption)
    results: ResultLimits = field(default_factory=ResultLimits)

    def lane(self, name: LaneName) -> LaneLimits:
        """The limits of lane ``name``."""
        return self.compute if name is LaneName.COMPUTE else self.io
