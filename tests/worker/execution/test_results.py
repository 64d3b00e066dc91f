"""Answers that somebody waits for are there when they are read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from fakes.letters_engine import LettersEngine, LetterTokenizer, letters
from llmtaskpool_worker.contract import Phase
from llmtaskpool_worker.execution.dispatcher import Dispatcher
from llmtaskpool_worker.execution.pool import Rejected
from llmtaskpool_worker.execution.submitting import Batch
from llmtaskpool_worker.scheduling.limits import LaneLimits, Limits, ResultLimits
from llmtaskpool_worker.scheduling.task import Generate, StateChanged, TaskRequest


def chat(text: str) -> TaskRequest:
    return TaskRequest("chat", Generate(letters(text), 100))


def play(story: Callable, results: ResultLimits) -> None:
    async def in_pool() -> None:
        engine = LettersEngine()
        pool = Dispatcher(
            engines=[engine],
            tokenizers={"letters": LetterTokenizer()},
            limits=Limits(compute=LaneLimits(4, 64), results=results),
        )
        await pool.start()
        await asyncio.sleep(0.05)
        assert pool.state().phase is Phase.READY
        try:
            await story(pool)
        finally:
            await pool.stop(0.0)

    asyncio.run(asyncio.wait_for(in_pool(), 30))


@pytest.mark.parametrize("results", [ResultLimits(tasks=1), ResultLimits(bytes=1)])
def test_choices_that_end_in_any_order_are_all_read_though_the_store_is_full(
    results: ResultLimits,
) -> None:
    async def story(pool: Dispatcher) -> None:
        batch = Batch(pool)
        await batch.submit_all(
            [chat("the longest of all " * 3), chat("b"), chat("cc"), chat("ddd")]
        )
        others = Batch(pool)
        await others.run([chat("other") for _ in range(5)])
        views = await batch.results()
        assert [len(view.result.text) for view in views] == [57, 1, 2, 3]

    play(story, results)


def test_a_slow_reader_of_a_stream_gets_its_end_though_the_store_is_full() -> None:
    async def story(pool: Dispatcher) -> None:
        batch = Batch(pool)
        await batch.submit_all([chat("abc")])
        last = [event async for event in batch.events(0)][-1]
        others = Batch(pool)
        await others.run([chat("other") for _ in range(5)])
        others.cancel()
        assert isinstance(last, StateChanged)
        assert await batch.is_success(0, last)
        assert (await batch.result(0)).text == "abc"
        batch.cancel()

    play(story, ResultLimits(tasks=1))


def test_a_task_whose_result_cannot_be_kept_is_refused_and_leaves_nothing() -> None:
    async def story(pool: Dispatcher) -> None:
        kept = await pool.submit(chat("abc"))
        with pytest.raises(Rejected) as refused:
            await pool.submit(chat("abc"))
        assert refused.value.code == "results_full"
        assert refused.value.retry_after_seconds >= 1
        assert (await pool.wait(kept.id)).result.text == "abc"
        assert (await pool.get(kept.id)).result.text == "abc"
        state = pool.state()
        assert (state.totals.accepted, state.totals.rejected) == (1, 1)
        assert sum(lane.queued for lane in state.lanes.values()) == 0

    play(story, ResultLimits(tasks=1))
