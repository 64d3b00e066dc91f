"""Workers and clients of the shared queue as processes of their own.

`python -m queue_soak.process` reads a Role as a line of JSON, forks a process for it and answers
its number: so each begins at once, with all that it needs imported. `clock_ahead` is what both its
clocks are wrong by. With `version` 2 it is of the next version, which accepts what this one can't
serve.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from fakes.cutting_proxy import CuttingProxy
from llmtaskpool_worker.brokers.redis import books, scripts
from llmtaskpool_worker.brokers.redis.broker import RedisBroker
from llmtaskpool_worker.brokers.redis.link import Address
from llmtaskpool_worker.scheduling.limits import Limits

from queue_soak.history import Log
from queue_soak.load import Client, Mix, Worker, new_ids

POOL = "soak/pool"


class Role(msgspec.Struct):
    role: str
    name: str
    url: str
    logs: str
    lease: float
    seed: int = 0
    clock_ahead: float = 0.0
    version: int = 1
    tasks: int = 0
    rate: float = 1.0
    mix: Mix = Mix()
    slots: int = 8
    cut_off_leases: float = 0.0
    """So long it hears nothing of the server, nor the server of it, after a SIGUSR1."""


def next_version() -> None:
    parts = dict(scripts.parts())
    before = "local VERSION, READS = 1, { ['1'] = true }"
    after = "local VERSION, READS = 2, { ['1'] = true, ['2'] = true }"
    if before not in parts["common"]:
        raise LookupError("the version stands elsewhere now")
    parts["common"] = parts["common"].replace(before, after)
    built = {name: scripts.build(name, parts) for name in scripts.scripts()}
    books.VERSION, books.READS = 2, (1, 2)
    from llmtaskpool_worker.brokers.redis import courier

    courier.scripts = lambda: built


async def main(role: Role) -> None:
    async with CuttingProxy(urlsplit(role.url).port or 0) as way:
        url = role.url
        if role.cut_off_leases:
            loop, seconds = asyncio.get_running_loop(), role.cut_off_leases * role.lease

            def cut_off() -> None:
                way.silent = True
                loop.call_later(seconds, setattr, way, "silent", False)

            loop.add_signal_handler(signal.SIGUSR1, cut_off)
            url = way.url
        await live(role, url)


async def live(role: Role, url: str) -> None:
    if role.version == 2:
        next_version()
    broker = RedisBroker(
        Address(url),
        POOL,
        Limits(ageing_seconds=1e6),
        lambda: time.monotonic() + role.clock_ahead,
        lease_seconds=role.lease,
    )
    await broker.start(role.name, lambda _: None)
    log = Log(Path(role.logs), role.name)
    if role.role == "worker":
        await Worker(broker, log, role.name, role.lease, role.slots).run()
    else:
        new_id = new_ids(role.clock_ahead)
        client = Client(broker, log, random.Random(role.seed), role.name, role.mix, new_id)
        await client.run(role.tasks, role.rate)
        await asyncio.sleep(0.5)
        await broker.close()
        log("done", by=role.name)


def nursery() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who end
    for line in sys.stdin:
        role = msgspec.json.decode(line, type=Role)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until it listens
            try:
                asyncio.run(main(role))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(pid, flush=True)  # noqa: T201


if __name__ == "__main__":
    nursery()
