"""Models of one worker share its threads: a flood at one holds none of another's part of them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fakes.letters_engine import LettersEngine, LetterTokenizer, letters
from fakes.queue_servers import QueueServer
from llmtaskpool_worker.brokers.memory import MemoryBroker
from llmtaskpool_worker.brokers.protocol import Broker
from llmtaskpool_worker.brokers.redis.away import PoolBroker
from llmtaskpool_worker.brokers.redis.broker import RedisBroker
from llmtaskpool_worker.brokers.redis.link import Address
from llmtaskpool_worker.brokers.sqlite import SqliteBroker
from llmtaskpool_worker.contract import LaneName, Phase
from llmtaskpool_worker.execution.dispatcher import Dispatcher
from llmtaskpool_worker.kinds.registry import CallContext, Kind, Kinds
from llmtaskpool_worker.scheduling.limits import LaneLimits, Limits
from llmtaskpool_worker.scheduling.task import Call, Embed, Generate, TaskRequest, TaskState

from .test_dispatcher import play, until

Make = Callable[[Limits], Broker]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    with QueueServer(tmp_path_factory.mktemp("server"), "valkey") as started:
        yield started


@pytest.fixture(params=["memory", "sqlite", "valkey"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    def make(limits: Limits) -> Broker:
        if request.param == "memory":
            return MemoryBroker(limits, time.monotonic)
        if request.param == "sqlite":
            return SqliteBroker(tmp_path / "queue.db", limits, time.monotonic, time.time)
        address = Address(request.getfixturevalue("server").url)
        line = RedisBroker(address, f"team/{tmp_path.name}", limits, time.monotonic)
        return PoolBroker(line, limits, time.monotonic)

    return make


class Reader(LettersEngine):
    """Reads texts, and so many of them when a test says so although it hangs."""

    @property
    def texts(self) -> int:
        return len(self._vectors)

    def answer(self, count: int) -> None:
        self._vectors, rest = self._vectors[:count], self._vectors[count:]
        self._step()
        self._vectors = rest


class Pair:
    """A worker with two models, each of which its test can hold, and a kind in the same lane."""

    def __init__(self, make: Make, threads: int) -> None:
        self.chat, self.bulk = LettersEngine("chat"), Reader("bulk", task="embed")
        self.gate = threading.Event()
        kinds = Kinds()
        kinds.register(Kind("handle", self._handle, "compute"))
        limits = Limits(compute=LaneLimits(threads, threads, queue_tasks=100))
        self.pool = Dispatcher(
            engines=[self.chat, self.bulk],
            tokenizers={"chat": LetterTokenizer()},
            kinds=kinds,
            limits=limits,
            worker_id="w",
            broker=make(limits),
        )

    def _handle(self, arguments: dict, _: CallContext) -> object:
        self.gate.wait(30)
        return arguments

    async def flood(self, request: TaskRequest, count: int, active: int) -> list[str]:
        """So many wait or run, and ``active`` run in all."""
        ids = [(await self.pool.submit(request)).id for _ in range(count)]
        await self.until_active(active)
        return ids

    async def until_active(self, count: int) -> None:
        await until(lambda: self.active == count)

    @property
    def active(self) -> int:
        return self.pool.state().lanes[LaneName.COMPUTE].active

    async def ended(self, *ids: str) -> None:
        for task_id in ids:
            view = await asyncio.wait_for(self.pool.wait(task_id), 30)
            assert view.state is TaskState.SUCCEEDED


@asynccontextmanager
async def pair(make: Make, threads: int) -> AsyncIterator[Pair]:
    both = Pair(make, threads)
    await both.pool.start()
    try:
        await until(lambda: both.pool.state().phase is Phase.READY)
        yield both
    finally:
        both.gate.set()
        await both.pool.stop(0.0)


def chat(weight: float = 1.0) -> TaskRequest:
    return TaskRequest("chat", Generate(letters("hello"), 100), model="chat", weight=weight)


def embed(weight: float = 1.0) -> TaskRequest:
    return TaskRequest("embed", Embed((1, 2, 3)), model="bulk", weight=weight)


def test_a_chat_is_answered_while_another_models_flood_holds_all_threads_and_more_waits(
    broker: Make,
) -> None:
    async def story() -> None:
        async with pair(broker, threads=4) as both:
            both.bulk.hangs = True
            texts = await both.flood(embed(weight=0.1), 20, active=4)
            answered = await both.pool.submit(chat())
            await both.ended(answered.id)
            assert both.active == 4, "who held the threads has them still"
            both.bulk.hangs = False
            await both.ended(*texts)

    play(story())


def test_each_model_has_its_part_by_weight_while_both_have_work_and_all_of_it_ends(
    broker: Make,
) -> None:
    async def story() -> None:
        async with pair(broker, threads=8) as both:
            both.bulk.hangs = both.chat.hangs = True
            texts = await both.flood(embed(weight=0.1), 20, active=8)
            chats = await both.flood(chat(), 20, active=8 + 7)
            both.bulk.answer(8)
            await until(lambda: both.bulk.texts == 1)
            assert (both.chat.held, both.active) == (7, 8), "once it gave back what was not its"
            both.bulk.hangs = both.chat.hangs = False
            await both.ended(*texts, *chats)
            assert both.active == 0

    play(story())


def test_what_one_model_leaves_of_its_part_the_other_has(broker: Make) -> None:
    async def story() -> None:
        async with pair(broker, threads=8) as both:
            both.bulk.hangs = both.chat.hangs = True
            answered = await both.flood(chat(), 1, active=1)
            texts = await both.flood(embed(), 20, active=8)
            assert both.chat.held == 1
            both.bulk.hangs = both.chat.hangs = False
            await both.ended(*answered, *texts)

    play(story())


def test_handlers_hold_one_part_together_however_many_kinds_and_calls_there_are(
    broker: Make,
) -> None:
    async def story() -> None:
        async with pair(broker, threads=2) as both:
            calls = await both.flood(TaskRequest("handle", Call({})), 10, active=2)
            answered = await both.pool.submit(chat(weight=0.01))
            await both.ended(answered.id)
            assert both.active == 2
            both.gate.set()
            await both.ended(*calls)

    play(story())


def test_a_model_whose_engine_is_full_or_away_keeps_no_threads_from_others(broker: Make) -> None:
    async def story() -> None:
        async with pair(broker, threads=6) as both:
            both.chat.slots = 1
            both.chat.kill()  # it comes back with one slot
            await until(lambda: both.pool.state().phase is Phase.READY)
            both.bulk.hangs = both.chat.hangs = True
            chats = await both.flood(chat(), 10, active=1)
            texts = await both.flood(embed(), 10, active=6)
            both.bulk.hangs = both.chat.hangs = False
            await both.ended(*chats, *texts)

    play(story())
