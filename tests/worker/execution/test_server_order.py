"""Who is sent to a server when, in front of an engine that does what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from llmtaskpool_worker.engines.protocol import (
    AdmitForward,
    Answered,
    Cancel,
    EngineEvent,
    Gauges,
    ModelSpec,
    Park,
    Piece,
    Ready,
    TurnedAway,
)
from llmtaskpool_worker.execution.dispatcher import Dispatcher
from llmtaskpool_worker.scheduling.limits import LaneLimits, Limits
from llmtaskpool_worker.scheduling.preemption import Preemption
from llmtaskpool_worker.scheduling.task import Forward, TaskRequest

LONG, SHORT = 4000, 2


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class ScriptedServer:
    """``has``: requests by their ids, as long as they are there; ``left``: those that made way."""

    def __init__(self, places: int) -> None:
        self.spec = ModelSpec("chat", "openai:http://127.0.0.1:1/v1")
        self.places = places
        self.has: dict[int, bytes] = {}
        self.left: list[int] = []
        self.most = 0
        self._events: asyncio.Queue[EngineEvent | None] = asyncio.Queue()

    async def start(self) -> None:
        self.tell(Ready(4096, 0, [], "upstream", "", max_threads=self.places))

    def send(self, message) -> None:
        match message:
            case AdmitForward(id=request_id, body=body):
                self.has[request_id] = body
                self.most = max(self.most, len(self.has))
            case Park(id=request_id) if request_id in self.has:
                self.left.append(request_id)
                self.ends(request_id, "parked")
            case Cancel(id=request_id) if request_id in self.has:
                self.ends(request_id, "cancelled")

    def ends(self, request_id: int, reason: str = "stop") -> None:
        del self.has[request_id]
        self.tell(Answered(request_id, reason))

    def tell(self, event: EngineEvent) -> None:
        self._events.put_nowait(event)

    async def events(self) -> AsyncIterator[EngineEvent]:
        while (event := await self._events.get()) is not None:
            yield event

    def kill(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None:
        self._events.put_nowait(None)

    def runs(self, text: bytes) -> bool:
        return text in self.has.values()


def asked(name: str, tokens: int, weight: float) -> TaskRequest:
    body = b'{"messages": "%s"}' % name.encode()
    payload = Forward("chat/completions", body, 100, 100, tokens)
    return TaskRequest("chat", payload, "chat", weight=weight)


class Story:
    """``factor``: how much more urgent one has to be than one that runs."""

    def __init__(self, places: int, factor: float = 10.0, threads: int = 64) -> None:
        self.server, self.clock = ScriptedServer(places), Clock()
        self.readers: list[asyncio.Task[None]] = []
        self.pool = Dispatcher(
            engines=[self.server],
            limits=Limits(
                compute=LaneLimits(threads, 256), preemption=Preemption(factor, wait_seconds=0.1)
            ),
            clock=self.clock,
        )

    async def submit(self, name: str, tokens: int = LONG, weight: float = 1.0) -> str:
        return (await self.pool.submit(asked(name, tokens, weight))).id

    async def follow(self, task_id: str) -> None:
        """As a client does whose stream has begun."""
        async for _ in self.pool.events(task_id):
            pass

    async def settled(self) -> None:
        """All that was said is heard, and what follows from it is done."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def draw(self) -> None:
        """Each request that the server has gets a token."""
        for request_id in self.server.has:
            self.server.tell(Piece(request_id, {"delta": {"content": "a"}}, 1))
        await self.settled()

    def play(self, story) -> None:
        async def whole() -> None:
            await self.pool.start()
            await self.settled()
            try:
                await story(self)
            finally:
                await self.pool.stop(0.0)
                await asyncio.gather(*self.readers)

        asyncio.run(asyncio.wait_for(whole(), 60))


def said(name: str) -> bytes:
    return b'{"messages": "%s"}' % name.encode()


async def fill(story: Story, count: int, weight: float, *, read: bool = True) -> None:
    for number in range(count):
        task = await story.submit(f"bulk {number}", weight=weight)
        if read:
            story.readers.append(asyncio.create_task(story.follow(task)))
        await story.settled()
        await story.draw()


@pytest.mark.parametrize(
    ("weight", "urgent", "runs", "goes"),
    [
        (0.1, 1.0, 3, True),
        (0.1, 100.0, 3, True),
        (0.01, 1.0, 3, True),
        (0.1, 0.5, 3, False),
        (0.25, 100.0, 4, False),
        (1.0, 100.0, 4, False),
    ],
)
def test_the_first_urgent_one_goes_at_once_beside_bulk_that_says_that_it_is_bulk(
    weight, urgent, runs, goes
):
    """Of four places one is free from the start; not where nobody said that others go first."""

    async def play(story: Story) -> None:
        await fill(story, 10, weight)
        assert len(story.server.has) == runs
        # As long as the others, so that weights alone decide.
        await story.submit("urgent", weight=urgent)
        await story.settled()
        assert story.server.runs(said("urgent")) is goes
        assert story.server.most <= 4
        assert story.server.left == []

    Story(4).play(play)


async def bulk_ends_at_once_beside_an_urgent_one(story: Story) -> None:
    """Three of bulk have ended in one moment, and an urgent one is there since before."""
    await fill(story, 10, 0.1)
    await story.submit("urgent", SHORT, 100.0)
    await story.settled()
    assert story.server.runs(said("urgent")), "it goes at once"
    for request_id in [i for i, body in story.server.has.items() if body != said("urgent")]:
        story.server.ends(request_id)
    await story.settled()


def test_while_urgent_ones_come_bulk_is_sent_one_prompt_after_the_other():
    async def play(story: Story) -> None:
        await bulk_ends_at_once_beside_an_urgent_one(story)
        assert len(story.server.has) == 2, "with the urgent one"
        await story.submit("another", SHORT, 100.0)
        await story.settled()
        assert story.server.runs(said("another")), "behind one prompt"
        story.server.ends(max(story.server.has))
        for sent in (2, 3, 3):
            await story.settled()
            assert len(story.server.has) == sent, "one place is kept"
            await story.draw()
        assert story.server.most <= 4

    Story(4).play(play)


def test_one_of_bulk_that_ends_without_a_token_was_read():
    async def play(story: Story) -> None:
        await bulk_ends_at_once_beside_an_urgent_one(story)
        for _ in range(5):
            assert len(story.server.has) == 2
            story.server.ends(max(story.server.has))
            await story.settled()

    Story(4).play(play)


def test_bulk_whose_answers_come_whole_has_its_places_once_the_server_has_begun_them():
    """A call of a tool is kept until it is whole: before its first token is the role alone."""

    async def play(story: Story) -> None:
        await bulk_ends_at_once_beside_an_urgent_one(story)
        for sent in (2, 3, 3):
            assert len(story.server.has) == sent
            for request_id in [*story.server.has]:
                story.server.tell(Piece(request_id, {"delta": {"role": "assistant"}}, 0))
            await story.settled()

    Story(4).play(play)


def test_a_server_that_says_nothing_before_an_answer_is_whole_is_waited_for_two_seconds():
    async def play(story: Story) -> None:
        await bulk_ends_at_once_beside_an_urgent_one(story)
        for sent in (2, 3, 3):
            assert len(story.server.has) == sent
            story.clock.now += 2.1
            story.pool._capacity.look()
            story.pool._asking.schedule(*story.pool._lanes.values())
            await story.settled()

    Story(4).play(play)


@pytest.mark.parametrize(("places", "weight", "sent"), [(4, 1.0, 4), (4, 0.1, 3), (64, 0.1, 4)])
def test_where_no_urgent_ones_come_nobody_is_held_back(places, weight, sent):
    """A fresh server gets four at first; of four places bulk leaves one."""

    async def play(story: Story) -> None:
        for number in range(6):
            await story.submit(f"one {number}", weight=weight)
        await story.settled()
        assert len(story.server.has) == sent

    Story(places).play(play)


def test_requests_that_are_all_alike_have_all_places():
    async def play(story: Story) -> None:
        await fill(story, 6, 1.0)
        assert len(story.server.has) == 4

    Story(4).play(play)


def test_bulk_has_all_places_where_urgent_ones_go_first_never():
    async def play(story: Story) -> None:
        await fill(story, 6, 0.01)
        assert len(story.server.has) == 4

    Story(4, factor=1.0).play(play)


def test_several_urgent_ones_find_one_place_after_the_other():
    async def play(story: Story) -> None:
        await fill(story, 10, 0.01)
        for number in range(20):
            await story.submit(f"urgent {number}", SHORT, 100.0)
            await story.settled()
            found = [i for i, body in story.server.has.items() if body == said(f"urgent {number}")]
            assert found, "it went at once"
            story.server.ends(found[0])
            await story.settled()
            assert len(story.server.has) == 3, "its place stays free of bulk"

    Story(4).play(play)


def test_nobody_makes_way_while_the_server_takes_nothing():
    """It said Retry-After: one that left would leave for nothing."""

    async def play(story: Story) -> None:
        server = story.server
        await fill(story, 2, 0.5, read=False)
        await story.submit("refused", weight=0.5)
        await story.settled()
        refused = next(i for i, body in server.has.items() if body == said("refused"))
        del server.has[refused]
        server.tell(TurnedAway(refused, 5.0))
        await story.settled()
        await story.submit("urgent", SHORT, 100.0)
        await story.settled()
        assert (len(server.has), server.left) == (2, [])
        story.clock.now += 5.1
        story.pool._capacity.look()
        server.tell(Gauges())  # anything that it says has the pool look again
        await story.settled()
        assert len(server.left) == 1, "now it is of use"
        assert server.runs(said("urgent"))

    Story(3, factor=2.0).play(play)


def test_one_that_leaves_would_make_no_place_where_n_was_cut_below_what_runs():
    async def play(story: Story) -> None:
        server = story.server
        await fill(story, 8, 0.5, read=False)
        assert len(server.has) == 4  # a fresh server gets few
        story.pool._slots["chat"].seats.hold(2, story.clock.now)
        await story.submit("urgent", SHORT, 100.0)
        await story.settled()
        assert server.left == [], "three would have to leave for one"
        server.ends(next(iter(server.has)))
        await story.settled()
        assert server.left == []
        server.ends(next(iter(server.has)))
        await story.settled()
        assert len(server.left) == 1, "one has its place"
        assert server.runs(said("urgent"))

    Story(8, factor=2.0).play(play)
