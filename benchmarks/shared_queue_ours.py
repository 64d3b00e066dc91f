"""Our own broker with worker processes and a job that does nothing, for shared_queue.py.

python benchmarks/shared_queue_ours.py fill URL TASKS BODY_BYTES
python benchmarks/shared_queue_ours.py work URL NUMBER A_CALL
python benchmarks/shared_queue_ours.py enqueue URL TASKS BODY_BYTES

The last enqueues one at a time, and prints how many seconds each took.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import sys
import time
from contextlib import suppress

from llmtaskpool_worker.brokers.protocol import (
    Claim,
    Line,
    Outcome,
    Submission,
    Unavailable,
    Wanted,
)
from llmtaskpool_worker.brokers.redis.broker import RedisBroker
from llmtaskpool_worker.brokers.redis.link import Address
from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.scheduling.limits import LaneLimits, Limits
from llmtaskpool_worker.scheduling.task import Call, Returned, TaskRequest

POOL = "bench/pool"
SLOTS = 16
LINES = {f"chat|model|{i}": 0.05 * 1.5**i for i in range(20)}
NAMES = list(LINES)
LEASE_SECONDS = 30.0
LIMITS = Limits(io=LaneLimits(threads=8, threads_max=64, queue_tasks=10**6, queue_bytes=10**10))


def new_ids() -> itertools.count[int]:
    """Time-ordered, 128 bits: of this process's start, counted up."""
    begun = time.time_ns() // 1_000_000
    return itertools.count((begun << 80) | (7 << 76) | int.from_bytes(os.urandom(6), "big") << 16)


def submission(number: int, rng: random.Random, body: str) -> Submission:
    """A task of one of 20 classes."""
    line, weight = rng.choice(NAMES), rng.choice([0.25, 1.0, 1.0, 1.0, 4.0, 20.0])
    return Submission(
        id=f"{number:032x}",
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
    rng, numbers = random.Random(1), new_ids()
    for start in range(0, tasks, 500):
        await asyncio.gather(
            *(
                broker.accept(submission(next(numbers), rng, os.urandom(size // 2).hex()))
                for _ in range(min(500, tasks - start))
            )
        )
    await broker.close()


async def enqueue(url: str, tasks: int, size: int) -> None:
    """Enqueue one after the other; prints how long each took."""
    broker = await connected(url, "client")
    rng, numbers, took = random.Random(2), new_ids(), []
    for _ in range(tasks):
        one = submission(next(numbers), rng, os.urandom(size // 2).hex())
        began = time.perf_counter()
        await broker.accept(one)
        took.append(time.perf_counter() - began)
    print(json.dumps(took))
    await broker.close()


async def work(url: str, number: str, a_call: int) -> None:
    """Claim and commit for ever, with leases, sweeps and waits as a worker has them."""
    broker = await connected(url, f"w{number}")
    rng = random.Random(number)
    fences = itertools.count()

    def load(line: Line) -> float:
        return LINES[line.cost_class] * (1 + 0.1 * rng.random())  # learned: it changes

    async def slot(most: int) -> None:
        done: list[Claim] = []
        while True:
            wanted = Wanted(
                f"w{number}",
                str(next(fences)),
                LaneName.IO,
                ("noop",),
                lambda _: most,
                most,
                load,
                LEASE_SECONDS,
            )
            outcomes = [Outcome(claim.id, claim.fence, Returned(None)) for claim in done]
            try:
                _, done = await asyncio.gather(broker.commit(outcomes), broker.claim(wanted))
            except Unavailable:
                done = []
            if not done and not outcomes:
                await broker.wait_for_work(LaneName.IO, ("noop",), 1.0)

    async def sweep() -> None:
        while True:
            await asyncio.sleep(0.5 + rng.random())
            with suppress(Unavailable):
                await broker.sweep()

    slots = [slot(a_call) for _ in range(SLOTS // a_call)]
    await asyncio.gather(sweep(), *slots)


def main() -> None:
    """See the head of this file."""
    what, url, *rest = sys.argv[1:]
    if what == "work":
        asyncio.run(work(url, rest[0], int(rest[1])))
    else:
        asyncio.run({"fill": fill, "enqueue": enqueue}[what](url, int(rest[0]), int(rest[1])))


if __name__ == "__main__":
    main()
