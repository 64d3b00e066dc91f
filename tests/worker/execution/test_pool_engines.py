"""The task pool beside engines that share, fail and slow down."""

from __future__ import annotations

import asyncio

import pytest
from fakes.letters_engine import POISON, LettersEngine, LetterTokenizer, letters
from llmtaskpool_worker.contract import LaneName, Phase
from llmtaskpool_worker.engines.protocol import EngineDied, LoadFailed, Step
from llmtaskpool_worker.execution.dispatcher import Dispatcher
from llmtaskpool_worker.execution.pool import Rejected
from llmtaskpool_worker.scheduling.limits import LaneLimits, Limits
from llmtaskpool_worker.scheduling.preemption import Preemption
from llmtaskpool_worker.scheduling.task import (
    Embed,
    Generate,
    StateChanged,
    TaskRequest,
    TaskState,
    TextDelta,
)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def until(true) -> None:
    for _ in range(20_000):
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


def run(story, engine: LettersEngine, **more) -> None:
    async def whole() -> None:
        clock, tokenizer = Clock(), more.pop("tokenizer", LetterTokenizer())
        limits = Limits(compute=LaneLimits(16, 64), **more)
        pool = Dispatcher(
            engines=[engine], tokenizers={"letters": tokenizer}, limits=limits, clock=clock
        )
        await pool.start()
        try:
            await until(lambda: pool.state().phase is Phase.READY)
            await story(pool, clock)
        finally:
            await pool.stop(0.0)

    asyncio.run(asyncio.wait_for(whole(), 60))


def chat(text: str, **more) -> TaskRequest:
    return TaskRequest("chat", Generate(letters(text), 100), **more)


def test_embeddings_that_run_together_are_offered_as_their_share_of_the_engine() -> None:
    engine = LettersEngine(task="embed")

    async def story(pool: Dispatcher, clock: Clock) -> None:
        text = TaskRequest("embed", Embed(letters("abc")))
        engine.hangs = True
        tasks = [await pool.submit(text) for _ in range(8)]
        clock.now += 8.0
        engine.hangs = False
        for task in tasks:
            assert (await pool.wait(task.id)).state is TaskState.SUCCEEDED
        before = pool.state().work.arrived_seconds_total
        await pool.wait((await pool.submit(text)).id)
        assert pool.state().work.arrived_seconds_total - before == pytest.approx(1.0)

    run(story, engine)


class Picky(LetterTokenizer):
    def detokenizer(self) -> Picky:
        return self

    def push(self, token: int) -> str:
        if token == ord("#"):
            raise ValueError("no such letter")
        return chr(token)


def test_an_answer_that_cannot_be_decoded_fails_alone() -> None:
    engine = LettersEngine()

    async def story(pool: Dispatcher, _: Clock) -> None:
        good, bad = await pool.submit(chat("good" * 9)), await pool.submit(chat("ba#d" * 9))
        failed = await pool.wait(bad.id)
        assert failed.state is TaskState.FAILED
        assert failed.error is not None
        assert failed.error.code == "decoding_failed"
        assert "letter" not in failed.error.message
        assert (await pool.wait(good.id)).result.text == "good" * 9
        await until(lambda: pool.state().lanes[LaneName.COMPUTE].active == 0)

    run(story, engine, tokenizer=Picky())


class LoadsOnce(LettersEngine):
    """Can be loaded once; after a crash it can't."""

    def kill(self) -> None:
        self._be_ready = lambda: None
        super().kill()
        self._events.put_nowait(LoadFailed("the weights are gone"))


def test_those_who_wait_for_a_model_that_cannot_be_loaded_again_are_told() -> None:
    engine = LoadsOnce()

    async def story(pool: Dispatcher, _: Clock) -> None:
        engine.hangs = True
        tasks = [await pool.submit(chat("abc")) for _ in range(20)]  # 16 run, 4 wait
        engine.kill()
        for task in tasks:
            view = await pool.wait(task.id)
            assert (view.state, view.error.code) == (TaskState.FAILED, "model_failed")
        assert pool.state().phase is Phase.FAILED
        with pytest.raises(Rejected) as refused:
            await pool.submit(chat("abc"))
        assert refused.value.code == "model_failed"

    run(story, engine)


def test_a_model_that_could_not_be_loaded_and_is_tried_again_is_unready_until_it_is_back() -> None:
    engine = LettersEngine()

    async def story(pool: Dispatcher, _: Clock) -> None:
        back, engine._be_ready = engine._be_ready, lambda: None
        engine.hangs = True
        task = await pool.submit(chat("abc"))
        engine.kill()
        for wait in (1.0, 2.0):
            failed = LoadFailed("a file is away", may_pass=True, retrying_in_seconds=wait)
            engine._events.put_nowait(failed)
        await until(lambda: "letters" in pool.state().model_problems)
        await until(lambda: pool.state().model_problems["letters"].code == "retrying")
        assert pool.state().model_problems["letters"].message == "a file is away"
        assert pool.state().phase is Phase.STARTING
        waits = await pool.submit(chat("later"))
        back()
        for one in (task, waits):
            assert (await pool.wait(one.id)).state is TaskState.SUCCEEDED
        assert (pool.state().phase, pool.state().model_problems) == (Phase.READY, {})

    run(story, engine)


class NeverBack(LettersEngine):
    """Dies and stays away."""

    def kill(self) -> None:
        self._be_ready = lambda: None
        super().kill()


def test_a_task_of_an_engine_that_stays_away_is_not_kept_for_ever() -> None:
    engine = NeverBack()

    async def story(pool: Dispatcher, clock: Clock) -> None:
        engine.hangs = True
        task = await pool.submit(chat("abc"))
        engine.kill()
        await until_state(pool, task.id, TaskState.QUEUED)
        clock.now += 100.0
        view = await pool.wait(task.id)
        assert (view.state, view.error.code) == (TaskState.FAILED, "timeout")

    run(story, engine, run_timeout_seconds=50.0)


class Slow(LettersEngine):
    """Says of each step that it took a second."""

    async def events(self):
        async for event in super().events():
            if isinstance(event, Step):
                yield Step(event.number, 1.0, event.decode_batch, 0, event.tokens, event.finished)
            else:
                yield event


def test_slow_answers_lower_the_cap_that_the_operator_reads() -> None:
    engine = Slow()

    async def story(pool: Dispatcher, clock: Clock) -> None:
        def cap() -> int:
            return pool.state().lanes[LaneName.COMPUTE].threads_cap

        assert cap() > 1
        await pool.wait((await pool.submit(chat("abcdef"))).id)
        clock.now += 10.0
        assert cap() == 1
        pool.set_threads(1, {LaneName.COMPUTE: 32})
        assert pool.state().lanes[LaneName.COMPUTE].threads == 1

    run(story, engine, tpot_slo_seconds=0.2)


class Unlucky(LettersEngine):
    """Dies at its first steps whatever it runs, as often as told."""

    def __init__(self, dies: int) -> None:
        super().__init__()
        self.dies = dies

    def _step(self) -> None:
        if self._waiting and self.deaths < self.dies:
            self._events.put_nowait(EngineDied([], -9, 0.0))
            self.deaths += 1
            self._waiting.clear()
            self._be_ready()
            return
        super()._step()


@pytest.mark.parametrize(("dies", "ends"), [(2, "succeeded"), (3, "failed")])
def test_a_single_task_gets_three_attempts(dies: int, ends: str) -> None:
    engine = Unlucky(dies)

    async def story(pool: Dispatcher, _: Clock) -> None:
        view = await pool.wait((await pool.submit(chat("abc"))).id)
        assert (view.state.value, view.attempts) == (ends, 3)
        if view.error is not None:
            assert view.error.code == "crashed_engine_repeatedly"

    run(story, engine)


class Dazed(LettersEngine):
    """Stands still after its first death until told to go on."""

    def kill(self) -> None:
        super().kill()
        self.hangs = self.deaths == 1


def test_new_tasks_run_beside_suspects_as_soon_as_the_engine_is_back() -> None:
    engine = Dazed()

    async def story(pool: Dispatcher, _: Clock) -> None:
        suspects = [await pool.submit(chat(text)) for text in ("aaa", chr(POISON), "bbb")]
        await until(lambda: engine.deaths == 1)
        later = await pool.submit(chat("ccc", weight=100.0))
        await until_state(pool, later.id, TaskState.RUNNING)
        engine.hangs = False
        states = [(await pool.wait(task.id)).state.value for task in [*suspects, later]]
        assert states == ["succeeded", "failed", "succeeded", "succeeded"]
        assert engine.deaths <= 4, "log2 of 3 and two more"

    run(story, engine)


def test_one_poisonous_prompt_among_32_costs_six_crashes_and_harms_nobody() -> None:
    engine = LettersEngine()

    async def story(pool: Dispatcher, _: Clock) -> None:
        pool.set_threads(1, {LaneName.COMPUTE: 32})
        engine.hangs = True
        innocents = [await pool.submit(chat("innocent")) for _ in range(16)]
        poison = await pool.submit(chat("bad" + chr(POISON)))
        innocents += [await pool.submit(chat("innocent")) for _ in range(15)]
        engine.hangs = False
        assert (await pool.wait(poison.id)).error.code == "crashed_engine_repeatedly"
        states = {(await pool.wait(task.id)).state.value for task in innocents}
        assert states == {"succeeded"}
        assert engine.deaths <= 6

    run(story, engine)


SOON = Preemption(wait_seconds=0.1)
"""The engine of these tests says 10 ms for a step."""


def urgent(text: str) -> TaskRequest:
    return TaskRequest("chat", Generate(letters(text), 100), weight=100.0)


def bulk(letter: str, **more) -> TaskRequest:
    return TaskRequest("chat", Generate(letters(letter * 700), 700), weight=0.001, **more)


async def said(pool: Dispatcher, task_id: str) -> tuple[list[str], str]:
    """The states and the text of a task as one hears them who follows it from its start."""
    events = [event async for event in pool.events(task_id)]
    states = [event.state.value for event in events if isinstance(event, StateChanged)]
    return states, "".join(event.text for event in events if isinstance(event, TextDelta))


def test_an_urgent_chat_takes_the_place_of_bulk_which_goes_on_where_it_stood() -> None:
    engine = LettersEngine()

    async def story(pool: Dispatcher, _: Clock) -> None:
        pool.set_threads(1, {LaneName.COMPUTE: 2})
        tasks = [await pool.submit(bulk(letter)) for letter in "ab"]
        heard = [asyncio.create_task(said(pool, task.id)) for task in tasks]
        await until(lambda: engine.largest_batch == 2)
        first = await pool.submit(urgent("now"))
        assert (await pool.wait(first.id)).result.text == "now"
        states = [(await pool.get(task.id)).state for task in tasks]
        assert states == [TaskState.RUNNING] * 2
        for letter, hearing in zip("ab", heard, strict=True):
            assert await hearing == (["queued", "running", "succeeded"], letter * 700)
        views = [await pool.get(task.id) for task in tasks]
        assert [len(view.result.tokens) for view in views] == [700, 700]
        assert [view.attempts for view in views] == [1, 1]
        assert engine.parkings == 1

    run(story, engine, preemption=SOON)


def test_the_place_that_is_made_is_for_the_urgent_and_not_for_those_who_have_aged() -> None:
    engine = LettersEngine()

    async def story(pool: Dispatcher, clock: Clock) -> None:
        pool.set_threads(1, {LaneName.COMPUTE: 1})
        tasks = [await pool.submit(bulk(letter)) for letter in "abc"]
        await until(lambda: engine.largest_batch == 1)
        clock.now += 301
        assert (await pool.wait((await pool.submit(urgent("now"))).id)).result.text == "now"
        assert [chr(token) for token in engine.started] == ["a", "n"]
        assert engine.parkings == 1
        for task in tasks:
            assert (await pool.wait(task.id)).state is TaskState.SUCCEEDED

    run(story, engine, preemption=SOON)


def test_a_task_makes_way_twice_at_most_and_never_for_its_equals() -> None:
    engine = LettersEngine()

    async def story(pool: Dispatcher, _: Clock) -> None:
        pool.set_threads(1, {LaneName.COMPUTE: 1})
        task = await pool.submit(bulk("a"))
        await until(lambda: engine.largest_batch == 1)
        equal = await pool.submit(bulk("b"))
        for _ in range(4):
            assert (await pool.wait((await pool.submit(urgent("now"))).id)).result.text == "now"
            await asyncio.sleep(0.01)
        assert (await pool.wait(task.id)).result.text == "a" * 700
        assert (await pool.wait(equal.id)).result.text == "b" * 700
        assert 2 <= engine.parkings <= 4, "each of the two at most twice"

    run(story, engine, preemption=SOON)


@pytest.mark.parametrize("end", ["cancel", "crash"])
def test_what_made_way_can_be_cancelled_and_survives_a_crash(end: str) -> None:
    engine = LettersEngine()

    async def story(pool: Dispatcher, _: Clock) -> None:
        pool.set_threads(1, {LaneName.COMPUTE: 1})
        task = await pool.submit(bulk("a"))
        await until(lambda: engine.largest_batch == 1)
        other = await pool.submit(urgent("n" * 90))
        await until(lambda: engine.parkings == 1)
        if end == "cancel":
            assert (await pool.cancel(task.id)).state is TaskState.CANCELLED
        else:
            engine.kill()
            assert (await pool.wait(task.id)).result.text == "a" * 700
        assert (await pool.wait(other.id)).result.text == "n" * 90
        await until(lambda: pool.state().lanes[LaneName.COMPUTE].active == 0)
        assert pool.state().lanes[LaneName.COMPUTE].queued == 0
        assert engine.held == 0

    run(story, engine, preemption=SOON)
