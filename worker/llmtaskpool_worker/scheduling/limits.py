"""The bounds a worker runs within: one frozen value, made by the settings, read by all rooms.

Pure: seconds are of the caller's monotonic clock, sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.scheduling.aged_share import DEFAULT_AGED_SHARE
from llmtaskpool_worker.scheduling.preemption import Preemption
from llmtaskpool_worker.scheduling.priority import QueuePolicy
from llmtaskpool_worker.scheduling.tenants import Tenants

DEAD_FACTOR = 2.0
"""A killed engine has as long again to be gone before the whole worker is given up."""


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

    ``ageing_seconds`` and ``aged_share`` are those of aged_share.py. ``queue_timeout_seconds``
    bounds the wait of a task whose client waits with it, ``task_queue_timeout_seconds`` that of
    one whose result is fetched later. The clocks of an engine that stands
    still while work runs: after ``stall_seconds`` it is told and the worker is unready, after
    ``stall_kill_seconds`` the engine is killed and starts anew, and only after ``dead_seconds``,
    when the kill has not helped, is the worker not alive and may be ended as a whole. An engine at
    rest is asked for a sign of life each ``ping_seconds``, and the same clocks run until it comes;
    one that loads gives them by itself, and is killed after ``load_silent_seconds`` without any.
    ``tpot_slo_seconds`` is the time per output token that the latency guard protects; None: the
    memory of the engine alone bounds N.
    """

    compute: LaneLimits = LaneLimits(threads=8, threads_max=256)
    io: LaneLimits = LaneLimits(threads=32, threads_max=1024)
    policy: QueuePolicy = QueuePolicy.PRIORITY
    ageing_seconds: float = 300.0
    aged_share: float = DEFAULT_AGED_SHARE
    queue_timeout_seconds: float = 600.0
    task_queue_timeout_seconds: float = 86_400.0
    run_timeout_seconds: float = 3600.0
    max_attempts: int = 3
    stall_seconds: float = 10.0
    stall_kill_seconds: float = 30.0
    ping_seconds: float = 5.0
    load_silent_seconds: float = 120.0
    trim_idle_seconds: float = 30.0
    tpot_slo_seconds: float | None = None
    preemption: Preemption = field(default_factory=Preemption)
    tenants: Tenants = field(default_factory=Tenants)
    results: ResultLimits = field(default_factory=ResultLimits)

    @property
    def dead_seconds(self) -> float:
        """Without a step for so long although the engine was killed, the worker is not alive."""
        return DEAD_FACTOR * self.stall_kill_seconds

    def lane(self, name: LaneName) -> LaneLimits:
        """The limits of lane ``name``."""
        return self.compute if name is LaneName.COMPUTE else self.io
