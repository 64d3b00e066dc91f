"""What a caller may rely on of any Engine (protocol.Engine), asserted of the real ones and a fake.

The task pool's tests run over LettersEngine: what they show holds of EngineProcess as far as both
keep these promises. A server's engine keeps them with requests in place of token ids.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from array import array
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fakes.letters_engine import LettersEngine
from fakes.upstreams import UPSTREAMS, upstream_serving
from llmtaskpool_worker.engines.process import EngineProcess
from llmtaskpool_worker.engines.protocol import (
    Admit,
    AdmitEmbedding,
    AdmitForward,
    AdmitInputs,
    Answered,
    Beat,
    Cancel,
    Engine,
    EngineDied,
    EngineEvent,
    Finished,
    Gauges,
    Loading,
    Memory,
    ModelSpec,
    Piece,
    Ping,
    Ready,
    RequestFailed,
    SetThreads,
    Step,
    TextRow,
    Values,
)
from llmtaskpool_worker.engines.upstream.address import address_of
from llmtaskpool_worker.engines.upstream.engine import UpstreamEngine

from .tiny_models import write_headed

LONG = 2000
"""Output tokens of a request that no test waits for."""
STORY_SECONDS = 120.0
ROW_TOKENS = 200
"""Of a row for a model that runs once over its input: a step takes five of them."""

Make = Callable[[], Engine]


@dataclass
class Told:
    """What the engine said since this was made."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    ends: list[Finished] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    late: list[int] = field(default_factory=list)
    """Ids of tokens that came after their request had ended."""
    batches: list[set[int]] = field(default_factory=list)
    others: list[EngineEvent] = field(default_factory=list)
    beats: int = 0

    def note(self, event: EngineEvent) -> None:
        match event:
            case Step():
                ended = {one.id for one in self.ends}
                self.late += [token.id for token in event.tokens if token.id in ended]
                for token in event.tokens:
                    self.tokens.setdefault(token.id, []).append(token.token)
                for request_id in event.ran:  # a row is to them what a token is to others
                    self.tokens.setdefault(request_id, []).append(0)
                self.batches.append({token.id for token in event.tokens} | set(event.ran))
                self.ends += event.finished
            case Values(id=id_):
                self.ends.append(Finished(id_, "length"))
            case Piece(id=id_, choice=choice):
                self._note_piece(id_, choice)
            case Answered(id=id_, reason=reason, usage=usage):
                if usage is not None:  # a letter of several tokens comes in one piece
                    self.tokens[id_] = [0] * usage["completion_tokens"]
                self.ends.append(Finished(id_, reason))
                self.batches.append(set())
            case Gauges():
                pass
            case RequestFailed():
                self.failed[event.id] = event.code
            case Beat():  # it may come at any time
                self.beats += 1
            case Memory():  # as this
                pass
            case _:
                self.others.append(event)

    def _note_piece(self, id_: int, choice: dict[str, Any]) -> None:
        """A server's batch is what it said between two words of one stream."""
        if id_ in {one.id for one in self.ends}:
            self.late.append(id_)
        if not choice["text"]:
            return
        self.tokens.setdefault(id_, []).append(0)
        if not self.batches or id_ in self.batches[-1]:
            self.batches.append(set())
        self.batches[-1].add(id_)

    def reasons(self) -> dict[int, str]:
        return {one.id: one.reason for one in self.ends}

    def length(self, request_id: int) -> int:
        return len(self.tokens.get(request_id, []))


class Caller:
    """The one consumer of an engine's events; every test hears anew."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ids = count(1)
        self.told = Told()
        self._events = engine.events()

    def submit(self, tokens: int, *, request_id: int | None = None) -> int:
        """Ask for so many tokens. The fake repeats the prompt, so it is as long."""
        number = next(self.ids) if request_id is None else request_id
        if self.engine.spec.forwards:
            body = {"prompt": "a" * tokens, "max_tokens": tokens, "ignore_eos": True}
            self.engine.send(AdmitForward(number, "completions", json.dumps(body).encode()))
            return number
        if self.engine.spec.task == "classify":
            row = TextRow(array("I", [5] * ROW_TOKENS).tobytes())
            self.engine.send(AdmitInputs(number, [row] * tokens))
            return number
        prompt = [2 + place % 90 for place in range(tokens)]
        self.engine.send(Admit(number, prompt, tokens, ignore_eos=True))
        return number

    async def until(self, true: Callable[[Told], bool]) -> Told:
        while not true(self.told):
            self.told.note(await anext(self._events))
        return self.told

    async def until_ready(self) -> Told:
        return await self.until(lambda told: any(isinstance(one, Ready) for one in told.others))

    async def rest(self) -> Told:
        """All that is left of the events, which have to end."""
        async for event in self._events:
            self.told.note(event)
        return self.told


Play = Callable[[Callable[[Caller], Coroutine[Any, Any, None]]], None]


@pytest.fixture(scope="module")
def long_context(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small random Llama with a context that LONG fits in."""
    folder = tmp_path_factory.mktemp("long") / "llama"
    shutil.copytree(tiny("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 2 * LONG + 16
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module", params=["process", "one pass", "letters", *UPSTREAMS])
def make(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Make]:
    if request.param in UPSTREAMS:
        with upstream_serving(request.param, context=2 * LONG + 256) as url:
            spec = ModelSpec("served", f"openai:{url}")
            yield lambda: UpstreamEngine(spec, address_of(spec.source))
        return
    if request.param == "letters":
        yield LettersEngine
        return
    if request.param == "one pass":
        folder = write_headed(tmp_path_factory.mktemp("classifier"), "classify")
        classifier = ModelSpec("tiny", str(folder), "classify", {"torch_threads": 1})
        yield lambda: EngineProcess(classifier, jitter=lambda: 0.0)
        return
    long_context = request.getfixturevalue("long_context")
    spec = ModelSpec("tiny", str(long_context), options={"torch_threads": 1})
    yield lambda: EngineProcess(spec, jitter=lambda: 0.0)


@pytest.fixture(scope="module")
def play(make: Make) -> Iterator[Play]:
    """Plays a story with one started engine that all tests of a kind of engine share."""
    with asyncio.Runner() as runner:
        engine = make()
        caller = Caller(engine)

        def played(story: Callable[[Caller], Coroutine[Any, Any, None]]) -> None:
            caller.told = Told()
            runner.run(asyncio.wait_for(story(caller), STORY_SECONDS))

        async def started(caller: Caller) -> None:
            await engine.start()
            await caller.until_ready()

        try:
            played(started)
            yield played
        finally:
            runner.run(engine.stop(5.0))


def test_a_request_gives_its_tokens_one_by_one_and_then_one_reason(play: Play) -> None:
    async def story(caller: Caller) -> None:
        short, longer = caller.submit(3), caller.submit(9)
        told = await caller.until(lambda told: len(told.ends) == 2)
        assert {id_: len(tokens) for id_, tokens in told.tokens.items()} == {short: 3, longer: 9}
        assert told.reasons() == {short: "length", longer: "length"}
        assert told.ends[0].id == short
        assert told.late == []

    play(story)


def test_a_ping_is_answered_by_a_beat_at_rest(play: Play) -> None:
    async def story(caller: Caller) -> None:
        caller.engine.send(Ping())
        await caller.until(lambda told: told.beats > 0)

    play(story)


def test_an_id_is_free_again_once_its_request_has_ended(play: Play) -> None:
    async def story(caller: Caller) -> None:
        first = caller.submit(2)
        await caller.until(lambda told: len(told.ends) == 1)
        caller.told = Told()
        caller.submit(4, request_id=first)
        told = await caller.until(lambda told: len(told.ends) == 1)
        assert told.length(first) == 4

    play(story)


def test_cancel_ends_a_running_request_and_no_other(play: Play) -> None:
    async def story(caller: Caller) -> None:
        cancelled, other = caller.submit(LONG), caller.submit(20)
        await caller.until(lambda told: told.length(cancelled) > 2)
        caller.engine.send(Cancel(cancelled))
        told = await caller.until(lambda told: len(told.ends) == 2)
        assert told.reasons() == {cancelled: "cancelled", other: "length"}
        after = caller.submit(5)
        told = await caller.until(lambda told: after in told.reasons())
        assert told.late == []
        assert told.length(cancelled) < LONG

    play(story)


def test_cancel_ends_a_request_that_waits(play: Play) -> None:
    async def story(caller: Caller) -> None:
        caller.engine.send(SetThreads(1))
        running, waiting = caller.submit(LONG), caller.submit(5)
        await caller.until(lambda told: told.length(running) > 0)
        caller.engine.send(Cancel(waiting))
        told = await caller.until(lambda told: waiting in told.reasons())
        assert told.reasons() == {waiting: "cancelled"}
        assert told.length(waiting) == 0
        caller.engine.send(Cancel(running))
        caller.engine.send(SetThreads(8))
        await caller.until(lambda told: running in told.reasons())

    play(story)


def test_cancel_of_what_has_ended_or_never_was_says_nothing(play: Play) -> None:
    async def story(caller: Caller) -> None:
        ended = caller.submit(2)
        await caller.until(lambda told: ended in told.reasons())
        caller.engine.send(Cancel(ended))
        caller.engine.send(Cancel(987_654))
        other = caller.submit(6)
        told = await caller.until(lambda told: other in told.reasons())
        assert [one.id for one in told.ends] == [ended, other]
        assert told.failed == {}

    play(story)


def test_a_request_that_can_not_be_run_fails_alone(play: Play) -> None:
    async def story(caller: Caller) -> None:
        before = caller.submit(30)
        empty, embedding = next(caller.ids), next(caller.ids)
        caller.engine.send(Admit(empty, [], 4))
        caller.engine.send(AdmitEmbedding(embedding, [5]))
        after = caller.submit(5)
        told = await caller.until(lambda told: len(told.ends) + len(told.failed) == 4)
        assert set(told.failed) == {empty, embedding}
        assert told.reasons() == {before: "length", after: "length"}
        assert (told.length(before), told.length(after)) == (30, 5)

    play(story)


def test_at_most_n_run_at_once_and_a_larger_n_lets_the_waiting_in(play: Play) -> None:
    async def story(caller: Caller) -> None:
        caller.engine.send(SetThreads(2))
        four = {caller.submit(LONG) for _ in range(4)}
        told = await caller.until(lambda told: len(told.batches) >= 10 and len(told.tokens) >= 2)
        assert max(map(len, told.batches)) == 2
        assert len(told.tokens) == 2
        caller.engine.send(SetThreads(4))
        await caller.until(lambda told: told.batches[-1] == four)
        for request_id in four:
            caller.engine.send(Cancel(request_id))
        caller.engine.send(SetThreads(8))
        told = await caller.until(lambda told: len(told.ends) == 4)
        assert told.reasons() == dict.fromkeys(four, "cancelled")

    play(story)


def test_a_smaller_n_stops_none_that_run(play: Play) -> None:
    async def story(caller: Caller) -> None:
        caller.engine.send(SetThreads(3))
        three = {caller.submit(60) for _ in range(3)}
        await caller.until(lambda told: set(told.tokens) == three)
        caller.engine.send(SetThreads(1))
        fourth = caller.submit(5)
        told = await caller.until(lambda told: len(told.ends) == 4)
        assert {told.length(one) for one in three} == {60}
        assert told.reasons() == dict.fromkeys((*three, fourth), "length")
        assert {fourth} in told.batches
        assert all(len(batch) == 1 for batch in told.batches if fourth in batch)
        caller.engine.send(SetThreads(8))

    play(story)


def test_a_death_names_what_was_lost_and_the_engine_is_back_by_itself(play: Play) -> None:
    async def story(caller: Caller) -> None:
        caller.engine.send(SetThreads(1))
        done = caller.submit(2)
        await caller.until(lambda told: done in told.reasons())
        running, waiting = caller.submit(LONG), caller.submit(5)
        await caller.until(lambda told: told.length(running) > 0)
        caller.engine.kill()
        told = await caller.until_ready()
        died, *loading, _ready = told.others
        assert isinstance(died, EngineDied)
        assert died.in_flight == [running, waiting]
        assert loading
        assert all(isinstance(one, Loading) for one in loading)
        two = {caller.submit(3), caller.submit(3)}
        told = await caller.until(lambda told: two <= set(told.reasons()))
        assert not any(two <= batch for batch in told.batches), "N is remembered"
        assert {running, waiting} & set(told.reasons()) == set()
        caller.engine.send(SetThreads(8))

    play(story)


def test_loading_comes_first_and_stop_ends_the_events_with_no_word_of_a_death(make: Make) -> None:
    async def story() -> None:
        engine = make()
        caller = Caller(engine)
        await engine.start()
        told = await caller.until_ready()
        *loading, _ready = told.others
        assert loading
        assert all(isinstance(one, Loading) for one in loading)
        running = caller.submit(LONG)
        await caller.until(lambda told: told.length(running) > 0)
        caller.told = Told()
        await engine.stop(5.0)
        engine.send(Cancel(running))
        caller.submit(1)
        told = await caller.rest()
        assert told.others == []
        assert (told.ends, told.failed) == ([], {})

    asyncio.run(asyncio.wait_for(story(), STORY_SECONDS))
