"""Engines that share processors are told how nice to be, by the weights of what they run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llmtaskpool_worker.brokers.memory import MemoryBroker
from llmtaskpool_worker.brokers.protocol import Broker
from llmtaskpool_worker.engines.protocol import SetNiceness
from llmtaskpool_worker.scheduling.limits import Limits

from .test_dispatcher import play, until
from .test_thread_sharing import Pair, chat, embed, pair


def memory(limits: Limits) -> Broker:
    return MemoryBroker(limits, lambda: 0.0)


@asynccontextmanager
async def held() -> AsyncIterator[tuple[Pair, dict[str, list[int]]]]:
    """Two engines that hold what they are given, and what they are told of niceness."""
    async with pair(memory, threads=8) as both:
        both.bulk.hangs = both.chat.hangs = True
        yield both, listen(both)


async def let_go(both: Pair, ids: list[str]) -> None:
    """They answer, and all of these end."""
    both.bulk.hangs = both.chat.hangs = False
    await both.ended(*ids)


def listen(both: Pair) -> dict[str, list[int]]:
    """What each engine is told from now on."""
    told: dict[str, list[int]] = {"chat": [], "bulk": []}
    for engine in (both.chat, both.bulk):

        def send(message, engine=engine, send=engine.send):
            if isinstance(message, SetNiceness):
                told[engine.spec.name].append(message.n)
            send(message)

        engine.send = send
    return told


def test_bulk_is_nice_while_a_chat_runs_beside_it_and_not_by_itself() -> None:
    async def story() -> None:
        async with held() as (both, told):
            texts = await both.flood(embed(weight=0.1), 3, active=3)
            assert told == {"chat": [], "bulk": []}, "nobody else is there"
            chats = await both.flood(chat(), 1, active=4)
            assert told == {"chat": [], "bulk": [10]}
            both.chat.hangs = False
            await both.ended(*chats)
            await until(lambda: told["bulk"] == [10, 0])
            both.bulk.hangs = False
            await both.ended(*texts)
            assert told == {"chat": [], "bulk": [10, 0]}

    play(story())


def test_an_engine_is_not_nice_as_long_as_it_has_heavy_tasks_and_for_a_while_after() -> None:
    """One that comes amid its bulk would wait for a step that nobody can hurry."""

    async def story() -> None:
        async with held() as (both, told):
            ids = await both.flood(chat(), 1, active=1)
            ids += await both.flood(embed(weight=0.1), 2, active=3)
            heavy = await both.flood(embed(weight=1.0), 1, active=4)
            assert told == {"chat": [], "bulk": [10, 0]}
            both.bulk.hangs = False
            await both.ended(*heavy)
            both.bulk.hangs = True
            ids += await both.flood(embed(weight=0.1), 2, active=3)
            assert told == {"chat": [], "bulk": [10, 0]}
            await let_go(both, ids)

    play(story())


def test_weights_above_one_count_beside_each_other_as_well() -> None:
    async def story() -> None:
        async with held() as (both, told):
            ids = await both.flood(embed(), 1, active=1)
            ids += await both.flood(chat(weight=10.0), 1, active=2)
            assert told == {"chat": [], "bulk": [10]}
            await let_go(both, ids)

    play(story())


def test_an_engine_that_came_back_is_told_anew() -> None:
    async def story() -> None:
        async with pair(memory, threads=8) as both:
            both.bulk.hangs = both.chat.hangs = True
            ids = await both.flood(chat(), 1, active=1)
            ids += await both.flood(embed(weight=0.1), 2, active=3)
            told = listen(both)
            both.bulk.kill()
            await until(lambda: told["bulk"] == [10])
            await let_go(both, ids)

    play(story())


def test_the_smallest_weight_that_there_is_hurts_nobody() -> None:
    async def story() -> None:
        async with held() as (both, told):
            ids = await both.flood(chat(weight=1e6), 1, active=1)
            ids += await both.flood(embed(weight=5e-324), 1, active=2)
            assert told == {"chat": [], "bulk": [10]}
            await let_go(both, ids)

    play(story())
