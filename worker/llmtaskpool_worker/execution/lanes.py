"""Lanes: N threads each, a queue of their own, resized while they run.

A lane of engines takes a thread for each running sequence; a lane of calls for each running
handler. Shrinking N stops nobody: fewer are started until enough have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from llmtaskpool_worker.contract import LaneName, LaneState
from llmtaskpool_worker.scheduling.limits import Limits
from llmtaskpool_worker.scheduling.task_queue import TaskQueue


class Lane:
    """One lane: its queue, its N and who runs in it."""

    def __init__(self, name: LaneName, limits: Limits, load: Callable[[Hashable], float]) -> None:
        self.name = name
        self.limits = limits.lane(name)
        self.threads = self.limits.threads
        self.running: set[str] = set()
        self.queue = TaskQueue(
            load=load,
            max_tasks=self.limits.queue_tasks,
            max_bytes=self.limits.queue_bytes,
            ageing_seconds=limits.ageing_seconds,
            policy=limits.policy,
        )

    @property
    def free_threads(self) -> int:
        """How many more tasks may start; never below 0, also after N was lowered."""
        return max(0, self.threads - len(self.running))

    def resize(self, threads: int, cap: int) -> int:
        """Set N, at least 1 and at most what the lane can use; returns N in force."""
        self.threads = max(1, min(threads, cap))
        return self.threads

    def state(self, cap: int, now: float) -> LaneState:
        """The lane as the operator reads it."""
        oldest = self.queue.oldest_arrival()
        return LaneState(
            threads=self.threads,
            threads_cap=cap,
            active=len(self.running),
            queued=len(self.queue),
            queue_limit=self.limits.queue_tasks,
            oldest_wait_seconds=0.0 if oldest is None else max(0.0, now - oldest),
        )
