"""One engine as the dispatcher sees it: its slots, its health, and who is under suspicion.

After a crash with several requests in flight nobody knows whose fault it was: suspicion.py says
who of them may run again when. They wait in the lane's queue as all others do, in groups of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llmtaskpool_worker.contract import ModelProblem, UpstreamState
from llmtaskpool_worker.engines.protocol import Engine, Gauges, Ready
from llmtaskpool_worker.execution.engine_memory import EngineMemory
from llmtaskpool_worker.scheduling.hindrance import Unhindered
from llmtaskpool_worker.scheduling.latency_guard import LatencyGuard
from llmtaskpool_worker.scheduling.reserve import UNREAD_SECONDS, kept, unread
from llmtaskpool_worker.scheduling.seats import Seats
from llmtaskpool_worker.scheduling.suspicion import Suspicion

SERVER_STALL_SECONDS = 30.0
"""A server that has requests in flight and sends no token for so long takes no more."""

Told = TypeVar("Told")

_SUSPECTS = "\0suspects "
"""Between a model's name and a number; no name has it."""


def model_of(group: str | None) -> str:
    """The model whose tasks wait in a group of the queue."""
    return (group or "").partition(_SUSPECTS)[0]


def told(
    slots: Mapping[str, EngineSlots], of: Callable[[EngineSlots], Told | None]
) -> dict[str, Told]:
    """By model's name what engines tell, without those that tell nothing."""
    found = {name: of(one) for name, one in slots.items()}
    return {name: value for name, value in found.items() if value is not None}


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
    suspicion: Suspicion = field(default_factory=lambda: Suspicion(max_attempts=3))
    steps: int = 0
    progress_at: float = 0.0
    heard_at: float = 0.0
    """When it last said anything; or, before it starts anew, when that will be."""
    asked_at: float | None = None
    """Since when a Ping waits for its answer."""
    idle_since: float | None = None
    kv_used: int = 0
    kv_total: int = 0
    guard: LatencyGuard | None = None
    seats: Seats | None = None
    """The bound of a server behind the model; None where the engine is our own."""
    gauges: Gauges | None = None
    """What that server said last of itself."""
    unread: dict[int, float] = field(default_factory=dict)
    """Requests that yield and have no chunk yet, with the time when they were sent."""
    _unread: int | None = None
    """So many of those a server may have at once; None: any."""
    _bound: int | None = None
    _open: int = 0
    _with_urgent: int = 0
    _paused: bool = False
    niceness: int = 0
    """As its process was told to be."""
    memory: EngineMemory = field(default_factory=EngineMemory)
    unhindered: Unhindered = field(default_factory=Unhindered)
    _share_seconds: float = 0.0
    _share_at: float = 0.0

    @property
    def name(self) -> str:
        """The model's name."""
        return self.engine.spec.name

    @property
    def about(self) -> Mapping[str, Any]:
        """What the engine said of the model, as long as it is there."""
        return {} if self.ready is None else self.ready.about

    @property
    def task(self) -> str:
        """What the model does: generate or embed."""
        return self.engine.spec.task

    def free(self, group: str | None) -> int:
        """Slots for waiting tasks of a group of the queue: the model's own, or one of suspects."""
        if self.ready is None or self._paused or self.memory.leaving:
            return 0
        _, _, number = (group or "").partition(_SUSPECTS)
        if not self.suspicion.allows(int(number) if number else None, len(self.in_flight)):
            return 0
        if self.seats is None:
            return max(0, self.holds - len(self.in_flight))
        places = min(self._open, self.ready.max_threads) - len(self.in_flight)
        if self.unread and self._unread is not None:
            places = min(places, self._unread - len(self.unread))
        return max(0, places)

    def free_for_urgent(self, leaving: int = 0) -> bool:
        """Whether a server has a place beyond its N, once so many of its requests have left."""
        if self.ready is None or self._paused or self.seats is None:
            return False
        return len(self.in_flight) - leaving < self._with_urgent

    @property
    def tries(self) -> int:
        """So many more than N a server gets now, to see what it makes of them."""
        return 0 if self.seats is None else max(0, self._open - self.holds)

    @property
    def holds(self) -> int:
        """The most requests that it should have in flight; 0 while it takes none."""
        if self.ready is None:
            return 0
        most = self.ready.max_threads
        return most if self._bound is None else min(most, self._bound)

    def device(self) -> str | None:
        """ "cpu", or a kind of accelerator; None while it loads."""
        return None if self.ready is None else self.ready.device.partition(":")[0]

    def upstream(self) -> UpstreamState | None:
        """The server behind the model, as others may see it; None where the engine is our own."""
        if self.seats is None:
            return None
        said = self.gauges or Gauges()
        return UpstreamState(
            in_flight=len(self.in_flight),
            limit=self.holds,
            turned_away_total=self.seats.turned_away,
            running=said.running,
            waiting=said.waiting,
            cache_usage=said.cache_usage,
            preemptions_total=said.preemptions,
        )

    def bound(self, now: float) -> None:
        """Settle anew what a server can hold."""
        if self.seats is not None and self.ready is not None:
            self.seats.most = self.ready.max_threads
            self._bound = self.seats.limit(now)
            self._open = self.seats.open(now)
            self._with_urgent = self.seats.with_urgent(self._bound, now)
            self._paused = self.seats.paused(now)
            keeps = self.seats.urgent_lately(now) and kept(self.ready.max_threads) > 0
            self._unread = unread(self.holds) if keeps else None
            for request_id, sent_at in [*self.unread.items()]:
                if now - sent_at > UNREAD_SECONDS:
                    del self.unread[request_id]

    def group_of(self, task_id: str) -> str:
        """The group of the queue that a task of this model waits in."""
        group = self.suspicion.group_of(task_id)
        return self.name if group is None else f"{self.name}{_SUSPECTS}{group.number}"

    def began(self, request_id: int, task_id: str, now: float) -> None:
        """A request is on its way to the engine."""
        self.shared_until(now)
        if not self.in_flight:
            self.progress_at = now if self.asked_at is None else self.asked_at
            self.idle_since = None
        self.in_flight[request_id] = task_id
        self._count(now)

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
        self.unread.pop(request_id, None)
        self._count(now)
        if not self.in_flight:
            self.idle_since = now
        return task_id

    def lost_all(self, now: float) -> None:
        """The engine died, and has none of its requests any more."""
        self.in_flight.clear()
        self.unread.clear()
        self.niceness = 0
        self._count(now)

    def _count(self, now: float) -> None:
        if self.seats is not None:
            self.seats.delivery.count(len(self.in_flight), now)

    def stalled_for(self, now: float) -> float:
        """Seconds without progress while something runs, or without an answer. Slow isn't dead."""
        if self.in_flight:
            return now - self.progress_at
        return 0.0 if self.asked_at is None else now - self.asked_at

    def moved(self, now: float) -> None:
        """It said something that shows that it moves on."""
        self.progress_at, self.asked_at = now, None

    def is_due(self, now: float, ping_seconds: float) -> bool:
        """Whether it is at rest, and to be asked for a sign of life; a server's engine looks."""
        if self.seats is not None:
            return False
        at_rest = self.ready is not None and not self.in_flight and self.asked_at is None
        return at_rest and now - self.heard_at >= ping_seconds

    def silent_for(self, now: float) -> float:
        """Seconds without any sign of life while it loads; a server may take its time."""
        loads = self.ready is None and self.failure is None and self.seats is None
        return now - self.heard_at if loads else 0.0

    def slept(self, seconds: float) -> None:
        """We did not listen for so long: what it said meanwhile is still to be read."""
        self.progress_at += seconds
        self.heard_at += seconds
        if self.asked_at is not None:
            self.asked_at += seconds

    def problem(self, now: float, stall_seconds: float) -> ModelProblem | None:
        """Why it takes nothing now; None when it does, or loads for the first time.

        A server has at least SERVER_STALL_SECONDS: its prompts may be long, and we see no steps.
        """
        if self.seats is not None:
            stall_seconds = max(stall_seconds, SERVER_STALL_SECONDS)
        if self.failure is not None:
            return ModelProblem(code="load_failed", message=self.failure)
        if self.trouble is not None:
            return self.trouble
        stalled = self.stalled_for(now)
        if stalled >= stall_seconds:
            doing = "with work to do" if self.in_flight else "and answers nothing"
            message = f"its engine has stood still for {stalled:.0f} s {doing}"
            if self.seats is not None and self.in_flight:
                message = (
                    f"its server has sent no token for {stalled:.0f} s with {len(self.in_flight)} "
                    "requests in flight"
                )
            return ModelProblem(code="stalled", message=message)
        return None
