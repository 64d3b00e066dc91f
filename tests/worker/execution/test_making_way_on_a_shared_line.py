"""Workers that share a line make way for what waits in it, whoever accepted it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from fakes.letters_engine import LettersEngine, LetterTokenizer, letters
from fakes.queue_servers import QueueServer
from llmtaskpool_worker.brokers.redis.away import PoolBroker
from llmtaskpool_worker.brokers.redis.broker import RedisBroker
from llmtaskpool_worker.brokers.redis.link import Address
from llmtaskpool_worker.contract import Phase
from llmtaskpool_worker.execution.dispatcher import Dispatcher
from llmtaskpool_worker.scheduling.limits import LaneLimits, Limits
from llmtaskpool_worker.scheduling.preemption import Preemption
from llmtaskpool_worker.scheduling.task import Generate, TaskRequest, TaskState

LIMITS = Limits(compute=LaneLimits(1, 1), preemption=Preemption(wait_seconds=0.1))
"""The engine says 10 ms for a step."""


class SlowLetters(LettersEngine):
    """A letter each 20 ms at least: what is long is long on any machine."""

    async def _step_for_ever(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            self._step()


@asynccontextmanager
async def pod(url: str, name: str) -> AsyncIterator[tuple[Dispatcher, SlowLetters]]:
    engine = SlowLetters(slots=1)
    line = RedisBroker(Address(url), "team/chat", LIMITS, time.monotonic)
    pool = Dispatcher(
        engines=[engine],
        tokenizers={"letters": LetterTokenizer()},
        limits=LIMITS,
        worker_id=name,
        broker=PoolBroker(line, LIMITS, time.monotonic),
    )
    await pool.start()
    try:
        await until(lambda: pool.state().phase is Phase.READY)
        yield pool, engine
    finally:
        await pool.stop(0.0)


async def until(true: Callable[[], bool]) -> None:
    for _ in range(5000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("never happened")


def urgent(text: str, **more) -> TaskRequest:
    return TaskRequest("chat", Generate(letters(text), 100), weight=100.0, **more)


def test_of_two_full_workers_one_makes_way_for_an_urgent_chat_and_bulk_goes_on(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            server = stack.enter_context(QueueServer(tmp_path))
            pods = [await stack.enter_async_context(pod(server.url, n)) for n in ("a", "b")]
            (a, _), (b, _) = pods
            bulk = []
            for letter in "xy":
                request = TaskRequest("chat", Generate(letters(letter * 5000), 5000), weight=0.001)
                bulk.append(await a.submit(request))
            await until(lambda: all(engine.held == 1 for _, engine in pods))

            def makings() -> int:
                return sum(engine.parkings for _, engine in pods)

            view = await a.submit(urgent("now", attended=True))
            assert (await a.wait(view.id)).result.text == "now"
            assert makings() == 1, "one of them alone"
            seen = await b.submit(urgent("again"))
            assert (await a.wait(seen.id)).result.text == "again"
            assert makings() == 2
            assert [(await b.get(one.id)).state for one in bulk] == [TaskState.RUNNING] * 2

    asyncio.run(asyncio.wait_for(main(), 60))
