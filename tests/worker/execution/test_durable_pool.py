"""The pool over a queue's file: what it owes to tasks that survive it, and to clients that wait."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fakes.letters_engine import POISON, LettersEngine, LetterTokenizer, letters
from llmtaskpool_worker.brokers.sqlite import SqliteBroker
from llmtaskpool_worker.contract import LaneName, Phase
from llmtaskpool_worker.execution.dispatcher import Dispatcher
from llmtaskpool_worker.execution.pool import Rejected
from llmtaskpool_worker.execution.submitting import Batch
from llmtaskpool_worker.kinds.registry import CallContext, Kind, Kinds
from llmtaskpool_worker.scheduling.limits import LaneLimits, Limits
from llmtaskpool_worker.scheduling.preemption import Preemption
from llmtaskpool_worker.scheduling.task import Call, Generate, TaskRequest, TaskState


class Gate:
    """Handlers of kind "wait" stand in it until it opens."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.beside: dict[str, int] = {}
        """The most that ran beside each."""
        self.began: list[str] = []
        self.open = asyncio.Event()

    def kinds(self) -> Kinds:
        registry = Kinds()

        async def wait(arguments: dict, _: CallContext) -> str:
            name = arguments["name"]
            self.began.append(name)
            self.inside.append(name)
            for one in self.inside:
                self.beside[one] = max(self.beside.get(one, 0), len(self.inside) - 1)
            try:
                await self.open.wait()
                await asyncio.sleep(0.01)
            finally:
                self.inside.remove(name)
            return name

        registry.register(Kind("wait", wait, "io"))
        return registry


def work(name: str, **more) -> TaskRequest:
    return TaskRequest("wait", Call({"name": name}), **more)


def chat(text: str, **more) -> TaskRequest:
    return TaskRequest("chat", Generate(letters(text), 100), **more)


@asynccontextmanager
async def pool_over(file: Path, gate: Gate, engine: LettersEngine | None = None, **bounds):
    import time

    engine = engine or LettersEngine()
    limits = Limits(compute=LaneLimits(4, 64), io=LaneLimits(3, 64), **bounds)
    pool = Dispatcher(
        engines=[engine],
        tokenizers={engine.spec.name: LetterTokenizer()},
        kinds=gate.kinds(),
        limits=limits,
        broker=SqliteBroker(file, limits, time.monotonic, time.time),
    )
    await pool.start()
    await until(lambda: pool.state().phase is Phase.READY, "ready")
    yield pool
    await pool.stop(0.0)


async def until(true, what: str) -> None:
    for _ in range(8000):
        if true():
            return
        await asyncio.sleep(0.002)
    raise AssertionError(f"never: {what}")


async def die(pool: Dispatcher) -> None:
    """As a process that is killed: nothing is said to anybody any more."""
    for loop in pool._loops:
        loop.cancel()
    await pool._asking.close()
    for teller in pool._ledger.desk._tellers.values():
        teller._telling.cancel()
    await pool._ledger.broker._journal.close()
    for task in list(pool._ledger.active.values()):
        if task.calling is not None:
            task.calling.cancel()
    pool._ledger.active.clear()


def play(story) -> None:
    asyncio.run(asyncio.wait_for(story, 60))


def test_what_ran_when_its_worker_died_runs_alone_next_and_then_all_others(tmp_path: Path) -> None:
    async def story() -> None:
        file, gate = tmp_path / "queue.db", Gate()
        async with pool_over(file, gate) as pool:
            ids = [(await pool.submit(work(name))).id for name in "abcdefgh"]
            await until(lambda: len(gate.inside) == 3, "three run")
            await die(pool)
        gate = Gate()
        async with pool_over(file, gate) as pool:
            await until(lambda: len(gate.inside) == 1, "one runs")
            await asyncio.sleep(0.1)
            assert gate.began == ["a"], "nothing begins beside it"
            gate.open.set()
            views = [await pool.wait(task_id) for task_id in ids]
            assert {view.state for view in views} == {TaskState.SUCCEEDED}
            assert [view.attempts for view in views] == [2, 2, 2, 1, 1, 1, 1, 1]
            assert [gate.beside[name] for name in "abc"] == [0, 0, 0]
            assert max(gate.beside.values()) == 2, "who did not run then runs beside others"

    play(story())


def test_chats_and_tasks_take_one_line_and_a_chat_ends_with_its_client(tmp_path: Path) -> None:
    async def story() -> None:
        file, gate, engine = tmp_path / "queue.db", Gate(), LettersEngine()
        async with pool_over(file, gate, engine) as pool:
            engine.hangs = True
            bulk = [await pool.submit(chat("bulk", weight=0.1)) for _ in range(9)]
            await until(lambda: pool.state().lanes[LaneName.COMPUTE].active == 4, "four run")
            batch = Batch(pool)
            await batch.submit_all([chat("gone" * 20, weight=9.0)])
            assert pool.state().lanes[LaneName.COMPUTE].queued == 6
            batch.cancel()
            await until(lambda: pool.state().lanes[LaneName.COMPUTE].queued == 5, "it is gone")
            batch = Batch(pool)
            await batch.submit_all([chat("hello", weight=9.0)])
            engine.hangs = False
            [answered] = await batch.results()
            assert answered.result.text == "hello"
            assert (await pool.wait(bulk[-1].id)).state is TaskState.SUCCEEDED
            batch.cancel()

    play(story())


def test_a_poisonous_prompt_is_found_among_tasks_that_survive(tmp_path: Path) -> None:
    async def story() -> None:
        engine = LettersEngine()
        async with pool_over(tmp_path / "queue.db", Gate(), engine) as pool:
            innocents = [await pool.submit(chat(f"innocent {i}")) for i in range(3)]
            poison = await pool.submit(chat("bad" + chr(POISON)))
            for task in innocents:
                assert (await pool.wait(task.id)).state is TaskState.SUCCEEDED
            view = await pool.wait(poison.id)
            assert (view.state, view.error.code) == (TaskState.FAILED, "crashed_engine_repeatedly")
            await until(lambda: pool.state().totals.failed == 1, "it is counted")
            assert pool.state().totals.succeeded == 3

    play(story())


def test_an_urgent_one_takes_the_place_of_bulk_that_survives(tmp_path: Path) -> None:
    async def story() -> None:
        engine, soon = LettersEngine(), Preemption(wait_seconds=0.1)
        async with pool_over(tmp_path / "queue.db", Gate(), engine, preemption=soon) as pool:
            pool.set_threads(1, {LaneName.COMPUTE: 1})
            engine.hangs = True
            request = TaskRequest("chat", Generate(letters("a" * 700), 700), weight=0.001)
            bulk = await pool.submit(request)
            await until(lambda: pool.state().lanes[LaneName.COMPUTE].active == 1, "it runs")
            urgent = await pool.submit(chat("now", weight=100.0))
            await asyncio.sleep(1.2)  # who is to make way is looked at each second
            engine.hangs = False
            assert (await pool.wait(urgent.id)).result.text == "now"
            view = await pool.wait(bulk.id)
            assert (view.result.text, view.attempts) == ("a" * 700, 1)
            assert engine.parkings == 1

    play(story())


def test_a_result_is_told_when_it_is_written_and_waits_for_the_disk(tmp_path: Path) -> None:
    async def story() -> None:
        gate = Gate()
        async with pool_over(tmp_path / "queue.db", gate) as pool:
            task = await pool.submit(work("a"))
            await until(lambda: gate.inside, "it runs")
            journal = pool._ledger.broker._journal
            file, journal._file = journal._file, None
            gate.open.set()
            await until(lambda: not gate.inside, "its handler has ended")
            await until(lambda: pool.state().lanes[LaneName.IO].active == 0, "its thread is free")
            await asyncio.sleep(0.2)
            assert (await pool.get(task.id)).state is TaskState.RUNNING
            with pytest.raises(Rejected) as refused:
                await pool.submit(work("b"))
            assert refused.value.code == "queue_unavailable"
            batch = Batch(pool)
            await batch.submit_all([chat("hello")])
            assert (await batch.results())[0].result.text == "hello", "chats are held up by none"
            batch.cancel()
            journal._file = file
            view = await pool.wait(task.id)
            assert (view.state, view.attempts) == (TaskState.SUCCEEDED, 1)
            assert (await pool.wait((await pool.submit(work("c"))).id)).result.value == "c"

    play(story())


def test_a_dead_letter_is_counted_and_told_in_the_state(tmp_path: Path) -> None:
    async def story() -> None:
        file = tmp_path / "queue.db"
        for _ in range(3):
            gate = Gate()
            async with pool_over(file, gate) as pool:
                if not gate.inside:
                    await pool.submit(work("poison", idempotency_key="poison"))
                await until(lambda gate=gate: gate.inside, "it runs")
                await die(pool)
        async with pool_over(file, Gate()) as pool:
            await until(lambda: pool.state().totals.dead == 1, "it is counted")
            told = pool.state().queue
            assert (told.durability, told.durable, told.dead) == ("file", True, 1)

    play(story())
