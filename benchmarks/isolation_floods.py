"""The floods of `isolation.py`, each in a process of its own until it is told to end.

python benchmarks/isolation_floods.py FLOOD URL SITE_PORT PICTURE

It prints a line when the flood is there. At SIGTERM it takes back what still waits, and prints what
came of it: requests that were answered, and those that were refused. It is nicer (10) than the
chats' clients: its own work is not what is measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from base64 import b64encode
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
from aiohttp import web

WAITING, GRAPH = 10_000, 1_000
"""Tasks that wait, and how many of them are sent at once."""
WEIGHT = 0.1
"""Of bulk; a chat has 1."""
HOLD_SECONDS = 5.0
"""A page of the slow site takes so long: whoever fetches it waits."""
WORDS = ["queue", "worker", "model", "token", "batch", "pool", "graph", "shard", "cache", "weight"]


class Flood:
    """One kind of work, again and again."""

    def __init__(self, http: aiohttp.ClientSession, site: str, picture: bytes) -> None:
        self._http, self._site, self._picture = http, site, b64encode(picture).decode()
        self._dice = random.Random(11)
        self.counts: Counter[str] = Counter()
        self.waiting: list[str] = []

    async def nothing(self) -> None:
        """To know how far two windows differ by themselves."""

    async def wait(self) -> None:
        """Tasks that fetch a page which comes late; a few do, the others are in the line."""
        task = {"kind": "io.fetch", "arguments": {"url": f"{self._site}/late"}}
        for _ in range(WAITING // GRAPH):
            tasks = {f"t{number}": task for number in range(GRAPH)}
            async with self._http.post("/v1/graphs", json={"tasks": tasks}) as answer:
                assert answer.status == 202, await answer.text()
                made = (await answer.json())["tasks"]
            self.waiting += [one["id"] for one in made.values()]

    async def fetch(self) -> None:
        """A page of 1 KB, as a task whose result is read."""
        await self._task("io.fetch", {"url": f"{self._site}/page"})

    async def read_1(self) -> None:
        """An object of 1 MB."""
        await self._task("io.read", {"name": "one", "encoding": "base64"})

    async def read_16(self) -> None:
        """An object of 16 MB, the largest that is read."""
        await self._task("io.read", {"name": "sixteen", "encoding": "base64"})

    async def embed(self) -> None:
        """32 texts of 5 to 100 words."""
        texts = [
            " ".join(self._dice.choices(WORDS, k=self._dice.randint(5, 100))) for _ in range(32)
        ]
        await self._post("/v1/embeddings", {"model": "minilm", "input": texts})

    async def classify(self) -> None:
        """Four pictures."""
        await self._post("/v1/classify", {"model": "photos", "image": [self._picture] * 4})

    async def _post(self, path: str, body: dict[str, object]) -> None:
        async with self._http.post(path, json=body | {"weight": WEIGHT}) as answer:
            await answer.read()
            await self._noted(answer)

    async def _task(self, kind: str, arguments: dict[str, object]) -> None:
        body = {"kind": kind, "arguments": arguments}
        async with self._http.post("/v1/tasks", json=body) as made:
            if made.status != 202:
                await self._noted(made)
                return
            task = (await made.json())["id"]
        async with self._http.get(f"/v1/tasks/{task}?wait=60") as answer:
            await answer.read()
            await self._noted(answer)

    async def _noted(self, answer: aiohttp.ClientResponse) -> None:
        self.counts[str(answer.status)] += 1
        if answer.status in (429, 503):
            await asyncio.sleep(1)

    async def take_back(self) -> None:
        """What still waits is cancelled."""
        left = self.waiting

        async def cancel() -> None:
            while left:
                async with self._http.delete(f"/v1/tasks/{left.pop()}") as answer:
                    await answer.read()

        await asyncio.gather(*(cancel() for _ in range(8)))


FLOODS: dict[str, tuple[str, Callable[[Flood], Awaitable[None]], int]] = {
    "nothing": ("nothing", Flood.nothing, 0),
    "waiting": (f"{WAITING:,} io tasks wait", Flood.wait, 1),
    "fetches": ("fetches of 1 KB, 64 clients", Flood.fetch, 64),
    "reads of 1 MB": ("reads of 1 MB, 16 clients", Flood.read_1, 16),
    "reads of 16 MB": ("reads of 16 MB, 4 clients", Flood.read_16, 4),
    "embeddings": (f"embeddings at W = {WEIGHT}, 8 clients of 32 texts", Flood.embed, 8),
    "pictures": (f"pictures at W = {WEIGHT}, 8 clients of 4", Flood.classify, 8),
}
"""What it is called, one of it, and how many clients do it again and again; one: it is done once.
"""


async def site(port: int) -> web.AppRunner:
    """What io.fetch asks."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(body=b"y" * 1024)

    async def late(_: web.Request) -> web.Response:
        await asyncio.sleep(HOLD_SECONDS)
        return web.Response(body=b"y" * 1024)

    app = web.Application()
    app.router.add_get("/page", page)
    app.router.add_get("/late", late)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    return runner


async def flooding(name: str, url: str, port: int, picture: bytes) -> None:
    """Until SIGTERM."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    served = await site(port)
    _, one, clients = FLOODS[name]
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as http:
        flood = Flood(http, f"http://127.0.0.1:{port}", picture)

        async def client() -> None:
            while not ended.is_set():
                await one(flood)

        if clients == 1:
            await one(flood)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        running = [asyncio.create_task(client()) for _ in range(clients if clients > 1 else 0)]
        await ended.wait()
        before = dict(flood.counts)
        await asyncio.gather(*running, flood.take_back())
    await served.cleanup()
    sys.stdout.write(json.dumps(before) + "\n")


if __name__ == "__main__":
    os.nice(10)
    asyncio.run(
        flooding(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]).read_bytes())
    )
