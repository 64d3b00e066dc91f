"""A lane's count follows what engines and handlers are really at work for, whatever the order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from fakes.letters_engine import LettersEngine, LetterTokenizer, letters
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from llmtaskpool_worker.contract import LaneName, Phase
from llmtaskpool_worker.execution import dispatcher
from llmtaskpool_worker.execution.dispatcher import Dispatcher
from llmtaskpool_worker.execution.pool import Rejected
from llmtaskpool_worker.kinds.registry import CallContext, HandlerError, Kind, Kinds
from llmtaskpool_worker.scheduling.limits import LaneLimits, Limits
from llmtaskpool_worker.scheduling.preemption import Preemption
from llmtaskpool_worker.scheduling.task import Call, Generate, TaskRequest, TaskState

N = 2


class Handlers:
    """Handlers that stand at a gate until a test opens it, and say which of them are inside."""

    def __init__(self) -> None:
        self.inside: dict[int, LaneName] = {}
        self.most: dict[LaneName, int] = dict.fromkeys(LaneName, 0)
        self._gates: dict[int, threading.Event] = {}
        self._faults: set[int] = set()
        self._lock = threading.Lock()
        self._open = False
        self._made = 0

    def kinds(self) -> Kinds:
        registry = Kinds()
        for lane in LaneName:
            for name, handler in (
                ("thread", self._in_thread(lane)),
                ("loop", self._on_loop(lane, stubborn=False)),
                ("stubborn", self._on_loop(lane, stubborn=True)),
            ):
                registry.register(Kind(f"{name}-{lane.value}", handler, lane.value))
        return registry

    def enter(self, lane: LaneName) -> int:
        with self._lock:
            self._made += 1
            self.inside[self._made] = lane
            running = sum(1 for one in self.inside.values() if one is lane)
            self.most[lane] = max(self.most[lane], running)
            gate = self._gates[self._made] = threading.Event()
            if self._open:
                gate.set()
            return self._made

    def leave(self, number: int) -> None:
        with self._lock:
            del self.inside[number]

    def let_go(self, number: int, *, fails: bool = False) -> None:
        if fails:
            self._faults.add(number)
        self._gates[number].set()

    def let_all_go(self) -> None:
        with self._lock:
            self._open = True
            for gate in self._gates.values():
                gate.set()

    def count(self, lane: LaneName) -> int:
        with self._lock:
            return sum(1 for one in self.inside.values() if one is lane)

    def _end(self, number: int) -> str:
        if number in self._faults:
            raise HandlerError("unlucky", "its number came up")
        return "done"

    def _in_thread(self, lane: LaneName) -> Callable:
        def handler(_: dict, __: CallContext) -> str:
            number = self.enter(lane)
            try:
                self._gates[number].wait(30)
                return self._end(number)
            finally:
                self.leave(number)

        return handler

    def _on_loop(self, lane: LaneName, *, stubborn: bool) -> Callable:
        async def handler(_: dict, __: CallContext) -> str:
            number = self.enter(lane)
            try:
                while not self._gates[number].is_set():
                    try:
                        await asyncio.sleep(0.001)
                    except asyncio.CancelledError:
                        if not stubborn:
                            raise
                return self._end(number)
            finally:
                self.leave(number)

        return handler


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def pool_over(handlers: Handlers, engine: LettersEngine, clock: Clock) -> Dispatcher:
    lane = LaneLimits(N, 64, queue_tasks=30)
    return Dispatcher(
        engines=[engine],
        tokenizers={engine.spec.name: LetterTokenizer()},
        kinds=handlers.kinds(),
        limits=Limits(
            compute=lane,
            io=lane,
            stall_seconds=1e9,
            stall_kill_seconds=1e9,
            preemption=Preemption(wait_seconds=0.01),
        ),
        clock=clock,
    )


async def until(true: Callable[[], bool], what: str) -> None:
    for _ in range(4000):
        if true():
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"never: {what}")


def active(pool: Dispatcher, lane: LaneName) -> int:
    return pool.state().lanes[lane].active


class LaneMachine(RuleBasedStateMachine):
    """Submits, cancels, ends, crashes, timeouts and changes of N in any order."""

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.handlers, self.engine, self.clock = Handlers(), LettersEngine(), Clock()
        self.pool = pool_over(self.handlers, self.engine, self.clock)
        self.ids: list[str] = []
        self.generation = 0
        self.rejected = 0
        self.run(self._ready())

    def run(self, story):
        return self.loop.run_until_complete(asyncio.wait_for(story, 30))

    async def _ready(self) -> None:
        await self.pool.start()
        await until(lambda: self.pool.state().phase is Phase.READY, "ready")

    async def _submit(self, kind: str, lane: LaneName, seconds: float | None) -> str | None:
        if kind == "chat":
            payload, name = Generate(letters("y" * 400), 400), "chat"
            weight = 100.0 if seconds is None else 0.001  # the one may take the other's place
        else:
            payload, name, weight = Call(), f"{kind}-{lane.value}", 1.0
        request = TaskRequest(name, payload, timeout_seconds=seconds, weight=weight)
        try:
            task = await self.pool.submit(request)
        except Rejected:
            self.rejected += 1
            return None
        self.ids.append(task.id)
        return task.id

    submitted = (
        st.sampled_from(["chat", "thread", "loop", "stubborn"]),
        st.sampled_from(list(LaneName)),
        st.sampled_from([None, 5.0]),
    )

    @rule(what=st.tuples(*submitted), times=st.integers(1, 4))
    def submit(self, what, times: int) -> None:
        async def story() -> None:
            for _ in range(times):
                await self._submit(*what)

        self.run(story())

    @rule(what=st.tuples(*submitted), turns=st.integers(0, 3))
    def submit_and_cancel(self, what, turns: int) -> None:
        async def story() -> None:
            task_id = await self._submit(*what)
            for _ in range(turns):
                await asyncio.sleep(0)
            if task_id is not None:
                await self.pool.cancel(task_id)

        self.run(story())

    @rule(number=st.integers(0, 50))
    def cancel(self, number: int) -> None:
        async def story() -> None:
            if self.ids:
                await self.pool.cancel(self.ids[number % len(self.ids)])

        self.run(story())

    @rule(number=st.integers(0, 50), fails=st.booleans())
    def a_handler_ends(self, number: int, fails: bool) -> None:
        async def story() -> None:
            inside = sorted(self.handlers.inside)
            if inside:
                self.handlers.let_go(inside[number % len(inside)], fails=fails)

        self.run(story())

    @rule(lane=st.sampled_from(list(LaneName)), n=st.integers(1, 5))
    def set_threads(self, lane: LaneName, n: int) -> None:
        async def story() -> None:
            self.generation += 1
            self.handlers.most = {name: self.handlers.count(name) for name in LaneName}
            self.pool.set_threads(self.generation, {lane: n})

        self.run(story())

    @rule()
    def the_engine_dies(self) -> None:
        async def story() -> None:
            self.engine.kill()

        self.run(story())

    @rule(stands=st.booleans())
    def the_engine_stands_still(self, stands: bool) -> None:
        async def story() -> None:
            self.engine.hangs = stands

        self.run(story())

    @rule(seconds=st.sampled_from([1.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        async def story() -> None:
            self.clock.now += seconds
            await asyncio.sleep(0.005)

        self.run(story())

    @invariant()
    def active_is_what_really_runs(self) -> None:
        self.run(self._settled())

    async def _settled(self) -> None:
        def agree() -> bool:
            calls = self.handlers.count(LaneName.COMPUTE)
            compute = active(self.pool, LaneName.COMPUTE)
            return (
                active(self.pool, LaneName.IO) == self.handlers.count(LaneName.IO)
                and compute == calls + self.engine.held
                and self.engine.idle
            )

        await until(agree, "the lanes count what really runs")
        for lane, state in self.pool.state().lanes.items():
            before = self.handlers.most[lane]
            assert self.handlers.count(lane) <= max(before, state.threads)
            # A model or the handlers take their part at once, also where the others hold all of N.
            shared = N - 1 if lane is LaneName.COMPUTE else 0
            if state.active > state.threads + shared:
                # Only N that was lowered leaves more running than that: none of them is new.
                assert self.generation > 0

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.run(self._at_rest())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()

    async def _at_rest(self) -> None:
        self.engine.hangs = False
        self.handlers.let_all_go()

        def at_rest() -> bool:
            lanes = self.pool.state().lanes.values()
            return all(lane.active == lane.queued == 0 for lane in lanes)

        await until(at_rest, "nothing runs and nothing waits")
        totals = self.pool.state().totals
        ended = totals.succeeded + totals.failed + totals.cancelled + totals.expired
        assert totals.accepted == ended == len(self.ids)
        assert totals.rejected == self.rejected
        assert not self.handlers.inside
        assert self.pool.state().work.waiting_seconds == pytest.approx(0, abs=1e-6)
        await self.pool.stop(0.0)


LaneMachine.TestCase.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)


class TestLanes(LaneMachine.TestCase):
    @pytest.fixture(autouse=True)
    def _quick_ticks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dispatcher, "TICK_SECONDS", 0.001)


def play(story: Callable) -> None:
    async def in_pool() -> None:
        handlers, engine = Handlers(), LettersEngine()
        pool = pool_over(handlers, engine, Clock())
        await pool.start()
        try:
            await story(pool, handlers)
        finally:
            handlers.let_all_go()
            await pool.stop(0.0)

    asyncio.run(asyncio.wait_for(in_pool(), 60))


def test_submitted_and_cancelled_in_one_turn_of_the_loop_leaves_the_lane_as_it_was() -> None:
    async def story(pool: Dispatcher, handlers: Handlers) -> None:
        for _ in range(10 * N):
            task = await pool.submit(TaskRequest("loop-io", Call()))
            assert (await pool.cancel(task.id)).state is TaskState.CANCELLED
        await until(lambda: active(pool, LaneName.IO) == 0, "no thread is held")
        handlers.let_all_go()
        after = await pool.submit(TaskRequest("loop-io", Call()))
        assert (await pool.wait(after.id)).state is TaskState.SUCCEEDED

    play(story)


@pytest.mark.parametrize("kind", ["thread-io", "stubborn-io", "thread-compute"])
def test_a_cancelled_handler_that_goes_on_keeps_its_place(kind: str) -> None:
    async def story(pool: Dispatcher, handlers: Handlers) -> None:
        lane = LaneName(kind.split("-")[1])
        for _ in range(20):
            task = await pool.submit(TaskRequest(kind, Call()))
            await asyncio.sleep(0.005)
            await pool.cancel(task.id)
        await until(lambda: handlers.count(lane) == N, "N handlers run")
        assert handlers.most[lane] == N
        assert active(pool, lane) == N
        handlers.let_all_go()
        await until(lambda: active(pool, lane) == 0, "all are gone")

    play(story)


def test_a_handler_that_leaves_by_sys_exit_or_cancels_itself_fails_its_own_task_only() -> None:
    registry = Kinds()

    async def leaves(_: dict, __: CallContext) -> None:
        raise SystemExit(3)

    async def gives_up(_: dict, __: CallContext) -> None:
        raise asyncio.CancelledError

    def leaves_a_thread(_: dict, __: CallContext) -> None:
        raise SystemExit(3)

    for name, handler in (
        ("leaves", leaves),
        ("gives-up", gives_up),
        ("leaves-a-thread", leaves_a_thread),
    ):
        registry.register(Kind(name, handler, "io"))

    async def story() -> None:
        pool = Dispatcher(kinds=registry)
        await pool.start()
        for name in registry.names():
            view = await asyncio.wait_for(
                pool.wait((await pool.submit(TaskRequest(name, Call()))).id), 5
            )
            assert (view.state, view.error.code) == (TaskState.FAILED, "handler_failed")
        assert active(pool, LaneName.IO) == 0
        await pool.stop(0.0)

    asyncio.run(asyncio.wait_for(story(), 60))
