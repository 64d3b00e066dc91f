"""The task pool: submit, queue, lanes, engines, results."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

import msgspec

from llmtaskpool_worker.active_task import ActiveTask, admit_message, size_bytes
from llmtaskpool_worker.broker.memory import MemoryBroker
from llmtaskpool_worker.broker.protocol import (
    Accepted,
    Broker,
    IdempotencyConflict,
    LeaseLost,
)
from llmtaskpool_worker.calls import Calls
from llmtaskpool_worker.contract import (
    DrainAnswer,
    GpuReading,
    LaneName,
    LaneState,
    Phase,
    ThreadsAnswer,
    Totals,
    Work,
    WorkerState,
)
from llmtaskpool_worker.cost import CostModel
from llmtaskpool_worker.engine_slots import EngineSlots
from llmtaskpool_worker.engines.protocol import (
    AdmitEmbedding,
    Cancel,
    Engine,
    EngineDied,
    EngineEvent,
    LoadFailed,
    Ready,
    RequestFailed,
    SetThreads,
    Step,
    Token,
    Trim,
    Vector,
)
from llmtaskpool_worker.generation_text import GenerationText
from llmtaskpool_worker.kinds import (
    CallContext,
    HandlerError,
    Kinds,
)
from llmtaskpool_worker.lanes import Lane
from llmtaskpool_worker.latency_guard import LatencyGuard
from llmtaskpool_worker.limits import Limits
from llmtaskpool_worker.nature import Nature, kind_states
from llmtaskpool_worker.placement import Placement
from llmtaskpool_worker.pool import Rejected, StaleGeneration
from llmtaskpool_worker.priority import priority
from llmtaskpool_worker.profile import CalibrationProfile
from llmtaskpool_worker.scheduler import Expire, schedule
from llmtaskpool_worker.task import (
    Call,
    Embedded,
    FinishReason,
    Generate,
    Result,
    Returned,
    TaskError,
    TaskEvent,
    TaskRequest,
    TaskState,
    TaskView,
    TokenLogprob,
)
from llmtaskpool_worker.task_queue import QueueFullError, Waiting

TICK_SECONDS = 0.25
"""How late a timeout may be noticed."""


class Dispatcher:
    """Implements pool.TaskPool over engines and registered kinds. All calls are from one loop.

    ``tokenizers`` are looked up by model name when a task starts: they may be filled in later.
    ``profiles`` are where the cost model starts from. ``on_ended`` is called with the view of
    each task that ends.
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
        new_id: Callable[[], str] = lambda: uuid4().hex,
        gpus: Callable[[], tuple[GpuReading, ...]] = tuple,
        rss_bytes: Callable[[], int | None] = lambda: None,
        broker: Broker | None = None,
        profiles: Sequence[CalibrationProfile] = (),
    ) -> None:
        self.limits = limits or Limits()
        self.cost = CostModel()
        for profile in profiles:
            self.cost.load_profile(profile)
        self.nature = Nature()
        self.on_ended: Callable[[TaskView], None] = lambda _: None
        self._slots = {engine.spec.name: EngineSlots(engine) for engine in engines}
        slo = self.limits.tpot_slo_seconds
        for slots in self._slots.values():
            if slo is not None and slots.task == "generate":
                slots.guard = LatencyGuard(slo)
        self._tokenizers = tokenizers if tokenizers is not None else {}
        self._kinds = kinds or Kinds()
        self._worker_id, self._clock, self._wall_clock = worker_id, clock, wall_clock
        self._new_id, self._gpus, self._rss_bytes = new_id, gpus, rss_bytes
        self._broker = broker or MemoryBroker(self.limits.results)
        self._lanes = {name: Lane(name, self.limits, self._load) for name in LaneName}
        self._placement = Placement(self._slots, self._kinds, self.nature, self._lanes)
        self._active: dict[str, ActiveTask] = {}
        self._request_ids = itertools.count(1)
        self._calls = Calls()
        self._generation = 0
        self._arrived = self._done = self._waiting_work = 0.0
        self._totals = Totals()
        self._started_at = wall_clock()
        self._draining_until: float | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._emptied = asyncio.Event()
        for kind in self._kinds.by_name.values():
            self.nature.declare(kind.name, kind.first_lane, movable=kind.lane == "auto")

    # --- life -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the engines and the loops; returns at once (phase: starting)."""
        for slots in self._slots.values():
            await slots.engine.start()
            self._loops.append(asyncio.create_task(self._follow(slots)))
        self._loops.append(asyncio.create_task(self._tick()))

    async def stop(self, grace_seconds: float) -> None:
        """Drain for at most ``grace_seconds``, then end everything; idempotent."""
        self.drain(grace_seconds)
        deadline = self._clock() + grace_seconds
        while self._active and self._clock() < deadline:
            self._emptied.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), min(1.0, deadline - self._clock()))
        self._give_up_the_rest()
        await asyncio.gather(*(s.engine.stop(2.0) for s in self._slots.values()))
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self._calls.close()

    # --- pool.TaskPool ----------------------------------------------------------------------

    def submit(self, request: TaskRequest) -> TaskView:
        """See TaskPool."""
        request, lane = self._placement.place(request)
        try:
            if (known := self._broker.find(request)) is not None:
                return known
        except IdempotencyConflict:
            raise Rejected(
                "idempotency_conflict",
                "idempotency_key belongs to a task with another body: use a new key",
                field="idempotency_key",
            ) from None
        cost_class = self.cost.classify(request)
        now, load = self._clock(), self.cost.load(cost_class)
        work = self.cost.work(request, cost_class, lane.threads)
        self._arrived += work  # a rejected task is demand all the same
        task = ActiveTask(self._new_id(), request, lane, cost_class, work, now)
        patience = request.queue_timeout_seconds or self.limits.queue_timeout_seconds
        try:
            self._refuse_unless_open()
            lane.queue.push(
                Waiting(
                    id=task.id,
                    group=request.model or request.kind,
                    cost_class=cost_class,
                    weight=request.weight,
                    arrived_at=now,
                    expires_at=now + patience,
                    size_bytes=size_bytes(request),
                )
            )
        except QueueFullError as full:
            self._count(rejected=1)
            raise Rejected(
                "queue_full",
                f"the queue of lane {lane.name} is full ({full.limit} {full.bound})",
                retry_after_seconds=self._retry_after(lane),
            ) from None
        except Rejected:
            self._count(rejected=1)
            raise
        self._active[task.id] = task
        self._waiting_work += work
        self._count(accepted=1)
        rank = priority(request.weight, load)
        view = self._broker.accept(Accepted(task.id, request, lane.name, load, rank), now)
        self._schedule(lane)
        return self._broker.get(task.id) or view

    def get(self, task_id: str) -> TaskView | None:
        """See TaskPool."""
        return self._broker.get(task_id)

    async def wait(self, task_id: str) -> TaskView:
        """See TaskPool."""
        return await self._broker.wait(task_id)

    def events(self, task_id: str) -> AsyncIterator[TaskEvent]:
        """See TaskPool."""
        return self._broker.events(task_id)

    def cancel(self, task_id: str) -> TaskView | None:
        """See TaskPool."""
        task = self._active.get(task_id)
        if task is None:
            return self._broker.get(task_id)
        if task.claim is None:
            return self._end_waiting(task, TaskState.CANCELLED, None)
        view = self._broker.cancel_running(task.id, task.claim.token, self._clock())
        self._stop_running(task)
        self._ended(task, view)
        return view

    def set_threads(self, generation: int, threads: dict[LaneName, int]) -> ThreadsAnswer:
        """See TaskPool."""
        if generation < self._generation:
            raise StaleGeneration(self._generation)
        self._generation = generation
        for name, n in threads.items():
            self._lanes[name].resize(n, self._cap(name))
        if LaneName.COMPUTE in threads:
            self._tell_engines(SetThreads(self._lanes[LaneName.COMPUTE].threads))
        self._schedule(*self._lanes.values())
        in_force = {name: lane.threads for name, lane in self._lanes.items()}
        return ThreadsAnswer(generation=generation, threads=in_force)

    def drain(self, budget_seconds: float) -> DrainAnswer:
        """See TaskPool. A second drain can shorten the budget, never lengthen it."""
        until = self._clock() + budget_seconds
        current = self._draining_until
        self._draining_until = until if current is None else min(until, current)
        return DrainAnswer(
            phase=self._phase(),
            active=sum(len(lane.running) for lane in self._lanes.values()),
            queued=sum(len(lane.queue) for lane in self._lanes.values()),
        )

    def state(self) -> WorkerState:
        """See TaskPool."""
        now = self._clock()
        return WorkerState(
            worker_id=self._worker_id,
            started_at=self._started_at,
            observed_at=self._wall_clock(),
            phase=self._phase(),
            threads_generation=self._generation,
            lanes={name: self._lane_state(lane, now) for name, lane in self._lanes.items()},
            work=Work(
                arrived_seconds_total=self._arrived,
                done_seconds_total=self._done,
                waiting_seconds=max(0.0, self._waiting_work),
            ),
            totals=self._totals,
            gpus=self._gpus(),
            models=tuple(self._slots),
            steps_total=sum(slots.steps for slots in self._slots.values()),
            rss_bytes=self._rss_bytes(),
            kv_cache_usage=max(
                (s.kv_used / s.kv_total for s in self._slots.values() if s.kv_total), default=None
            ),
            kinds=kind_states(self.nature),
        )

    def alive(self) -> bool:
        """See TaskPool."""
        now, bound = self._clock(), self.limits.stall_seconds
        return all(slots.stalled_for(now) < bound for slots in self._slots.values())

    def models(self) -> Sequence[str]:
        """See TaskPool."""
        return tuple(self._slots)

    # --- acceptance -------------------------------------------------------------------------

    def _refuse_unless_open(self) -> None:
        if self._draining_until is not None:
            raise Rejected("draining", "this worker is stopping", retry_after_seconds=1.0)

    def _retry_after(self, lane: Lane) -> float:
        """Seconds until about a tenth of the queue has run, from 1 to 60."""
        waiting = self._waiting_work / 10
        return min(60.0, max(1.0, waiting if lane.name is LaneName.COMPUTE else 1.0))

    # --- scheduling -------------------------------------------------------------------------

    def _load(self, cost_class: Any) -> float:
        return self.cost.load(cost_class)

    def _free_of_group(self, group: str | None) -> int:
        slots = self._slots.get(group or "")
        return 1 << 30 if slots is None else slots.free()

    def _schedule(self, *lanes: Lane) -> None:
        """Start and expire what the scheduler decides; suspects first."""
        for slots in self._slots.values():
            lane = self._lanes[LaneName.COMPUTE]
            if lane.free_threads and (suspect := slots.next_suspect()) is not None:
                self._start(self._active[suspect])
        for lane in lanes:
            decided = schedule(lane.queue, lane.free_threads, self._free_of_group, self._clock())
            for decision in decided:
                task = self._active[decision.task.id]
                if isinstance(decision, Expire):
                    error = TaskError("queue_timeout", "the task waited longer than it may")
                    self._finish_waiting(task, TaskState.EXPIRED, error)
                else:
                    self._start(task)

    def _start(self, task: ActiveTask) -> None:
        now = self._clock()
        timeout = task.request.timeout_seconds or self.limits.run_timeout_seconds
        timeout = min(timeout, self.limits.run_timeout_seconds)
        task.claim = self._broker.claim(task.id, now, timeout)
        task.deadline, task.began_at = now + timeout, now
        task.lane.running.add(task.id)
        self._waiting_work -= task.work_seconds
        payload = task.request.payload
        if isinstance(payload, Call):
            task.calling = asyncio.create_task(self._call(task, payload))
            return
        slots = task.slots = self._slots[task.request.model or ""]
        task.request_id = next(self._request_ids)
        slots.began(task.request_id, task.id, now)
        task.share_began = slots.shared_until(now)
        if isinstance(payload, Generate):
            detokenizer = self._tokenizers[slots.name].detokenizer()
            task.text = GenerationText(payload, detokenizer)
            slots.engine.send(admit_message(task.request_id, payload))
        else:
            slots.engine.send(AdmitEmbedding(task.request_id, list(payload.tokens)))

    # --- engines ----------------------------------------------------------------------------

    async def _follow(self, slots: EngineSlots) -> None:
        async for happened in slots.engine.events():
            self._take_in(slots, happened)

    def _take_in(self, slots: EngineSlots, happened: EngineEvent) -> None:
        compute = self._lanes[LaneName.COMPUTE]
        match happened:
            case Step():
                self._step(slots, happened)
            case Vector(id=request_id, vector=vector, tokens=tokens):
                slots.progress_at = self._clock()
                share = slots.shared_until(slots.progress_at)
                task = self._of(slots, request_id)
                if task is not None:
                    self.cost.observe_seconds(task.cost_class, share - task.share_began)
                    self._commit(task, Embedded(vector, tokens))
            case RequestFailed(id=request_id, code=code, message=message):
                task = self._of(slots, request_id)
                if task is not None:
                    self._commit(task, TaskError(code, message))
            case Ready():
                slots.ready, slots.was_ready = happened, True
                slots.idle_since = self._clock()
                self.cost.model(slots.name).resize(happened.max_threads)
                compute.resize(compute.threads, self._cap(LaneName.COMPUTE))
                slots.engine.send(SetThreads(compute.threads))
            case LoadFailed(message=message):
                slots.failure = message
                self._fail_waiting_for(slots)
            case EngineDied():
                self._crashed(slots)
        self._schedule(compute)

    def _step(self, slots: EngineSlots, step: Step) -> None:
        """What one step drew: text for its tasks, ends, and what it cost."""
        slots.steps += 1
        slots.progress_at = self._clock()
        slots.kv_used, slots.kv_total = step.kv_tokens_used, step.kv_tokens_total
        if slots.guard is not None and step.decode_batch:
            slots.guard.observe(step.seconds)
        self.cost.observe_step(slots.name, step.decode_batch, step.prefill_tokens, step.seconds)
        for token in step.tokens:
            task = self._active.get(slots.in_flight.get(token.id, ""))
            if task is not None:
                self._decode(task, partial(self._draw, task, token))
        for end in step.finished:
            task = self._of(slots, end.id)
            if task is not None and end.reason != "cancelled":
                reason: FinishReason = "length" if end.reason == "length" else "stop"
                self._decode(task, partial(self._generated, task, reason))

    def _decode(self, task: ActiveTask, take_in: Callable[[], None]) -> None:
        """Take in tokens of one task; a tokenizer that fails on them fails no other."""
        try:
            take_in()
        except Exception:
            if task.id in self._active:
                self._commit(task, TaskError("decoding_failed", "the answer can't be decoded"))
                self._stop_running(task)

    def _draw(self, task: ActiveTask, token: Token) -> None:
        text, logprob = task.text, None
        if text is None:
            return
        if token.logprob is not None:
            logprob = TokenLogprob(token.token, token.logprob, tuple(token.top))
        delta = text.push(token.token, logprob)
        if delta is not None and task.claim is not None:
            self._broker.publish(task.id, task.claim.token, delta)
        if text.stopped:
            self._generated(task, "stop")
            self._stop_running(task)

    def _generated(self, task: ActiveTask, reason: FinishReason) -> None:
        text = task.text
        if text is None:
            return
        delta = text.finish()
        if delta is not None and task.claim is not None:
            self._broker.publish(task.id, task.claim.token, delta)
        if text.stopped:
            reason = "stop"
        self.cost.observe_generated(task.cost_class, text.tokens)
        self._commit(task, text.result(reason))

    def _crashed(self, slots: EngineSlots) -> None:
        """The engine died: tell whose output can't be unsaid, suspect the others."""
        slots.ready = None
        lost = [self._active[i] for i in slots.in_flight.values() if i in self._active]
        slots.in_flight.clear()
        slots.alone = None
        for task in lost:
            task.crashes += 1
            if task.crashes >= self.limits.max_attempts:
                error = TaskError(
                    "crashed_engine_repeatedly",
                    f"the engine crashed in each of {task.crashes} attempts at this task",
                )
                self._commit(task, error)
            elif self._broker.watched(task.id) and task.text is not None and task.text.tokens:
                self._commit(task, TaskError("engine_crashed", "the engine crashed; try again"))
            else:
                self._suspect(slots, task)

    def _fail_waiting_for(self, slots: EngineSlots) -> None:
        """The model will not be there again: tell those who wait for it."""
        error = TaskError("model_failed", f"the model {slots.name} could not be loaded")
        for task in list(self._active.values()):
            if task.claim is None and task.request.model == slots.name:
                self._end_waiting(task, TaskState.FAILED, error)

    def _suspect(self, slots: EngineSlots, task: ActiveTask) -> None:
        assert task.claim is not None  # noqa: S101 - only running tasks are in flight
        self._broker.release(task.id, task.claim.token, "the engine crashed; trying again")
        task.claim, task.text, task.slots = None, None, None
        task.lane.running.discard(task.id)
        self._waiting_work += task.work_seconds
        slots.suspects.append(task.id)

    def _of(self, slots: EngineSlots, request_id: int) -> ActiveTask | None:
        """The task of a request that left the engine; None when it has ended meanwhile."""
        task_id = slots.ended(request_id, self._clock())
        return None if task_id is None else self._active.get(task_id)

    def _tell_engines(self, message: SetThreads) -> None:
        for slots in self._slots.values():
            if slots.ready is not None:
                slots.engine.send(message)

    # --- calls ------------------------------------------------------------------------------

    async def _call(self, task: ActiveTask, payload: Call) -> None:
        kind = self._kinds.get(task.request.kind)
        assert kind is not None  # noqa: S101 - checked at acceptance
        task.context = CallContext(task.id, task.deadline)
        outcome: Result | TaskError
        try:
            ran = await self._calls.run(kind, task.lane.name, payload.arguments, task.context)
            wall = self._clock() - task.began_at
            self.nature.observe(kind.name, ran.compute_seconds, wall - ran.compute_seconds)
            self.cost.observe_seconds(task.cost_class, wall)
            msgspec.json.encode(ran.value)
            outcome = Returned(ran.value)
        except HandlerError as error:
            outcome = TaskError(error.code, error.message)
        except asyncio.CancelledError:
            task.lane.running.discard(task.id)
            raise
        except Exception as error:
            # What it says may hold anything: its type must do for the client.
            outcome = TaskError("handler_failed", f"the handler raised {type(error).__name__}")
        task.lane.running.discard(task.id)
        if task.id in self._active:
            self._commit(task, outcome)
        self._schedule(task.lane)

    # --- ends -------------------------------------------------------------------------------

    def _commit(self, task: ActiveTask, outcome: Result | TaskError) -> None:
        assert task.claim is not None  # noqa: S101 - only running tasks are committed
        try:
            view = self._broker.commit(task.id, task.claim.token, outcome, self._clock())
        except LeaseLost:
            return
        if view.state is TaskState.SUCCEEDED:
            self._done += task.work_seconds
        self._ended(task, view)

    def _end_waiting(self, task: ActiveTask, state: TaskState, error: TaskError | None) -> TaskView:
        task.lane.queue.cancel(task.id)
        for slots in self._slots.values():
            with contextlib.suppress(ValueError):
                slots.suspects.remove(task.id)
        return self._finish_waiting(task, state, error)

    def _finish_waiting(
        self, task: ActiveTask, state: TaskState, error: TaskError | None
    ) -> TaskView:
        view = self._broker.end_waiting(task.id, state, error, self._clock())
        self._waiting_work -= task.work_seconds
        self._ended(task, view)
        return view

    def _stop_running(self, task: ActiveTask) -> None:
        """The result of a running task is no longer wanted: free what it holds."""
        if task.slots is not None:
            task.slots.engine.send(Cancel(task.request_id))
        if task.context is not None:
            task.context.cancelled = True
        if task.calling is not None and task.lane.name is LaneName.IO:
            task.calling.cancel()  # a thread can't be cancelled: it keeps its place until it ends

    def _ended(self, task: ActiveTask, view: TaskView) -> None:
        del self._active[task.id]
        if task.calling is None:
            task.lane.running.discard(task.id)
        self._count(**{view.state.value: 1})
        self.on_ended(view)
        if not self._active:
            self._emptied.set()

    def _give_up_the_rest(self) -> None:
        error = TaskError("draining", "the worker stopped before the task had ended; try again")
        for task in list(self._active.values()):
            if task.claim is None:
                self._end_waiting(task, TaskState.FAILED, error)
            else:
                self._commit(task, error)
                self._stop_running(task)

    def _count(self, **more: int) -> None:
        counted = {name: getattr(self._totals, name) + n for name, n in more.items()}
        self._totals = self._totals.model_copy(update=counted)

    # --- time -------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """What only time brings: timeouts, stalls, idle engines, old results."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = self._clock()
            for lane in self._lanes.values():
                for task_id in [*lane.running]:
                    task = self._active.get(task_id)
                    if task is not None and task.claim is not None and task.deadline <= now:
                        error = TaskError("timeout", "the task ran longer than it may")
                        self._commit(task, error)
                        self._stop_running(task)
            self._schedule(*self._lanes.values())
            self._watch_engines(now)
            self._broker.forget(now)
            if self._draining_until is not None and now >= self._draining_until:
                self._give_up_the_rest()

    def _watch_engines(self, now: float) -> None:
        for slots in self._slots.values():
            if slots.stalled_for(now) >= self.limits.stall_kill_seconds:
                slots.engine.kill()
            for task_id in [*slots.suspects]:
                if self._active[task_id].deadline <= now:
                    error = TaskError("timeout", "the engine crashed and was not back in time")
                    self._end_waiting(self._active[task_id], TaskState.FAILED, error)
            idle = slots.idle_since
            if slots.ready and idle is not None and now - idle >= self.limits.trim_idle_seconds:
                slots.engine.send(Trim())
                slots.idle_since = None

    # --- what others read -------------------------------------------------------------------

    def _phase(self) -> Phase:
        if self._draining_until is not None:
            return Phase.DRAINING if self._active else Phase.DRAINED
        if any(slots.failure is not None for slots in self._slots.values()):
            return Phase.FAILED
        loading = any(slots.ready is None for slots in self._slots.values())
        return Phase.STARTING if loading else Phase.READY

    def _cap(self, name: LaneName) -> int:
        """The most threads a lane can use: its limit, its engines' memory, the latency guard."""
        cap = self._lanes[name].limits.threads_max
        if name is not LaneName.COMPUTE:
            return cap
        ready = [s for s in self._slots.values() if s.ready is not None]
        if ready:
            cap = min(cap, sum(s.ready.max_threads for s in ready if s.ready is not None))
        guarded = [self._guarded(s, s.guard) for s in ready if s.guard is not None]
        return max(1, min([cap, *guarded]))

    def _guarded(self, slots: EngineSlots, guard: LatencyGuard) -> int:
        knee = self.cost.model(slots.name).knee(guard.slo_seconds)
        return guard.adjust(len(slots.in_flight), knee, self._clock())

    def _lane_state(self, lane: Lane, now: float) -> LaneState:
        return lane.state(self._cap(lane.name), now)
