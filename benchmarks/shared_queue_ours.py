"""Our own broker with worker processes and a job that does nothing, for shared_queue.py.

python benchmarks/shared_queue_ours.py fill URL TASKS BODY_BYTES
python benchmarks/shared_queue_ours.py work URL NUMBER A_CALL
python benchmarks/shared_queue_ours.py enqueue URL TASKS BODY_BYTES
python benchmarks/shared_queue_ours.py enqueue-here memory|PATH TASKS BODY_BYTES
python benchmarks/shared_queue_ours.py file PATH TASKS BODY_BYTES A_CALL

`enqueue` enqueues one at a time, and prints how many seconds each took; `enqueue-here` does it with
a broker of this process, in which so many wait already. `file` is the broker of one
file: it fills it and runs all that is in it, and prints tasks a second and CPU seconds of that.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import uvloop
from llmtaskpool_worker.brokers.memory import MemoryBroker
from llmtaskpool_worker.brokers.protocol import (
    Broker,
    Claim,
    Line,
    Outcome,
    Submission,
    Unavailable,
    Wanted,
)
from llmtaskpool_worker.brokers.redis.broker import RedisBroker
from llmtaskpool_worker.brokers.redis.link import Address
from llmtaskpool_worker.brokers.sqlite import SqliteBroker
from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.execution.desk import Desk
from llmtaskpool_worker.execution.ids import short_ids
from llmtaskpool_worker.scheduling.limits import LaneLimits, Limits
from llmtaskpool_worker.scheduling.task import Call, Returned, TaskRequest

POOL = "bench/pool"
SLOTS = 16
LINES = {f"chat|model|{i}": 0.05 * 1.5**i for i in range(20)}
NAMES = list(LINES)
LEASE_SECONDS = 30.0
LIMITS = Limits(io=LaneLimits(threads=8, threads_max=64, queue_tasks=10**6, queue_bytes=10**10))


def submission(task_id: str, rng: random.Random, body: str) -> Submission:
    """A task of one of 20 classes."""
    line, weight = rng.choice(NAMES), rng.choice([0.25, 1.0, 1.0, 1.0, 4.0, 20.0])
    return Submission(
        id=task_id,
        request=TaskRequest("noop", Call({"body": body}), weight=weight),
        lane=LaneName.IO,
        group="noop",
        line=Line(line),
        load_seconds=LINES[line],
        priority=weight / LINES[line],
        work_seconds=LINES[line],
        size_bytes=len(body) + 900,
        patience_seconds=86_400.0,
        run_seconds=60.0,
    )


async def connected(url: str, name: str) -> RedisBroker:
    """A broker on the server."""
    broker = RedisBroker(Address(url), POOL, LIMITS, time.monotonic, allow_volatile=True)
    await broker.start(name, lambda _: None)
    return broker


async def fill(url: str, tasks: int, size: int) -> None:
    """Enqueue many at once."""
    broker = await connected(url, "filler")
    await fill_up(broker, tasks, size)
    await broker.close()


async def fill_up(broker: Broker, tasks: int, size: int) -> None:
    """The same, with a broker."""
    rng, new_id = random.Random(1), short_ids()
    for start in range(0, tasks, 500):
        await asyncio.gather(
            *(
                broker.accept(submission(new_id(), rng, os.urandom(size // 2).hex()))
                for _ in range(min(500, tasks - start))
            )
        )


async def enqueue(url: str, tasks: int, size: int) -> None:
    """Enqueue one after the other; prints how long each took."""
    broker = await connected(url, "client")
    await time_each(broker, tasks, size)


async def enqueue_here(place: str, tasks: int, size: int) -> None:
    """The same with a broker of this process, in which so many wait already."""
    broker: Broker = (
        MemoryBroker(LIMITS, time.monotonic)
        if place == "memory"
        else SqliteBroker(Path(place), LIMITS, time.monotonic, time.time)
    )
    await broker.start("w", lambda _: None)
    await fill_up(broker, tasks, size)
    gc.freeze()
    await time_each(broker, 2000, size)


async def time_each(broker: Broker, tasks: int, size: int) -> None:
    """Enqueue one after the other; prints how long each took, and closes the broker."""
    rng, new_id, took = random.Random(2), short_ids(), []
    for _ in range(tasks):
        one = submission(new_id(), rng, os.urandom(size // 2).hex())
        began = time.perf_counter()
        await broker.accept(one)
        took.append(time.perf_counter() - began)
    print(json.dumps(took))
    await broker.close()


async def work(url: str, number: str, a_call: int) -> None:
    """Claim and commit for ever, with leases, sweeps and waits as a worker has them."""
    broker = await connected(url, f"w{number}")
    rng = random.Random(number)
    asking = wishes(f"w{number}", a_call, rng)
    gc.freeze()  # as a worker does

    desk = Desk(broker)
    desk.start()

    async def slot() -> None:
        for wanted in asking:
            with suppress(Unavailable):
                if claims := await broker.claim(wanted):
                    end(desk, claims)
                else:
                    await broker.wait_for_work(LaneName.IO, ("noop",), 1.0)

    async def sweep() -> None:
        while True:
            await asyncio.sleep(0.5 + rng.random())
            with suppress(Unavailable):
                await broker.sweep()

    await asyncio.gather(sweep(), *(slot() for _ in range(SLOTS // a_call)))


def end(desk: Desk, claims: list[Claim]) -> None:
    """They have run, and are told of as a worker does it: what has ended meanwhile, at once."""
    for claim in claims:
        desk.commit(Outcome(claim.id, claim.fence, Returned(None)), lambda _: None, bound=False)


def wishes(worker: str, most: int, rng: random.Random) -> Iterator[Wanted]:
    """What a worker wants, each time it asks."""

    def load(line: Line) -> float:
        return LINES[line.cost_class] * (1 + 0.1 * rng.random())  # learned: it changes

    for fence in itertools.count():
        yield Wanted(
            worker,
            str(fence),
            LaneName.IO,
            ("noop",),
            lambda _: most,
            most,
            load,
            LEASE_SECONDS,
        )


async def on_file(path: str, tasks: int, size: int, a_call: int) -> None:
    """Fill a file and run all that is in it; prints tasks a second, and CPU seconds of a task."""
    broker = SqliteBroker(Path(path), LIMITS, time.monotonic, time.time)
    await broker.start("w", lambda _: None)
    await fill_up(broker, tasks, size)
    asking = wishes("w", a_call, random.Random(1))
    gc.freeze()
    desk = Desk(broker)
    desk.start()

    async def slot() -> None:
        while claims := await broker.claim(next(asking)):
            end(desk, claims)

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(slot() for _ in range(SLOTS // a_call)))
    await desk.close(60.0)
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(json.dumps([tasks / took, cpu / tasks]))
    await broker.close()


def main() -> None:
    """See the head of this file."""
    what, url, *rest = sys.argv[1:]
    if what == "work":
        uvloop.run(work(url, rest[0], int(rest[1])))
    elif what == "file":
        uvloop.run(on_file(url, *map(int, rest)))
    else:
        each = {"fill": fill, "enqueue": enqueue, "enqueue-here": enqueue_here}
        uvloop.run(each[what](url, int(rest[0]), int(rest[1])))


if __name__ == "__main__":
    main()
