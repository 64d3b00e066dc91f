"""Lanes: N threads each, resized while they run, and what is claimed and waits for one.

A lane of engines takes a thread for each running sequence; a lane of calls for each running
handler. Shrinking N stops nobody: fewer are started until enough have ended.

A place belongs to a run and not to a task: a task can end (cancelled, timed out) while its engine
or its thread is still at work for it, and a task that runs again has a run of its own. A run's
place is free once the engine or the handler has really let go of it, and not before.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from llmtaskpool_worker.brokers.protocol import LaneDepth
from llmtaskpool_worker.contract import LaneName, LaneState
from llmtaskpool_worker.scheduling.limits import Limits
from llmtaskpool_worker.scheduling.task_queue import TaskQueue


@dataclass(slots=True)
class Holder:
    """Who holds threads: ``runs`` have their weights, ``weight`` is that of the last to start."""

    runs: dict[int, float] = field(default_factory=dict)
    weight: float = 1.0

    @property
    def count(self) -> int:
        """So many threads are held."""
        return len(self.runs)

    @property
    def heaviest(self) -> float:
        """The largest weight of those that run."""
        return max(self.runs.values())


class Lane:
    """One lane: its N, who runs in it, and who is claimed and waits to go on or to begin again."""

    def __init__(self, name: LaneName, limits: Limits, load: Callable[[Hashable], float]) -> None:
        self.name = name
        self.limits = limits.lane(name)
        self.threads = self._asked = self.limits.threads
        self.tries = 0
        """So many beyond N are started just now, to see what a server makes of them."""
        self.running: dict[int, str] = {}
        """Run to task id: what engines and handlers are really at work for."""
        self.holders: dict[str, Holder] = {}
        """Who holds threads: models, and '' for all handlers."""
        self._holder_of: dict[int, str] = {}
        self.held = TaskQueue(
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
        return max(0, self.threads + self.tries - len(self.running))

    def began(self, run: int, task_id: str, holder: str = "", weight: float = 1.0) -> None:
        """A run takes a place. Raises ValueError when it has one."""
        if run in self.running:
            raise ValueError(f"run {run} runs already")
        self.running[run] = task_id
        self._holder_of[run] = holder
        has = self.holders.get(holder)
        if has is None:
            has = self.holders[holder] = Holder()
        has.runs[run] = has.weight = weight

    def left(self, run: int) -> None:
        """The engine or the handler has let go of a run: its place is free. Idempotent."""
        if self.running.pop(run, None) is None:
            return
        holder = self._holder_of.pop(run)
        has = self.holders[holder]
        del has.runs[run]
        if not has.runs:
            del self.holders[holder]

    def resize(self, threads: int, cap: int) -> int:
        """Set N, at least 1 and at most what the lane can use; returns N in force."""
        self._asked = threads
        return self.fit(cap)

    def fit(self, cap: int) -> int:
        """The lane can use ``cap`` threads now: N is what was asked for, as far as that goes."""
        self.threads = max(1, min(self._asked, cap))
        return self.threads

    def state(self, cap: int, now: float, depth: LaneDepth) -> LaneState:
        """The lane as the operator reads it; ``depth`` is the broker's line."""
        since = [at for at in (depth.oldest_at, self.held.oldest_arrival()) if at is not None]
        return LaneState(
            threads=self.threads,
            threads_cap=cap,
            active=len(self.running),
            queued=depth.waiting + len(self.held),
            queue_limit=self.limits.queue_tasks,
            oldest_wait_seconds=max(0.0, now - min(since)) if since else 0.0,
        )
