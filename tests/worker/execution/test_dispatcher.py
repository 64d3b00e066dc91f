"""The task pool over an engine that a test can hold, hurry and kill."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from fakes.letters_engine import POISON, LettersEngine, LetterTokenizer, letters
from hypothesis import given, settings
from hypothesis import strategies as st
from llmtaskpool_worker.contract import LaneName, Phase
from llmtaskpool_worker.engines.protocol import Loading
from llmtaskpool_worker.execution.dispatcher import TICK_SECONDS, Dispatcher
from llmtaskpool_worker.execution.pool import Rejected, StaleGeneration
from llmtaskpool_worker.kinds.registry import CallContext, HandlerError, Kind, Kinds
from llmtaskpool_worker.scheduling.limits import LaneLimits, Limits
from llmtaskpool_worker.scheduling.preemption import Preemption
from llmtaskpool_worker.scheduling.task import (
    TERMINAL,
    Call,
    Embed,
    Generate,
    Generated,
    StateChanged,
    TaskRequest,
    TaskState,
    TextDelta,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def limits(threads: int = 4, **more) -> Limits:
    queue = {"queue_tasks": more.pop("queue_tasks", 1000)}
    return Limits(compute=LaneLimits(threads, 64, **queue), io=LaneLimits(2, 64, **queue), **more)


def chat(text: str, *, tokens: int = 100, **more) -> TaskRequest:
    stop = more.pop("stop", ())
    return TaskRequest("chat", Generate(letters(text), tokens, stop=stop), **more)


@asynccontextmanager
async def running(engine: LettersEngine | None = None, bounds: Limits | None = None, **more):
    engine = engine or LettersEngine()
    pool = Dispatcher(
        engines=[engine, *more.pop("others", [])],
        tokenizers={engine.spec.name: LetterTokenizer()},
        limits=bounds or limits(),
        clock=more.pop("clock", Clock()),
        **more,
    )
    await pool.start()
    await until(lambda: pool.state().phase is Phase.READY)
    try:
        yield pool
    finally:
        await pool.stop(0.0)


async def until(true: Callable[[], bool], turns: int = 20_000) -> None:
    for _ in range(turns):
        if true():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("never happened")


async def until_state(pool: Dispatcher, task_id: str, state: TaskState) -> None:
    for _ in range(20_000):
        if (await pool.get(task_id)).state is state:
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"never {state}")


def play(story: Awaitable[None]) -> None:
    asyncio.run(asyncio.wait_for(story, 60))  # type: ignore[arg-type]


def idle(pool: Dispatcher) -> bool:
    state = pool.state()
    return all(lane.active == lane.queued == 0 for lane in state.lanes.values())


def test_a_generation_gives_its_text_as_it_comes_and_to_late_listeners_from_its_beginning() -> None:
    async def story() -> None:
        async with running() as pool:
            task = await pool.submit(chat("hello"))
            heard = [event async for event in pool.events(task.id)]
            again = [event async for event in pool.events(task.id)]
            assert heard == again
            assert [e.text for e in heard if isinstance(e, TextDelta)] == list("hello")
            states = [e.state.value for e in heard if isinstance(e, StateChanged)]
            assert states == ["queued", "running", "succeeded"]
            result = (await pool.get(task.id)).result
            assert isinstance(result, Generated)
            assert (result.text, result.finish_reason, result.prompt_tokens) == ("hello", "stop", 5)

    play(story())


def test_a_stop_string_ends_the_answer_and_frees_its_thread() -> None:
    async def story() -> None:
        async with running() as pool:
            task = await pool.submit(chat("say when, then more", stop=("when",)))
            view = await pool.wait(task.id)
            assert (view.result.text, view.result.finish_reason) == ("say ", "stop")
            await until(lambda: idle(pool))

    play(story())


def test_the_order_is_that_of_weight_over_load() -> None:
    async def story() -> None:
        engine = LettersEngine()
        async with running(engine, limits(threads=1)) as pool:
            engine.hangs = True
            first = await pool.submit(chat("a"))
            texts = [("b", 1.0), ("c", 9.0), ("d", 3.0), ("e" * 200, 9.0)]
            tasks = [await pool.submit(chat(text, weight=weight)) for text, weight in texts]
            engine.hangs = False
            for task in (first, *tasks):
                await pool.wait(task.id)
            assert [chr(token) for token in engine.started] == ["a", "c", "d", "e", "b"] or [
                chr(token) for token in engine.started
            ] == ["a", "c", "e", "d", "b"]

    play(story())


def test_a_task_that_waited_the_ageing_bound_has_its_share_before_urgent_ones() -> None:
    async def story() -> None:
        engine, clock = LettersEngine(), Clock()
        bounds = limits(threads=1, ageing_seconds=60.0, preemption=Preemption(factor=0.0))
        async with running(engine, bounds, clock=clock) as pool:
            engine.hangs = True
            await pool.submit(chat("a"))
            old = await pool.submit(chat("b", weight=0.01))
            clock.now += 61
            new = await pool.submit(chat("c", weight=100.0))
            engine.hangs = False
            await pool.wait(old.id)
            await pool.wait(new.id)
            assert [chr(token) for token in engine.started] == ["a", "b", "c"]

    play(story())


def test_n_is_never_exceeded_and_changes_while_tasks_run() -> None:
    async def story() -> None:
        engine = LettersEngine()
        async with running(engine, limits(threads=3)) as pool:
            tasks = [await pool.submit(chat("x" * 40)) for _ in range(12)]
            await until(lambda: engine.largest_batch == 3)
            assert pool.set_threads(5, {LaneName.COMPUTE: 6}).threads[LaneName.COMPUTE] == 6
            for task in tasks:
                await pool.wait(task.id)
            assert engine.largest_batch == 6
            with pytest.raises(StaleGeneration):
                pool.set_threads(4, {LaneName.COMPUTE: 1})
            assert pool.state().lanes[LaneName.COMPUTE].threads == 6

    play(story())


def test_a_full_queue_refuses_with_a_time_and_counts_the_work_as_arrived() -> None:
    async def story() -> None:
        engine = LettersEngine()
        async with running(engine, limits(threads=1, queue_tasks=2)) as pool:
            engine.hangs = True
            for _ in range(3):
                await pool.submit(chat("x"))
            arrived = pool.state().work.arrived_seconds_total
            with pytest.raises(Rejected) as refused:
                await pool.submit(chat("x"))
            assert refused.value.code == "queue_full"
            assert refused.value.retry_after_seconds >= 1
            state = pool.state()
            assert state.work.arrived_seconds_total > arrived
            assert state.totals.rejected == 1

    play(story())


def test_waiting_and_running_tasks_can_be_cancelled_and_hold_nothing_afterwards() -> None:
    async def story() -> None:
        engine = LettersEngine()
        async with running(engine, limits(threads=1)) as pool:
            engine.hangs = True
            runs, waits = await pool.submit(chat("abc")), await pool.submit(chat("def"))
            assert (await pool.cancel(waits.id)).state is TaskState.CANCELLED
            assert (await pool.cancel(runs.id)).state is TaskState.CANCELLED
            engine.hangs = False
            after = await pool.submit(chat("ok"))
            assert (await pool.wait(after.id)).result.text == "ok"
            await until(lambda: idle(pool))
            assert pool.state().work.waiting_seconds == pytest.approx(0)
            assert await pool.cancel("unknown") is None

    play(story())


def test_what_nobody_waits_for_is_not_given_up_with_what_somebody_waits_for() -> None:
    """Before: of 5,000 bulk tasks 4,203 expired after 600 s."""

    async def story() -> None:
        engine, clock = LettersEngine(), Clock()
        async with running(engine, limits(threads=1), clock=clock) as pool:
            engine.hangs = True
            await pool.submit(chat("a"))
            waiting = await pool.submit(chat("b", attended=True))
            bulk = await pool.submit(chat("c"))
            clock.now += 601
            await until_state(pool, waiting.id, TaskState.EXPIRED)
            assert (await pool.get(bulk.id)).state is TaskState.QUEUED
            clock.now += 86_400
            await until_state(pool, bulk.id, TaskState.EXPIRED)

    play(story())


def test_tasks_expire_in_the_queue_and_time_out_while_running() -> None:
    async def story() -> None:
        engine, clock = LettersEngine(), Clock()
        async with running(engine, limits(threads=1), clock=clock) as pool:
            engine.hangs = True
            runs = await pool.submit(chat("abc", timeout_seconds=5.0))
            waits = await pool.submit(chat("def", queue_timeout_seconds=3.0))
            clock.now += 4
            assert (await pool.wait(waits.id)).state is TaskState.EXPIRED
            clock.now += 2
            view = await pool.wait(runs.id)
            assert (view.state, view.error.code) == (TaskState.FAILED, "timeout")

    play(story())


def test_a_poisonous_prompt_takes_nobody_with_it_and_is_not_retried_for_ever() -> None:
    async def story() -> None:
        engine = LettersEngine()
        async with running(engine, limits(threads=8)) as pool:
            innocents = [await pool.submit(chat(f"innocent {i}")) for i in range(5)]
            poison = await pool.submit(chat("bad" + chr(POISON)))
            views = [await pool.wait(task.id) for task in innocents]
            assert [view.state for view in views] == [TaskState.SUCCEEDED] * 5
            view = await pool.wait(poison.id)
            assert (view.state, view.error.code) == (TaskState.FAILED, "crashed_engine_repeatedly")
            assert view.attempts == engine.deaths == 3
            assert (await pool.wait((await pool.submit(chat("next"))).id)).result.text == "next"
            assert pool.state().phase is Phase.READY

    play(story())


def test_a_stream_that_was_read_fails_when_the_engine_dies_because_it_cannot_be_unsaid() -> None:
    async def story() -> None:
        engine = LettersEngine()
        async with running(engine) as pool:
            task = await pool.submit(chat("x" * 100))
            seen = []
            async for event in pool.events(task.id):
                seen.append(event)
                if isinstance(event, TextDelta) and engine.deaths == 0:
                    engine.kill()
            view = await pool.get(task.id)
            assert (view.state, view.error.code) == (TaskState.FAILED, "engine_crashed")

    play(story())


def test_an_engine_that_stands_still_is_told_then_killed_and_the_worker_stays_alive() -> None:
    async def story() -> None:
        engine, clock = LettersEngine(), Clock()
        bounds = limits(stall_seconds=10.0, stall_kill_seconds=20.0)
        async with running(engine, bounds, clock=clock) as pool:
            engine.hangs = True
            task = await pool.submit(chat("abc"))
            clock.now += 11
            assert (pool.state().phase, pool.alive()) == (Phase.STARTING, True)
            problem = pool.state().model_problems["letters"]
            assert problem.code == "stalled"
            assert problem.message == "its engine has stood still for 11 s with work to do"
            clock.now += 10
            assert (await pool.wait(task.id)).state is TaskState.SUCCEEDED
            assert engine.deaths == 1
            assert (pool.state().phase, pool.alive()) == (Phase.READY, True)
            assert pool.state().model_problems == {}

    play(story())


def test_an_engine_that_stands_still_at_rest_is_told_and_killed_before_anybody_needs_it() -> None:
    """Before: it showed with the first request, which then waited for its kill and its load."""

    async def story() -> None:
        engine, clock = LettersEngine(), Clock()
        bounds = limits(stall_seconds=10.0, stall_kill_seconds=20.0)
        async with running(engine, bounds, clock=clock) as pool:
            clock.now += 6
            await until(lambda: engine.pings == 1 and engine.idle)
            clock.now += 11
            assert pool.state().phase is Phase.READY
            await until(lambda: engine.pings == 2 and engine.idle)
            engine.hangs = True
            clock.now += 6
            await until(lambda: engine.pings == 3)
            clock.now += 11
            assert (pool.state().phase, pool.alive()) == (Phase.STARTING, True)
            problem = pool.state().model_problems["letters"]
            assert problem.message == "its engine has stood still for 11 s and answers nothing"
            clock.now += 10
            await until(lambda: engine.deaths == 1)
            await until(lambda: pool.state().phase is Phase.READY)
            assert pool.state().model_problems == {}

    play(story())


class SilentLoad(LettersEngine):
    """Stands still while it loads, until it is killed."""

    async def start(self) -> None:
        self._events.put_nowait(Loading("loading", 0.5))
        self._stepping = asyncio.create_task(self._step_for_ever())


def test_an_engine_that_is_silent_while_it_loads_is_killed_and_loads_anew() -> None:
    """Before: the worker said "starting" for ever."""

    async def story() -> None:
        engine, clock = SilentLoad(), Clock()
        pool = Dispatcher(
            engines=[engine], limits=limits(load_silent_seconds=60.0), tokenizers={}, clock=clock
        )
        await pool.start()
        try:
            await until(lambda: engine.idle)
            clock.now += 59
            engine.beat()
            await until(lambda: engine.idle)
            clock.now += 59
            await asyncio.sleep(2 * TICK_SECONDS)
            assert engine.deaths == 0
            clock.now += 2
            await until(lambda: engine.deaths == 1)
            await until(lambda: pool.state().phase is Phase.READY)
        finally:
            await pool.stop(0.0)

    play(story())


class Undead(LettersEngine):
    """Can't be killed, as a process that waits for a driver can't."""

    def kill(self) -> None:
        self.deaths += 1


def test_an_engine_that_no_kill_ends_makes_the_worker_not_alive() -> None:
    async def story() -> None:
        engine, clock = Undead(), Clock()
        bounds = limits(stall_seconds=10.0, stall_kill_seconds=20.0)
        async with running(engine, bounds, clock=clock) as pool:
            engine.hangs = True
            await pool.submit(chat("abc"))
            clock.now += 39
            await until(lambda: engine.deaths > 0)
            assert pool.alive()
            clock.now += 2
            assert not pool.alive()

    play(story())


def test_an_engine_that_beats_within_a_long_step_is_slow_and_not_dead() -> None:
    async def story() -> None:
        engine, clock = LettersEngine(), Clock()
        bounds = limits(stall_seconds=10.0, stall_kill_seconds=20.0)
        async with running(engine, bounds, clock=clock) as pool:
            engine.hangs = True  # a step of two minutes
            task = await pool.submit(chat("abc"))
            for _ in range(24):
                clock.now += 5
                engine.beat()
                await asyncio.sleep(0.02)
                assert pool.state().phase is Phase.READY
            engine.hangs = False
            assert (await pool.wait(task.id)).state is TaskState.SUCCEEDED
            assert engine.deaths == 0

    play(story())


def test_a_worker_that_did_not_run_itself_does_not_blame_its_engines() -> None:
    async def story() -> None:
        engine = LettersEngine()
        bounds = limits(stall_seconds=0.5, stall_kill_seconds=1.0)
        async with running(engine, bounds, clock=time.monotonic) as pool:
            engine.hangs = True
            task = await pool.submit(chat("abc"))
            await asyncio.sleep(0.1)
            time.sleep(2.5)  # noqa: ASYNC251  as if the whole process had been stopped
            engine.hangs = False
            assert (await pool.wait(task.id)).state is TaskState.SUCCEEDED
            assert engine.deaths == 0

    play(story())


def test_an_idempotency_key_returns_its_task_and_refuses_another_body() -> None:
    async def story() -> None:
        async with running() as pool:
            one = await pool.submit(chat("abc", idempotency_key="k"))
            assert (await pool.submit(chat("abc", idempotency_key="k"))).id == one.id
            with pytest.raises(Rejected) as refused:
                await pool.submit(chat("abd", idempotency_key="k"))
            assert refused.value.code == "idempotency_conflict"

    play(story())


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (TaskRequest("dance", Call()), "unknown_kind"),
        (chat("a", model="gpt-9"), "unknown_model"),
        (TaskRequest("embed", Embed((1,))), "unknown_model"),
        (TaskRequest("chat", Embed((1,))), "invalid"),
    ],
)
def test_what_no_engine_does_is_refused(request_: TaskRequest, code: str) -> None:
    async def story() -> None:
        async with running() as pool:
            with pytest.raises(Rejected) as refused:
                await pool.submit(request_)
            assert refused.value.code == code

    play(story())


def test_draining_finishes_what_is_accepted_and_refuses_the_rest() -> None:
    async def story() -> None:
        async with running(bounds=limits(threads=2)) as pool:
            tasks = [await pool.submit(chat("abcdef")) for _ in range(6)]
            assert pool.drain(60.0).phase is Phase.DRAINING
            with pytest.raises(Rejected) as refused:
                await pool.submit(chat("late"))
            assert refused.value.code == "draining"
            states = [(await pool.wait(task.id)).state for task in tasks]
            assert states == [TaskState.SUCCEEDED] * 6
            assert pool.drain(60.0).phase is Phase.DRAINED

    play(story())


def test_stopping_tells_those_who_could_not_finish() -> None:
    async def story() -> None:
        engine = LettersEngine()
        async with running(engine, limits(threads=1)) as pool:
            engine.hangs = True
            tasks = [await pool.submit(chat("abc")) for _ in range(3)]
            await pool.stop(0.0)
            views = [await pool.wait(task.id) for task in tasks]
            assert {(v.state, v.error.code) for v in views} == {(TaskState.FAILED, "draining")}

    play(story())


def kinds() -> Kinds:
    registry = Kinds()

    async def nap(arguments: dict, _: CallContext) -> str:
        await asyncio.sleep(arguments.get("seconds", 0))
        return "slept"

    def broken(_: dict, __: CallContext) -> None:
        raise ValueError("a secret path: /root/key")

    def picky(_: dict, __: CallContext) -> None:
        raise HandlerError("out_of_paper", "the printer has no paper")

    def spin(_: dict, __: CallContext) -> int:
        return sum(range(200_000))

    registry.register(Kind("nap", nap))
    registry.register(Kind("broken", broken))
    registry.register(Kind("picky", picky))
    registry.register(Kind("spin", spin, lane="auto"))
    return registry


def test_a_flood_of_compute_does_not_hold_up_the_io_lane() -> None:
    async def story() -> None:
        engine = LettersEngine()
        async with running(engine, limits(threads=1), kinds=kinds()) as pool:
            engine.hangs = True
            for _ in range(200):
                await pool.submit(chat("x"))
            nap = await pool.submit(TaskRequest("nap", Call()))
            assert nap.lane is LaneName.IO
            assert (await pool.wait(nap.id)).result.value == "slept"

    play(story())


def test_what_a_handler_raises_never_reaches_the_client_unless_it_means_to() -> None:
    async def story() -> None:
        async with running(kinds=kinds()) as pool:
            broken = await pool.wait((await pool.submit(TaskRequest("broken", Call()))).id)
            picky = await pool.wait((await pool.submit(TaskRequest("picky", Call()))).id)
            assert broken.error.code == "handler_failed"
            assert "secret" not in broken.error.message
            assert (picky.error.code, picky.error.message) == (
                "out_of_paper",
                "the printer has no paper",
            )

    play(story())


operations = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 30), st.floats(0.1, 10)),
        st.tuples(st.just("cancel"), st.integers(0, 20), st.just(0.0)),
        st.tuples(st.just("die"), st.just(0), st.just(0.0)),
        st.tuples(st.just("resize"), st.integers(1, 9), st.just(0.0)),
        st.tuples(st.just("turn"), st.integers(1, 20), st.just(0.0)),
        st.tuples(st.just("watch"), st.integers(0, 20), st.just(0.0)),
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(operations)
def test_whatever_happens_each_task_ends_once_and_nothing_is_held(operations: list) -> None:
    async def story() -> None:
        engine, generation, listeners = LettersEngine(), 0, []
        async with running(engine, limits(threads=2, queue_tasks=10)) as pool:
            ids: list[str] = []
            ends: dict[str, int] = {}
            pool.on_ended = lambda view: ends.update({view.id: ends.get(view.id, 0) + 1})
            for name, number, weight in operations:
                if name == "submit":
                    try:
                        ids.append((await pool.submit(chat("y" * number, weight=weight))).id)
                    except Rejected as refused:
                        assert refused.code == "queue_full"  # noqa: PT017
                elif name == "cancel" and number < len(ids):
                    await pool.cancel(ids[number])
                elif name == "die":
                    engine.kill()
                elif name == "resize":
                    generation += 1
                    pool.set_threads(generation, {LaneName.COMPUTE: number})
                elif name == "watch" and number < len(ids):
                    listeners.append(asyncio.create_task(_listen(pool, ids[number])))
                elif name == "turn":
                    for _ in range(number):
                        await asyncio.sleep(0)
            for task_id in ids:
                assert (await pool.wait(task_id)).state in TERMINAL
            await asyncio.gather(*listeners)
            await until(lambda: idle(pool))
            assert ends == dict.fromkeys(ids, 1)
            assert pool.state().work.waiting_seconds == pytest.approx(0, abs=1e-6)

    play(story())


async def _listen(pool: Dispatcher, task_id: str) -> None:
    async for _ in pool.events(task_id):
        pass


def test_after_everything_has_run_no_work_waits_not_even_a_rounding_error_of_it() -> None:
    async def story() -> None:
        async with running(bounds=limits(2)) as pool:
            tasks = [
                await pool.submit(chat("x" * (1 + n % 7), tokens=3 + 5 * n, weight=0.1 + n % 3))
                for n in range(60)
            ]
            assert pool.state().work.waiting_seconds > 0
            for task in tasks:
                await pool.wait(task.id)
            # A pool sleeps when nothing waits: with 1e-16 of a second it stayed awake for ever.
            assert pool.state().work.waiting_seconds == 0

    play(story())
