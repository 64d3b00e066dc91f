"""While the queue's server is away chats are served, and what is to survive is refused for now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fakes.queue_servers import QueueServer
from llmtaskpool_worker.brokers.protocol import Commit, Outcome, Unavailable
from llmtaskpool_worker.brokers.redis.away import PoolBroker
from llmtaskpool_worker.brokers.redis.broker import RedisBroker
from llmtaskpool_worker.brokers.redis.link import Address
from llmtaskpool_worker.scheduling.limits import Limits
from llmtaskpool_worker.scheduling.task import Returned, TaskState, TextDelta

from .rigs import Rig, held, task


@asynccontextmanager
async def a_worker(server: QueueServer) -> AsyncIterator[Rig]:
    line = RedisBroker(Address(server.url), "team/chat", Limits(), time.monotonic)
    broker = PoolBroker(line, Limits(), time.monotonic)
    rig = Rig(broker, asyncio.sleep)
    await broker.start("w", rig.lost.append)
    try:
        yield rig
    finally:
        await broker.close()


def chat(name: str, **more):
    return task(name, attended=True, bound_to="w", **more)


def test_a_chat_is_served_from_memory_and_a_task_is_refused_until_the_server_is_back(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        server = QueueServer(tmp_path).start()
        async with a_worker(server) as rig:
            await rig.broker.accept(task("before"))
            await rig.broker.accept(chat("chat-before"))
            first = {claim.id: claim for claim in await rig.claim(most=2)}
            server.kill()
            await rig.broker.accept(chat("chat", weight=2.0))
            refused = asyncio.create_task(rig.broker.accept(task("later")))
            claim = await rig.take()
            assert claim.id == "chat"
            listening = asyncio.create_task(said(rig, "chat"))
            await asyncio.sleep(0)
            rig.broker.publish(held(claim), TextDelta("hello", (1,)))
            committed = await rig.end(claim, Returned("answered"))
            assert committed.commit is Commit.TAKEN
            assert TextDelta("hello", (1,)) in await listening
            assert (await rig.broker.wait("chat")).result == Returned("answered")
            with pytest.raises(Unavailable) as told:
                await refused
            assert told.value.retry_after_seconds >= 1
            await rig.broker.accept(chat("chat-too", weight=2.0))
            own = await rig.take()
            server.start()
            every = [own, first["before"], first["chat-before"]]
            done = await rig.broker.commit(
                [Outcome(one.id, one.fence, Returned({"of": one.id})) for one in every]
            )
            assert [one.commit for one in done] == [Commit.TAKEN] * 3
            assert [one.view.result for one in done] == [Returned({"of": c.id}) for c in every]
            await rig.broker.accept(task("after"))
            assert (await rig.take()).id == "after"
        server.stop()

    asyncio.run(asyncio.wait_for(main(), 60))


async def said(rig: Rig, name: str) -> list[object]:
    return [event async for event in rig.broker.events(name)]


def test_a_chat_that_the_server_has_taken_and_not_answered_runs_once(tmp_path: Path) -> None:
    """Stopped and not killed: it may have the chat, which is served from memory meanwhile."""

    async def main() -> None:
        server = QueueServer(tmp_path).start()
        async with a_worker(server) as rig:
            await rig.run("warm")
            server.pause()
            await rig.broker.accept(chat("chat"))
            server.go_on()
            ran = []
            for _ in range(40):
                try:
                    claims = await rig.claim(most=4)
                except Unavailable:
                    claims = []
                ran += [claim.id for claim in claims]
                for claim in claims:
                    await rig.end(claim)
                await asyncio.sleep(0.05)
            assert ran == ["chat"]
            with server.client() as client:
                left = client.hget("ltp:{team/chat}:t:chat", "s")
            assert left in (None, b"C")
            view = await rig.broker.get("chat")
            assert view is not None
            assert view.state is TaskState.SUCCEEDED
        server.stop()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_chats_of_our_own_memory_and_the_pools_line_go_by_their_priority(tmp_path: Path) -> None:
    """What was accepted while the server was away is no more urgent than what waits on it."""

    async def main() -> None:
        server = QueueServer(tmp_path).start()
        async with a_worker(server) as rig:
            await rig.broker.accept(task("ordinary"))
            await rig.broker.accept(task("urgent", weight=50.0))
            server.kill()
            for name, weight in (("own", 5.0), ("own-bulk", 0.1), ("own-urgent", 60.0)):
                await rig.broker.accept(chat(name, weight=weight))
            server.start()
            await back(rig)
            head = await rig.broker.peek(rig.wanted())
            assert head is not None
            assert head.id == "own-urgent"
            await rig.broker.sweep()
            claims = await rig.claim(most=2)
            assert [claim.id for claim in claims] == ["own-urgent", "urgent"]
            assert (await rig.broker.peek(rig.wanted())).id == "own"
            claims = await rig.claim(most=9)
            assert [claim.id for claim in claims] == ["own", "ordinary", "own-bulk"]
            assert len({claim.fence for claim in claims}) == 3
        server.stop()

    asyncio.run(asyncio.wait_for(main(), 60))


async def back(rig: Rig) -> None:
    """Once the server answers again."""
    while True:
        try:
            await rig.broker.sweep()
        except Unavailable:
            await asyncio.sleep(0.02)
        else:
            return
