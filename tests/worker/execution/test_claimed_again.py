"""A task whose claim was lost is claimed again here, while what ran for the first has not ended."""

from __future__ import annotations

import asyncio
import time

import pytest
from fakes.gated_kinds import Work
from fakes.letters_engine import LettersEngine
from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.engines.protocol import Cancel
from llmtaskpool_worker.execution.dispatcher import Dispatcher
from llmtaskpool_worker.scheduling.task import Call, TaskRequest, TaskState

from .test_dispatcher import chat, play, running, until, until_state


class Deaf(LettersEngine):
    """Goes on with what was cancelled."""

    def send(self, message) -> None:
        if not isinstance(message, Cancel):
            super().send(message)


async def lost_and_replayed(pool: Dispatcher, task_id: str) -> None:
    """Its claim is taken for lost once too often, and somebody has it run again."""
    broker = pool._ledger.broker
    record = broker._records[task_id]
    record.losses = record.task.max_attempts - 1
    broker._lose(record)
    await until_state(pool, task_id, TaskState.DEAD)
    await pool.replay(task_id)


def test_a_handler_of_the_first_claim_that_ends_does_not_end_the_second() -> None:
    async def story() -> None:
        work = Work()
        pool = work.pool(time.monotonic)
        await pool.start()
        try:
            call = TaskRequest("gated", Call({"x": 2}))
            tasks = [await pool.submit(call) for _ in range(3)]
            for task in tasks:
                await until_state(pool, task.id, TaskState.RUNNING)
                await lost_and_replayed(pool, task.id)
                await until_state(pool, task.id, TaskState.RUNNING)
            assert pool.state().lanes[LaneName.IO].active == 2 * len(tasks)
            work.gate.set()
            for task in tasks:
                ended = await asyncio.wait_for(pool.wait(task.id), 20)
                assert (ended.state, ended.result.value) == (TaskState.SUCCEEDED, {"x": 2})
            await until(lambda: pool.state().lanes[LaneName.IO].active == 0)
        finally:
            work.gate.set()
            await pool.stop(0.0)

    play(story())


@pytest.mark.parametrize("said", ["hello", "a longer answer, which goes on for a while"])
def test_tokens_of_the_first_claim_are_not_taken_for_the_second_ones(said: str) -> None:
    async def story() -> None:
        engine = Deaf()
        async with running(engine) as pool:
            task = await pool.submit(chat(said))
            await until(lambda: engine.held == 1)
            await lost_and_replayed(pool, task.id)
            await until(lambda: engine.held == 2)
            ended = await pool.wait(task.id)
            assert (ended.state, ended.result.text) == (TaskState.SUCCEEDED, said)
            await until(lambda: engine.held == 0)
            again = await pool.submit(chat("and the next"))
            assert (await pool.wait(again.id)).result.text == "and the next"

    play(story())
