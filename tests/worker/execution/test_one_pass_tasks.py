"""Tasks of a model that runs once over its input, from the queue to their result."""

from __future__ import annotations

import asyncio
import time
from array import array

import pytest
from fakes.letters_engine import LettersEngine
from llmtaskpool_worker.contract import Phase
from llmtaskpool_worker.execution import engine_events
from llmtaskpool_worker.execution.dispatcher import Dispatcher
from llmtaskpool_worker.execution.pool import Rejected
from llmtaskpool_worker.scheduling.limits import LaneLimits, Limits
from llmtaskpool_worker.scheduling.task import (
    Embed,
    Evaluate,
    Evaluated,
    Row,
    TaskRequest,
    TaskState,
)


def rows(*sizes: int) -> tuple[Row, ...]:
    return tuple(Row(array("I", [65] * size).tobytes()) for size in sizes)


def play(story) -> None:
    async def whole() -> None:
        engine = LettersEngine("moods", task="classify")
        lane = LaneLimits(4, 64)
        pool = Dispatcher(engines=[engine], limits=Limits(compute=lane), clock=time.monotonic)
        await pool.start()
        for _ in range(10_000):
            if pool.state().phase is Phase.READY:
                break
            await asyncio.sleep(0)
        try:
            await story(pool)
        finally:
            await pool.stop(0.0)

    asyncio.run(asyncio.wait_for(whole(), 60))


def test_a_task_gets_the_labels_of_its_model_and_the_tokens_that_were_read() -> None:
    async def story(pool: Dispatcher) -> None:
        view = await pool.wait(
            (await pool.submit(TaskRequest("classify", Evaluate(rows(1, 4))))).id
        )
        assert view.state is TaskState.SUCCEEDED
        assert isinstance(view.result, Evaluated)
        assert view.result.prompt_tokens == 5
        labels = [one["label"] for one in view.result.value["data"]]
        assert labels == ["short", "long"]

    play(story)


def test_what_tasks_cost_is_learned_so_that_long_ones_weigh_more() -> None:
    async def story(pool: Dispatcher) -> None:
        short = await pool.submit(TaskRequest("classify", Evaluate(rows(4))))
        long = await pool.submit(TaskRequest("classify", Evaluate(rows(*[256] * 40))))
        assert long.load_seconds > 10 * short.load_seconds
        await pool.wait(long.id)

    play(story)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (TaskRequest("classify", Embed((1,))), "invalid"),
        (TaskRequest("tag", Evaluate(rows(1))), "unknown_model"),
        (TaskRequest("rerank", Evaluate(rows(1))), "unknown_model"),
    ],
)
def test_what_the_models_here_do_not_do_is_refused(request_: TaskRequest, code: str) -> None:
    async def story(pool: Dispatcher) -> None:
        with pytest.raises(Rejected) as refused:
            await pool.submit(request_)
        assert refused.value.code == code

    play(story)


def test_what_a_model_made_that_can_not_be_read_fails_its_task_and_no_other(monkeypatch) -> None:
    """Before: its client waited until the run's timeout."""
    good = engine_events.conclude

    def spoilt(kind, payload, values, about):
        if payload.size == 13:
            raise IndexError("a span beyond the text")
        return good(kind, payload, values, about)

    monkeypatch.setattr(engine_events, "conclude", spoilt)

    async def story(pool: Dispatcher) -> None:
        bad = await pool.submit(TaskRequest("classify", Evaluate(rows(13))))
        fine = await pool.submit(TaskRequest("classify", Evaluate(rows(4))))
        view = await pool.wait(bad.id)
        assert view.state is TaskState.FAILED
        assert view.error is not None
        assert view.error.code == "decoding_failed"
        assert (await pool.wait(fine.id)).state is TaskState.SUCCEEDED

    play(story)
