"""The task pool: submit, queue, lanes, engines, results."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from llmtaskpool_worker.brokers.memory import MemoryBroker
from llmtaskpool_worker.brokers.protocol import Broker, Depth, Durability, LaneDepth
from llmtaskpool_worker.contract import (
    DrainAnswer,
    GpuReading,
    LaneName,
    LaneState,
    ModelProblem,
    Phase,
    ThreadsAnswer,
    WorkerState,
)
from llmtaskpool_worker.disclosure import where_raised
from llmtaskpool_worker.engines.protocol import Engine, Piece
from llmtaskpool_worker.execution.acceptance import Acceptance, rejecting
from llmtaskpool_worker.execution.asking import Asking
from llmtaskpool_worker.execution.capacity import Capacity
from llmtaskpool_worker.execution.drain import Drain
from llmtaskpool_worker.execution.engine_events import EngineEvents
from llmtaskpool_worker.execution.engine_slots import EngineSlots, told
from llmtaskpool_worker.execution.engine_watch import tell_threads, watch_engine
from llmtaskpool_worker.execution.ids import ids
from llmtaskpool_worker.execution.lanes import Lane
from llmtaskpool_worker.execution.ledger import TaskLedger
from llmtaskpool_worker.execution.making_way import MakingWay
from llmtaskpool_worker.execution.placement import Placement
from llmtaskpool_worker.execution.pool import StaleGeneration
from llmtaskpool_worker.execution.queue_state import queue_state
from llmtaskpool_worker.execution.running import Running
from llmtaskpool_worker.kinds.registry import Kinds
from llmtaskpool_worker.scheduling.cost import CostModel
from llmtaskpool_worker.scheduling.latency_guard import LatencyGuard
from llmtaskpool_worker.scheduling.limits import Limits
from llmtaskpool_worker.scheduling.nature import Nature, kind_states
from llmtaskpool_worker.scheduling.profile import CalibrationProfile
from llmtaskpool_worker.scheduling.seats import Seats
from llmtaskpool_worker.scheduling.suspicion import Suspicion
from llmtaskpool_worker.scheduling.task import Asked, TaskError, TaskEvent, TaskRequest, TaskView

log = logging.getLogger("llmtaskpool.worker")

TICK_SECONDS = 0.25
"""How late a timeout may be noticed."""
LAST_WORD_SECONDS = 5.0
"""At the end so long is tried to tell the queue what has ended."""
ASLEEP_SECONDS = 1.0
"""A tick that is later than this tells that this process did not run, and no engine was heard."""


class Dispatcher:
    """Implements pool.TaskPool over engines and registered kinds. All calls are from one loop.

    ``tokenizers`` are looked up by model name when a task starts: they may be filled in later.
    ``profiles`` are where the cost model starts from.
    """

    def __init__(
        self,
        *,
        engines: Sequence[Engine] = (),
        tokenizers: Mapping[str, Any] | None = None,
        kinds: Kinds | None = None,
        limits: Limits | None = None,
        worker_id: str = "worker",
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        new_id: Callable[[], str] | None = None,
        gpus: Callable[[], tuple[GpuReading, ...]] = tuple,
        rss_bytes: Callable[[], int | None] = lambda: None,
        broker: Broker | None = None,
        profiles: Sequence[CalibrationProfile] = (),
    ) -> None:
        kinds = kinds or Kinds()
        self.limits = limits or Limits()
        self.cost = CostModel(
            threads_max=self.limits.compute.threads_max,
            tpot_slo_seconds=self.limits.tpot_slo_seconds,
        )
        for profile in profiles:
            self.cost.load_profile(profile)
        self.nature = Nature()
        self._slots = {
            engine.spec.name: EngineSlots(
                engine, suspicion=Suspicion(max_attempts=self.limits.max_attempts)
            )
            for engine in engines
        }
        slo = self.limits.tpot_slo_seconds
        for slots in self._slots.values():
            if slo is not None and slots.task == "generate":
                slots.guard = LatencyGuard(slo)
            if slots.engine.spec.forwards:
                slots.seats = Seats(self.limits.compute.threads_max)
        self._worker_id, self._clock, self._wall_clock = worker_id, clock, wall_clock
        self._gpus, self._rss_bytes = gpus, rss_bytes
        new_id = new_id or ids()
        if broker is None:
            broker = MemoryBroker(self.limits, clock)
        self._ledger = TaskLedger(broker, clock, self._slots.values(), self.limits.tenants)
        self._drain = Drain(self._ledger, clock)
        self._lanes = {name: Lane(name, self.limits, self._load_of) for name in LaneName}
        self._making_way = MakingWay(
            self._ledger,
            self._slots,
            self._lanes[LaneName.COMPUTE],
            self.cost,
            self.limits.preemption,
            clock,
        )
        self._events = EngineEvents(
            self._ledger,
            self.cost,
            clock,
            self._lanes[LaneName.COMPUTE],
            self._making_way,
            became_ready=self._became_ready,
        )
        self._capacity = Capacity(self._slots, self._lanes, self.cost, clock)
        self._acceptance = Acceptance(
            Placement(self._slots, kinds, self.nature, self._lanes),
            self._ledger,
            self.cost,
            clock=clock,
            new_id=new_id,
            limits=self.limits,
            worker=worker_id,
            closed=lambda: self._drain.begun,
        )
        self._running = Running(
            self._ledger,
            self._slots,
            self._lanes,
            kinds=kinds,
            nature=self.nature,
            cost=self.cost,
            tokenizers=tokenizers if tokenizers is not None else {},
            clock=clock,
            making_way=self._making_way,
            timeout_seconds=self.limits.run_timeout_seconds,
            worker=worker_id,
            fences=f"{worker_id}.{new_id()}",
            ends=lambda: self._drain.begun,
        )
        self._asking = Asking(self._running, self._making_way, self._ledger, self._lanes)
        self._generation, self._opened = 0, False
        self.batches: Callable[[], int] = lambda: 0
        """How many batches want to be fed, here or where the queue is."""
        self._started_at = wall_clock()
        self._loops: list[asyncio.Task[None]] = []
        for kind in kinds.by_name.values():
            self.nature.declare(kind.name, kind.first_lane, movable=kind.lane == "auto")

    @property
    def on_ended(self) -> Callable[[TaskView], None]:
        """Called with the view of each task that ends."""
        return self._ledger.on_ended

    @on_ended.setter
    def on_ended(self, tell: Callable[[TaskView], None]) -> None:
        self._ledger.on_ended = tell

    # --- life -------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the queue, and take up what is in it; idempotent.

        Raises ValueError, with the remedy, when it can't be used.
        """
        if not self._opened:
            await self._ledger.broker.start(self._worker_id, self._ledger.lost)
            self._opened = True

    async def start(self) -> None:
        """Start the engines and the loops; returns at once (phase: starting)."""
        await self.open()
        self._ledger.desk.start()
        self._asking.start()
        for slots in self._slots.values():
            slots.heard_at = self._clock()
            await slots.engine.start()
            self._loops.append(asyncio.create_task(self._follow(slots)))
        self._loops.append(asyncio.create_task(self._tick()))

    async def stop(self, grace_seconds: float) -> None:
        """Drain for at most ``grace_seconds``, then end everything; idempotent."""
        self._drain.begin(grace_seconds)
        await self._drain.finish(grace_seconds)
        await self._asking.close()
        await self._ledger.desk.close(LAST_WORD_SECONDS)
        await asyncio.gather(*(s.engine.stop(2.0) for s in self._slots.values()))
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self._running.close()
        await self._ledger.broker.close()

    # --- pool.TaskPool ----------------------------------------------------------------------

    async def submit(self, request: TaskRequest) -> TaskView:
        """See TaskPool."""
        view, lane = await self._acceptance.accept(request)
        if lane is None:
            return view
        self._asking.come(lane)
        return await self._ledger.broker.get(view.id) or view

    async def get(self, task_id: str) -> TaskView | None:
        """See TaskPool."""
        with rejecting():
            return await self._ledger.broker.get(task_id)

    async def wait(self, task_id: str) -> TaskView:
        """See TaskPool."""
        with rejecting():
            return await self._ledger.broker.wait(task_id)

    def events(self, task_id: str) -> AsyncIterator[TaskEvent]:
        """See TaskPool."""
        return self._ledger.broker.events(task_id)

    async def cancel(self, task_id: str) -> TaskView | None:
        """See TaskPool."""
        with rejecting():
            answer = await self._ledger.broker.cancel(task_id)
        self._ledger.cancelled(answer)
        return answer.view

    async def list(self, asked: Asked) -> Sequence[TaskView]:
        """See TaskPool."""
        with rejecting():
            return await self._ledger.broker.list(asked)

    async def replay(self, task_id: str) -> TaskView | None:
        """See TaskPool."""
        with rejecting():
            view = await self._ledger.broker.replay(task_id)
        if view is not None:
            self._asking.come(self._lanes[view.lane])
        return view

    @property
    def durability(self) -> Durability:
        """See TaskPool."""
        return self._ledger.broker.durability

    def abandon(self, task_id: str) -> None:
        """See TaskPool."""
        self._ledger.desk.cancel(task_id, self._ledger.cancelled)

    def let_go(self, task_id: str) -> None:
        """See TaskPool."""
        self._ledger.broker.let_go(task_id)

    def set_threads(self, generation: int, threads: dict[LaneName, int]) -> ThreadsAnswer:
        """See TaskPool."""
        if generation < self._generation:
            raise StaleGeneration(self._generation)
        self._generation = generation
        for name, n in threads.items():
            self._lanes[name].resize(n, self._capacity.of(name))
        if LaneName.COMPUTE in threads:
            tell_threads(self._lanes[LaneName.COMPUTE].threads, *self._slots.values())
        self._asking.schedule(*self._lanes.values())
        in_force = {name: lane.threads for name, lane in self._lanes.items()}
        return ThreadsAnswer(generation=generation, threads=in_force)

    def drain(self, budget_seconds: float) -> DrainAnswer:
        """See TaskPool."""
        self._drain.begin(budget_seconds)
        return DrainAnswer(
            phase=self._phase(),
            active=sum(len(lane.running) for lane in self._lanes.values()),
            queued=sum(lane.queued for lane in self._states(self._ledger.broker.depth()).values()),
        )

    def state(self) -> WorkerState:
        """See TaskPool."""
        depth = self._ledger.broker.depth()
        return WorkerState(
            worker_id=self._worker_id,
            started_at=self._started_at,
            observed_at=self._wall_clock(),
            phase=self._phase(),
            threads_generation=self._generation,
            lanes=self._states(depth),
            work=self._ledger.work(depth),
            totals=self._ledger.totals,
            gpus=self._gpus(),
            models=tuple(self._slots),
            steps_total=sum(slots.steps for slots in self._slots.values()),
            rss_bytes=self._rss_bytes(),
            kv_cache_usage=max(
                (s.kv_used / s.kv_total for s in self._slots.values() if s.kv_total), default=None
            ),
            kinds=kind_states(self.nature),
            model_devices=told(self._slots, EngineSlots.device),
            model_memory=told(self._slots, lambda slots: slots.memory.state()),
            model_problems=self.problems(),
            upstreams=told(self._slots, EngineSlots.upstream),
            queue=queue_state(
                self.durability, depth, self._clock(), self._wall_clock(), self.batches()
            ),
            tenants=self._ledger.tenants.states(depth),
        )

    def alive(self) -> bool:
        """See TaskPool."""
        now, bound = self._clock(), self.limits.dead_seconds
        # A server that stands still doesn't go again because this worker is ended.
        ours = (slots for slots in self._slots.values() if slots.seats is None)
        return all(slots.stalled_for(now) < bound for slots in ours)

    def problems(self) -> dict[str, ModelProblem]:
        """See TaskPool."""
        now, bound = self._clock(), self.limits.stall_seconds
        found = {name: slots.problem(now, bound) for name, slots in self._slots.items()}
        return {name: problem for name, problem in found.items() if problem is not None}

    def models(self) -> Sequence[str]:
        """See TaskPool."""
        return tuple(self._slots)

    # --- engines ----------------------------------------------------------------------------

    async def _follow(self, slots: EngineSlots) -> None:
        async for happened in slots.engine.events():
            unread = len(slots.unread)
            try:
                self._events.take_in(slots, happened)
                if not isinstance(happened, Piece):  # nobody has left
                    self._running.niceness.look()
            except Exception as error:  # one event that can't be taken in must not stop the others
                log.error(  # noqa: TRY400  a traceback has paths
                    "engine event not taken in",
                    extra={"model": slots.name, "error": where_raised(error)},
                )
            if not isinstance(happened, Piece) or len(slots.unread) < unread:
                self._asking.schedule(self._lanes[LaneName.COMPUTE])
                if slots.seats is not None:
                    self._asking.look()

    def _became_ready(self, slots: EngineSlots) -> None:
        compute = self._lanes[LaneName.COMPUTE]
        compute.fit(self._capacity.of(LaneName.COMPUTE))
        tell_threads(compute.threads, slots)

    # --- time -------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """What only time brings: timeouts, stalls, idle engines, old results."""
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(TICK_SECONDS)
            now, late = self._clock(), loop.time() - before - TICK_SECONDS
            if late > ASLEEP_SECONDS:
                for slots in self._slots.values():
                    slots.slept(late)
            for lane in self._lanes.values():
                for task in [*self._ledger.all_at_work(lane.running)]:
                    if task.runs and task.deadline <= now:
                        error = TaskError("timeout", "the task ran longer than it may")
                        self._ledger.stop(task, error)
            self._capacity.look()
            self._asking.schedule(*self._lanes.values())
            self._asking.look()
            for slots in self._slots.values():
                watch_engine(slots, now, self.limits)
            await self._drain.look(now)

    # --- what others read -------------------------------------------------------------------

    def _states(self, depth: Depth) -> dict[LaneName, LaneState]:
        now, depths = self._clock(), depth.lanes
        return {
            name: lane.state(self._capacity.of(name), now, depths.get(name, LaneDepth()))
            for name, lane in self._lanes.items()
        }

    def _load_of(self, cost_class: Any) -> float:
        return self.cost.load(cost_class)

    def _phase(self) -> Phase:
        if self._drain.begun:
            return self._drain.phase
        if any(slots.failure is not None for slots in self._slots.values()):
            return Phase.FAILED
        loading = any(slots.ready is None for slots in self._slots.values()) or self.problems()
        return Phase.STARTING if loading else Phase.READY
