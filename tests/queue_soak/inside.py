"""A short run of the queue with all workers and clients in this process, and the server outside.

A worker that crashes here lets its connections go and is never heard of again; one that is frozen
does nothing for a while and doesn't know it.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakes.queue_servers import QueueServer
from llmtaskpool_worker.brokers.redis.broker import RedisBroker
from llmtaskpool_worker.brokers.redis.link import Address
from llmtaskpool_worker.scheduling.limits import Limits

from queue_soak.audit import audit
from queue_soak.faults import FAULTS, scripts_with
from queue_soak.history import Log, read
from queue_soak.load import ATTEMPTS, LINES, Client, Mix, Worker, new_ids
from queue_soak.power import Power

POOL = "soak/pool"
MIX = Mix(long=0.03, long_seconds=(0.3, 1.0))


@dataclass(frozen=True, slots=True)
class Plan:
    """``kills``: seconds at which the server is killed; ``cut``: and loses its last second."""

    seconds: float = 3.0
    tasks_per_second: float = 150.0
    workers: int = 3
    slots: int = 8
    lease: float = 0.4
    crash_every: float = 0.5
    freeze_every: float = 0.7
    freeze_leases: float = 2.0
    kills: tuple[float, ...] = ()
    cut: bool = False
    ageing: float = 0.0
    share: float = 0.1
    ordered: bool = False
    mix: Mix = MIX
    server: dict[str, str] = field(default_factory=lambda: {"appendfsync": "always"})


def plan_for(fault: str) -> Plan:
    """What has to happen for a fault to do harm."""
    needs = FAULTS[fault].needs
    if fault == "the weakest goes first":
        return Plan(seconds=2.0, crash_every=1e9, freeze_every=1e9, workers=1, ordered=True)
    if "poison" in needs:
        return Plan(mix=Mix(poisonous=0.02), crash_every=1e9, lease=0.25)
    if "cut" in needs:
        # At other parts of the second after which it is written; tasks outlive the server's death.
        kills = (2.0, 3.3, 4.6, 5.9, 7.2)
        return Plan(
            seconds=7.7,
            workers=4,
            slots=16,
            lease=1.5,
            crash_every=1e9,
            freeze_every=1e9,
            kills=kills,
            cut=True,
            mix=Mix(long=0.3, long_seconds=(1.0, 2.0)),
            server={"appendfsync": "everysec"},
        )
    if "stale commits" in needs:
        # The next claimer, who runs it alone, has to end before the frozen one says its own.
        short = Mix(long=0.3, long_seconds=(0.1, 0.3), cancelled=0.0)
        return Plan(seconds=4.0, freeze_every=0.8, freeze_leases=4.0, mix=short, crash_every=1e9)
    if "volatile" in needs:
        return Plan(seconds=3.0, kills=(2.0,), server={"appendonly": "no"})
    if "ageing" in needs:
        return aged_plan()
    return Plan()


def aged_plan() -> Plan:
    """More than the workers can do, of which the weakest would wait for ever."""
    return Plan(
        seconds=5.0,
        tasks_per_second=230.0,
        workers=1,
        crash_every=1e9,
        freeze_every=1e9,
        ageing=1.0,
        share=0.4,
        lease=5.0,
        mix=Mix(dependent=0, keyed=0, cancelled=0, failing=0, long=0),
    )


class Run:
    """One run, from an empty server to its history."""

    def __init__(self, folder: Path, plan: Plan, kind: str, fault: str | None, seed: int) -> None:
        self.folder, self.plan, self.fault = folder, plan, fault
        self.rng = random.Random(seed)
        self.scripts = scripts_with(fault)
        self.server = QueueServer(folder / "server", kind, **plan.server)
        self.power = Power(self.server, cut=plan.cut)
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True)
        self.log = Log(self.logs, "main")
        self.workers: dict[str, tuple[Worker, asyncio.Task[None]]] = {}
        self.born = 0
        self.counts = {"workers crashed": 0, "workers frozen": 0, "servers killed": 0}
        self._ended: list[str] = []

    def broker(self, lease: float) -> RedisBroker:
        limits = Limits(ageing_seconds=self.plan.ageing or 1e6, aged_share=self.plan.share)
        broker = RedisBroker(
            Address(self.server.url),
            POOL,
            limits,
            time.monotonic,
            lease_seconds=lease,
            allow_volatile=True,
        )
        broker._session._courier.scripts = self.scripts
        if self.fault == "no append-only file":
            broker._session._said.last = lambda _: []  # it would heal what it can
        return broker

    async def go(self) -> list[dict[str, Any]]:
        plan = self.plan
        self.log(
            "config",
            attempts=ATTEMPTS,
            lease=plan.lease,
            loads=LINES if plan.ordered or plan.ageing else None,
            ageing=plan.ageing,
            share=plan.share,
            capacity=plan.workers * plan.slots,
        )
        try:
            with self.server:
                await self._run()
                for _ in audit(self.server, POOL, self.log):
                    pass
        finally:
            self.log.close()
        return read(self.logs)

    async def _run(self) -> None:
        plan = self.plan
        for _ in range(plan.workers):
            await self._bear()
        clients = [await self._client(i) for i in range(2)]
        per_client = plan.tasks_per_second / 2
        sending = [
            asyncio.create_task(c.run(int(plan.seconds * per_client), per_client))
            for c, _ in clients
        ]
        breaking = asyncio.create_task(self._break())
        try:
            await asyncio.wait_for(asyncio.gather(*sending), plan.seconds + 120)
        finally:
            breaking.cancel()
            await asyncio.gather(breaking, return_exceptions=True)
        for worker, _ in self.workers.values():
            worker.frozen = False
        await self._settle()
        self.counts["accepted"] = sum(c.accepted for c, _ in clients)
        for name in list(self.workers):
            await self._crash(name)
        for _, broker in clients:
            await broker.close()

    async def _settle(self) -> None:
        """Until nothing waits or runs; a fault may keep that from ever being so."""
        lease = self.plan.lease
        give_up = time.monotonic() + (1 + 5 * lease if self.fault else 30)
        quiet_since = None
        with self.server.client() as client:
            while time.monotonic() < give_up:
                await asyncio.sleep(0.05)
                await self._replace_dead()
                prefix = f"ltp:{{{POOL}}}"
                held = int(client.hget(f"{prefix}:s", "held:io") or 0)
                if held + client.zcount(f"{prefix}:l", "-inf", "(inf"):
                    quiet_since = None
                elif quiet_since is None:
                    quiet_since = time.monotonic()
                elif time.monotonic() - quiet_since > lease:
                    return

    async def _bear(self) -> None:
        self.born += 1
        name = f"w{self.born}"
        broker = self.broker(self.plan.lease)
        await broker.start(name, lambda _: None)
        worker = Worker(broker, Log(self.logs, name), name, self.plan.lease, self.plan.slots)
        worker.dies = lambda: self._ended.append(name)
        self.workers[name] = worker, asyncio.create_task(worker.run())

    async def _client(self, number: int) -> tuple[Client, RedisBroker]:
        broker = self.broker(self.plan.lease)
        name = f"c{number}"
        await broker.start(name, lambda _: None)
        rng = random.Random(self.rng.random())
        new_id = new_ids(3600.0 * (2 * number - 1))
        return Client(broker, Log(self.logs, name), rng, name, self.plan.mix, new_id), broker

    async def _crash(self, name: str) -> None:
        worker, running = self.workers.pop(name)
        self.log("crash", what="worker", by=name)
        for task in [running, *worker.tasks]:
            task.cancel()
        await abandon(worker.broker)
        await asyncio.gather(running, *worker.tasks, return_exceptions=True)
        worker.log.close()

    async def _replace_dead(self) -> None:
        ended, self._ended = self._ended, []
        for name in ended:
            if name in self.workers:
                await self._crash(name)
                await self._bear()

    async def _break(self) -> None:
        plan, began = self.plan, time.monotonic()
        crash, freeze, kills = plan.crash_every, plan.freeze_every, list(plan.kills)
        while True:
            await asyncio.sleep(0.02)
            now = time.monotonic() - began
            await self._replace_dead()
            self.power.look()
            if now >= crash:
                crash += plan.crash_every
                self.counts["workers crashed"] += 1
                await self._crash(self.rng.choice(list(self.workers)))
                await self._bear()
            if now >= freeze:
                freeze += plan.freeze_every
                self.counts["workers frozen"] += 1
                worker, _ = self.workers[self.rng.choice(list(self.workers))]
                worker.frozen = True
                loop = asyncio.get_running_loop()
                loop.call_later(plan.freeze_leases * plan.lease, setattr, worker, "frozen", False)
            if kills and now >= kills[0]:
                kills.pop(0)
                self._kill_server()

    def _kill_server(self) -> None:
        died, since, _ = self.power.take()
        self.counts["servers killed"] += 1
        self.log("crash", t=died, what="server", since=since)
        self.server.start()


async def abandon(broker: Any) -> None:
    """As if its process had been killed: nothing is said, connections are gone."""
    session = broker._session
    running = session._courier._running
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    session._courier._running = None
    await session._courier._link.close()
    for waking in broker._waking.values():
        if waking._waiting is not None:
            waking._waiting.cancel()
            await asyncio.gather(waking._waiting, return_exceptions=True)
        await waking._link.close()
    await broker._following.close()
