"""A front and a fleet of stand-in workers in one asyncio loop, ended with certainty."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from fakes.plain_http import NO_TLS
from llmtaskpool_operator.local.fleet import Fleet, FleetLimits
from llmtaskpool_operator.local.front import Front
from llmtaskpool_operator.local.front_connection import FrontLimits
from llmtaskpool_operator.local.health import HealthLimits
from llmtaskpool_operator.local.worker_process import LocalWorker, WorkerCommand
from llmtaskpool_operator.workers.client import ClientLimits, open_http
from llmtaskpool_worker.contract import CONTROL_STATE, WorkerState

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in_worker.py")))
DEADLINE_SECONDS = 20.0
TOKEN = "fleet-token"


async def eventually(check: Callable[[], Awaitable[bool]], what: str) -> None:
    """Return once ``check`` says so; fail when that takes too long."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not await check():
        assert time.monotonic() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.01)


async def until(true: Callable[[], bool], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Return once ``true()``; fail when that takes longer than ``seconds``."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.01)


class LocalRig:
    def __init__(self, fleet: Fleet, front: Front, port: int, notices: list[str]) -> None:
        self.fleet = fleet
        self.front = front
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.notices = notices

    async def scale(self, replicas: int) -> None:
        """Scale, and wait until so many are ready and no other is left."""
        await self.fleet.scale(replicas)
        await self.settled(replicas)

    async def settled(self, replicas: int) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not (len(self.front.routed()) == replicas == len(self.fleet.workers)):
                await self.fleet.tend()
                await asyncio.sleep(0.01)

    def client(self, **options) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.url, timeout=DEADLINE_SECONDS, verify=NO_TLS, **options
        )

    async def work(self, client: httpx.AsyncClient, seconds: float = 0.0) -> httpx.Response:
        return await client.post("/v1/chat/completions", json={"seconds": seconds})


async def whole_state(worker: LocalWorker) -> WorkerState:
    """All that a worker tells people of itself: the operator reads less."""
    return await worker.client()._call(WorkerState, "GET", CONTROL_STATE)


@asynccontextmanager
async def local_rig(
    replicas: int = 1,
    *,
    front_limits: FrontLimits | None = None,
    limits: FleetLimits | None = None,
    health: HealthLimits | None = None,
    program: tuple[str, ...] = STAND_IN,
    options: tuple[str, ...] = (),
    **stand_in,
):
    """A LocalRig; ``stand_in`` are STAND_IN_ variables in lower case."""
    notices: list[str] = []
    environment = {f"STAND_IN_{name.upper()}": str(value) for name, value in stand_in.items()}
    fleets: list[Fleet] = []
    front = Front(front_limits, starting=lambda: fleets[0].any_starting())
    async with open_http(ClientLimits()) as http:
        fleet = Fleet(
            WorkerCommand(program, options, environment),
            front,
            http,
            TOKEN,
            clock=time.monotonic,
            limits=limits or FleetLimits(drain_seconds=10.0, grace_seconds=2.0),
            health=health,
            notice=notices.append,
        )
        fleets.append(fleet)
        port = await front.start("127.0.0.1", 0)
        rig = LocalRig(fleet, front, port, notices)
        try:
            if replicas:
                await rig.scale(replicas)
            yield rig
        finally:
            await fleet.kill()
            await front.stop()
            assert not fleet.workers
