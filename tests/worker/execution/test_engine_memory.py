"""Engines that hold more than they should begin anew, and nobody loses anything by it."""

from __future__ import annotations

import asyncio

import pytest
from fakes.letters_engine import LettersEngine
from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.engines.protocol import EngineDied, Loading, Memory, Ready, Stop, Trim
from llmtaskpool_worker.execution.dispatcher import Dispatcher
from llmtaskpool_worker.execution.engine_memory import SETTLE_SECONDS, EngineMemory
from llmtaskpool_worker.scheduling.task import TaskState

from .test_pool_engines import SOON, bulk, chat, run, until, until_state, urgent

BUDGET = 1000


class LeakingEngine(LettersEngine):
    """Says what a test lets it hold, and ends as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.trims = self.lives = 0

    def holds(self, own_bytes: int, given_back_bytes: int = 0) -> None:
        self._events.put_nowait(Memory(own_bytes, given_back_bytes))

    def send(self, message) -> None:
        if isinstance(message, Trim):
            self.trims += 1
        elif isinstance(message, Stop):
            assert self.held == 0, "it is ended only when nothing runs in it"
            self._events.put_nowait(EngineDied([], 0, 0.0))
            self._be_ready()
        else:
            super().send(message)

    def _be_ready(self) -> None:
        self.lives += 1
        self._events.put_nowait(Loading("loading", 1.0))
        self._events.put_nowait(
            Ready(256, 0x110000, [], "cpu", "float32", 64, memory_budget_bytes=BUDGET)
        )


def test_one_that_stays_beyond_its_budget_begins_anew_when_what_runs_has_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = LeakingEngine()

    async def story(pool: Dispatcher, clock) -> None:
        engine.hangs = True
        running = await pool.submit(chat("abcdef"))
        await until_state(pool, running.id, TaskState.RUNNING)
        engine.holds(BUDGET + 1)
        await until(lambda: engine.trims == 1)
        assert pool.state().model_memory["letters"].own_bytes == BUDGET + 1
        clock.now += SETTLE_SECONDS
        await until(lambda: "engine leaks memory" in caplog.text)
        later = [await pool.submit(chat(letter)) for letter in "xyz"]
        await until(lambda: pool.state().lanes[LaneName.COMPUTE].queued == 3)
        assert engine.lives == 1
        engine.hangs = False
        for task in (running, *later):
            ended = await asyncio.wait_for(pool.wait(task.id), 60)
            assert ended.state is TaskState.SUCCEEDED
        assert ended.attempts == 1
        assert engine.lives == 2
        assert pool.state().model_memory["letters"].recycled_total == 1
        assert engine.started == [ord(letter) for letter in "axyz"], "each began once"

    run(story, engine)


def test_nobody_makes_way_in_one_that_takes_nothing_new(caplog: pytest.LogCaptureFixture) -> None:
    engine = LeakingEngine()

    async def story(pool: Dispatcher, clock) -> None:
        engine.hangs = True
        pool.set_threads(1, {LaneName.COMPUTE: 1})
        running = await pool.submit(bulk("a"))
        await until_state(pool, running.id, TaskState.RUNNING)
        engine.holds(BUDGET + 1)
        await until(lambda: engine.trims == 1)
        clock.now += SETTLE_SECONDS
        await until(lambda: "engine leaks memory" in caplog.text)
        first = await pool.submit(urgent("now"))
        await asyncio.sleep(0.6)  # two looks at who is urgent
        engine.hangs = False
        for task in (running, first):
            assert (await asyncio.wait_for(pool.wait(task.id), 60)).state is TaskState.SUCCEEDED
        assert (engine.parkings, engine.lives) == (0, 2)

    run(story, engine, preemption=SOON)


def test_one_that_gives_back_enough_goes_on_and_what_it_gave_is_told() -> None:
    engine = LeakingEngine()

    async def story(pool: Dispatcher, clock) -> None:
        engine.holds(5 * BUDGET)
        await until(lambda: engine.trims == 1)
        engine.holds(BUDGET, 4 * BUDGET)
        await until(lambda: pool.state().model_memory["letters"].own_bytes == BUDGET)
        for _ in range(4):
            clock.now += SETTLE_SECONDS
            await asyncio.sleep(0.3)
        seen = pool.state().model_memory["letters"]
        assert (seen.given_back_bytes_total, seen.recycled_total) == (4 * BUDGET, 0)
        assert (engine.lives, engine.trims) == (1, 1)

    run(story, engine, trim_idle_seconds=1e9)


def test_those_who_are_put_aside_in_it_go_on_first() -> None:
    memory = EngineMemory()
    memory.began(BUDGET)
    memory.told(Memory(BUDGET + 1))
    memory.parked = 1
    assert memory.look(0.0, 2) == "trim"
    assert memory.look(SETTLE_SECONDS - 1, 2) is None
    assert memory.look(SETTLE_SECONDS, 2) == "leave"
    assert memory.look(SETTLE_SECONDS, 1) is None
    assert memory.leaving
    assert memory.look(SETTLE_SECONDS, 0) is None
    assert not memory.leaving, "it takes them again"
    assert memory.look(2 * SETTLE_SECONDS, 1) == "leave"
    memory.parked = 0
    assert memory.look(2 * SETTLE_SECONDS, 0) == "stop"
    assert memory.look(9 * SETTLE_SECONDS, 0) is None, "it is told once"
    memory.began(BUDGET)
    assert (memory.leaving, memory.recycled, memory.state().own_bytes) == (False, 1, None)


def test_an_engine_that_says_nothing_of_its_memory_is_left_alone() -> None:
    memory = EngineMemory()
    memory.told(Memory(1 << 60))
    assert memory.look(0.0, 0) is None
    memory.began(None)
    assert memory.look(99.0, 0) is None
    assert memory.state() is None
