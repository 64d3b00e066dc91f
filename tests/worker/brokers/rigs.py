"""The brokers that the suite is held against, each with a way to let time pass."""

from __future__ import annotations

import asyncio
import atexit
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from fakes.queue_servers import QueueServer
from llmtaskpool_worker.brokers.memory import MemoryBroker
from llmtaskpool_worker.brokers.protocol import (
    Broker,
    Claim,
    Dependencies,
    Held,
    Line,
    Outcome,
    Submission,
    Wanted,
)
from llmtaskpool_worker.brokers.redis.broker import RedisBroker
from llmtaskpool_worker.brokers.redis.link import Address
from llmtaskpool_worker.brokers.sqlite import SqliteBroker
from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.scheduling.limits import Limits
from llmtaskpool_worker.scheduling.task import Call, Result, Returned, TaskError, TaskRequest


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Rig:
    """A broker that has started for worker "w". ``later`` lets so many seconds pass."""

    broker: Broker
    later: Callable[[float], Awaitable[None]]
    lost: list[str] = field(default_factory=list)
    """Whose claims it said are lost."""
    _fences: count[int] = field(default_factory=count)

    def wanted(self, most: int = 1, **given) -> Wanted:
        free = given.pop("free", {"k": 64})
        loads = given.pop("loads", {})
        return Wanted(
            worker=given.pop("worker", "w"),
            fence=f"f{next(self._fences)}",
            lane=LaneName.IO,
            groups=tuple(free),
            free=lambda group: free.get(group, 0),
            most=most,
            load=lambda line: loads.get(line.cost_class, 1.0),
            lease_seconds=given.pop("lease_seconds", 100.0),
            **given,
        )

    async def claim(self, most: int = 1, **given) -> list[Claim]:
        return await self.broker.claim(self.wanted(most, **given))

    async def take(self, **given) -> Claim:
        """The one that is given now."""
        [claim] = await self.claim(**given)
        return claim

    async def end(self, claim: Claim, result: Result | TaskError | None = None):
        """Commit a claim; what became of it."""
        outcome = Outcome(claim.id, claim.fence, Returned(1) if result is None else result)
        [committed] = await self.broker.commit([outcome])
        return committed

    async def run(self, name: str, **given) -> None:
        """Accept a task and end it well."""
        free = {given.get("kind", "k"): 64}
        await self.broker.accept(task(name, **given))
        await self.end(await self.take(free=free))


def held(claim: Claim) -> Held:
    return Held(claim.id, claim.fence)


def task(name: str, **given) -> Submission:
    """A task of kind k, with all that was not said as it usually is."""
    request = TaskRequest(
        kind=given.pop("kind", "k"),
        payload=Call({"v": given.pop("value", 1)}),
        weight=given.pop("weight", 1.0),
        idempotency_key=given.pop("key", None),
        labels=given.pop("labels", {}),
        attended=given.pop("attended", False),
        of_a_batch=given.pop("of_a_batch", False),
    )
    after = given.pop("after", None)
    return Submission(
        id=name,
        request=request,
        lane=LaneName.IO,
        group=request.kind,
        line=Line(given.pop("line", "c"), given.pop("tenant", "")),
        load_seconds=1.0,
        priority=request.weight,
        work_seconds=1.0,
        size_bytes=given.pop("size_bytes", 1000),
        patience_seconds=given.pop("patience_seconds", 1000.0),
        run_seconds=60.0,
        dependencies=None if after is None else Dependencies(tuple(after), *given.pop("need", ())),
        **given,
    )


def _rig(broker: Broker, clock: Clock) -> Rig:
    async def later(seconds: float) -> None:
        clock.now += seconds
        await asyncio.sleep(0)

    return Rig(broker, later)


@asynccontextmanager
async def memory(limits: Limits) -> AsyncIterator[Rig]:
    clock = Clock()
    async with started(_rig(MemoryBroker(limits, clock), clock)) as rig:
        yield rig


@asynccontextmanager
async def sqlite(limits: Limits) -> AsyncIterator[Rig]:
    with TemporaryDirectory() as folder:
        async with opened(Path(folder) / "queue.db", limits) as rig:
            yield rig


@asynccontextmanager
async def opened(
    path: Path, limits: Limits | None = None, clock: Clock | None = None
) -> AsyncIterator[Rig]:
    """A broker over this file. Its clock began somewhere; that of the wall goes with it."""
    clock = clock or Clock()
    broker = SqliteBroker(path, limits or Limits(), clock, lambda: clock.now + 1e9)
    async with started(_rig(broker, clock)) as rig:
        yield rig


@asynccontextmanager
async def started(rig: Rig) -> AsyncIterator[Rig]:
    await rig.broker.start("w", rig.lost.append)
    try:
        yield rig
    finally:
        await rig.broker.close()


@cache
def _server(kind: str) -> QueueServer:
    """One for all tests of this process; it ends with it."""
    folder = TemporaryDirectory()
    server = QueueServer(Path(folder.name), kind).start()
    atexit.register(folder.cleanup)
    atexit.register(server.stop)
    return server


@asynccontextmanager
async def _on_a_server(kind: str, limits: Limits) -> AsyncIterator[Rig]:
    server = _server(kind)
    with server.client() as client:
        client.flushall()
    broker = RedisBroker(Address(server.url), "team/chat", limits, time.monotonic)
    async with started(Rig(broker, asyncio.sleep)) as rig:
        yield rig


def redis(limits: Limits) -> AbstractAsyncContextManager[Rig]:
    """Debian's Redis 7.0. Time passes there as it does."""
    return _on_a_server("redis", limits)


def valkey(limits: Limits) -> AbstractAsyncContextManager[Rig]:
    """Valkey 9."""
    return _on_a_server("valkey", limits)


RIGS: list[Callable[[Limits], AbstractAsyncContextManager[Rig]]] = [memory, sqlite, redis, valkey]
"""What every broker promises is tested against each of these."""
