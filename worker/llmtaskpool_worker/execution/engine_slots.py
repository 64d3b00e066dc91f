"""One engine as the dispatcher sees it: its slots, its health, and who is under suspicion.

After a crash with several requests in flight nobody knows whose fault it was. All of them become
suspects and run again one at a time, before anything else of their model: an innocent one ends
well, and one that crashes the engine alone takes nobody with it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from llmtaskpool_worker.contract import ModelProblem
from llmtaskpool_worker.engines.protocol import Engine, Ready
from llmtaskpool_worker.scheduling.latency_guard import LatencyGuard


@dataclass(slots=True, eq=False)
class EngineSlots:
    """``in_flight`` maps the engine's request ids to task ids."""

    engine: Engine
    ready: Ready | None = None
    failure: str | None = None
    was_ready: bool = False
    trouble: ModelProblem | None = None
    """Why it isn't ready now, although it is going to be tried again."""
    stall_told: bool = False
    in_flight: dict[int, str] = field(default_factory=dict)
    suspects: deque[str] = field(default_factory=deque)
    alone: str | None = None
    """The suspect that runs now; nothing else of this model may."""
    steps: int = 0
    progress_at: float = 0.0
    idle_since: float | None = None
    kv_used: int = 0
    kv_total: int = 0
    guard: LatencyGuard | None = None
    _share_seconds: float = 0.0
    _share_at: float = 0.0

    @property
    def name(self) -> str:
        """The model's name."""
        return self.engine.spec.name

    @property
    def task(self) -> str:
        """What the model does: generate or embed."""
        return self.engine.spec.task

    def free(self) -> int:
        """Slots for tasks of the queue."""
        if self.ready is None or self.suspects or self.alone is not None:
            return 0
        return max(0, self.ready.max_threads - len(self.in_flight))

    def next_suspect(self) -> str | None:
        """The suspect to start now, if the engine is ready and empty."""
        if self.ready is None or self.in_flight or self.alone is not None or not self.suspects:
            return None
        self.alone = self.suspects.popleft()
        return self.alone

    def began(self, request_id: int, task_id: str, now: float) -> None:
        """A request is on its way to the engine."""
        self.shared_until(now)
        if not self.in_flight:
            self.progress_at, self.idle_since = now, None
        self.in_flight[request_id] = task_id

    def shared_until(self, now: float) -> float:
        """Seconds of this engine that one request got, had it run all the time until ``now``.

        Requests share an engine: n at once get an n-th of its time each (processor sharing). The
        difference between two readings is what a request cost that ran from one to the other.
        """
        if self.in_flight:
            self._share_seconds += (now - self._share_at) / len(self.in_flight)
        self._share_at = now
        return self._share_seconds

    def ended(self, request_id: int, now: float) -> str | None:
        """A request left the engine; its task's id."""
        self.shared_until(now)
        task_id = self.in_flight.pop(request_id, None)
        if task_id is not None and task_id == self.alone:
            self.alone = None
        if not self.in_flight:
            self.idle_since = now
        return task_id

    def stalled_for(self, now: float) -> float:
        """Seconds without progress while something runs; 0 when idle. Slow is not dead."""
        return now - self.progress_at if self.in_flight else 0.0

    def problem(self, now: float, stall_seconds: float) -> ModelProblem | None:
        """Why it takes nothing now; None when it does, or loads for the first time."""
        if self.failure is not None:
            return ModelProblem(code="load_failed", message=self.failure)
        if self.trouble is not None:
            return self.trouble
        stalled = self.stalled_for(now)
        if stalled >= stall_seconds:
            message = f"its engine has stood still for {stalled:.0f} s with work to do"
            return ModelProblem(code="stalled", message=message)
        return None
