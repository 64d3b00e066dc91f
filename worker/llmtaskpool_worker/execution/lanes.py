"""Lanes: N threads each, a queue of their own, resized while they run.

A lane of engines takes a thread for each running sequence; a lane of calls for each running
handler. Shrinking N stops nobody: fewer are started until enough have ended.

A place belongs to a run and not to a task: a task can end (cancelled, timed out) while its engine
or its thread is still at work for it, and a task that runs again has a run of its own. A run's
place is free once the engine or the handler has really let go of it, and not before.
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
        self.running: dict[int, str] = {}
        """Run to task id: what engines and handlers are really at work for."""
        self.queue = TaskQueue(
            load=load,
            max_tasks=self.limits.queue_tasks,
            max_bytes=self.limits.queue_bytes,
            ageing_seconds=limits.ageing_seconds,
            policy=limits.policy,
            aged_share=limits.aged_share,
        )

    @property
    def free_threads(self) -> int:
        """How many more tasks may start; never below 0, also after N was lowered."""
        return max(0, self.threads - len(self.running))

    def began(self, run: int, task_id: str) -> None:
        """A run takes a place. Raises ValueError when it has one."""
        if run in self.running:
            raise ValueError(f"run {run} runs already")
        self.running[run] = task_id

    def left(self, run: int) -> None:
        """The engine or the handler has let go of a run: its place is free. Idempotent."""
        self.running.pop(run, None)

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
