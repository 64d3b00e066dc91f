"""The clients of `soak.py`: what each does from its arrival to its end, and what they saw."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

EXPECTED = frozenset({200, 202, 400, 429, 503})
"""Statuses that a client of the mix may get."""


@dataclass(slots=True)
class Tally:
    """What clients saw: outcomes by what they did, and answers that nobody should get."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    odd: list[str] = field(default_factory=list)
    kills: int = 0
    left_out: int = 0

    def saw(self, what: str, status: int) -> None:
        """An answer came."""
        self.outcomes[what, str(status)] += 1
        if status not in EXPECTED:
            self.odd.append(f"{what}: {status}")


class Mix:
    """The clients. Each method is one client from its arrival to its end."""

    def __init__(self, http: aiohttp.ClientSession, site: str, dice: random.Random) -> None:
        self._http, self._site, self._dice = http, site, dice
        self.tally = Tally()
        self._shares: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (20, self.chat),
            (10, self.whole),
            (20, self.embeddings),
            (10, self.fetch),
            (8, self.write_and_read),
            (8, self.cancelled),
            (8, self.leaves),
            (4, self.slow_reader),
            (6, self.bad),
            (6, self.task),
        ]

    async def any(self) -> None:
        """One of them, by its share. What breaks a connection is an outcome and no error."""
        shares, clients = zip(*self._shares, strict=True)
        client = self._dice.choices(clients, shares)[0]
        try:
            await client()
        except (aiohttp.ClientError, TimeoutError) as error:
            self.tally.outcomes[client.__name__, type(error).__name__] += 1

    def _chat(self, *, stream: bool, tokens: int) -> dict[str, object]:
        words = " ".join(self._dice.choices(("red", "river", "seven", "stone"), k=12))
        return {
            "model": "smollm2",
            "messages": [{"role": "user", "content": f"Say something about {words}."}],
            "max_tokens": tokens,
            "stream": stream,
            "weight": self._dice.choice((0.1, 1, 10)),
        }

    async def chat(self) -> None:
        """A stream, read to its end."""
        body = self._chat(stream=True, tokens=self._dice.randint(4, 24))
        async with self._http.post("/v1/chat/completions", json=body) as answer:
            await answer.read()
            self.tally.saw("chat", answer.status)

    async def whole(self) -> None:
        """The same without a stream."""
        body = self._chat(stream=False, tokens=self._dice.randint(4, 16))
        await self._post("/v1/chat/completions", body, "whole")

    async def embeddings(self) -> None:
        """Some texts at once."""
        texts = [f"text {self._dice.random()}" for _ in range(self._dice.randint(1, 8))]
        await self._post("/v1/embeddings", {"model": "minilm", "input": texts}, "embeddings")

    async def fetch(self) -> None:
        """A task of kind io.fetch, waited for."""
        await self._task("io.fetch", {"url": f"{self._site}/thing"})

    async def write_and_read(self) -> None:
        """An object written, then read."""
        name = f"object-{self._dice.randint(0, 20)}"
        await self._task("io.write", {"name": name, "content": "x" * 10_000})
        await self._task("io.read", {"name": name})

    async def cancelled(self) -> None:
        """A task that is not wanted any more as soon as it is accepted."""
        body = {"kind": "chat", "model": "smollm2", "arguments": {"max_tokens": 200}}
        body["input"] = [{"role": "user", "content": "Count to a hundred."}]
        made = await self._post("/v1/tasks", body, "cancelled")
        if made is not None:
            async with self._http.delete(f"/v1/tasks/{made['id']}") as answer:
                await answer.read()

    async def leaves(self) -> None:
        """A client that goes after the first bytes of its stream."""
        body = self._chat(stream=True, tokens=200)
        async with self._http.post("/v1/chat/completions", json=body) as answer:
            await answer.content.readany()
            self.tally.saw("leaves", answer.status)
            answer.close()

    async def slow_reader(self) -> None:
        """A client that reads a little of its stream now and then."""
        body = self._chat(stream=True, tokens=24)
        async with self._http.post("/v1/chat/completions", json=body) as answer:
            async for _ in answer.content.iter_chunked(64):
                await asyncio.sleep(0.1)
            self.tally.saw("slow_reader", answer.status)

    async def bad(self) -> None:
        """A request that can't be served."""
        await self._post("/v1/chat/completions", {"model": "smollm2", "messages": 3}, "bad")

    async def task(self) -> None:
        """A chat as a task, waited for."""
        body = {"kind": "chat", "model": "smollm2", "arguments": {"max_tokens": 8}}
        body["input"] = [{"role": "user", "content": "Say hello."}]
        made = await self._post("/v1/tasks", body, "task")
        if made is not None:
            await self._wait(made["id"], "task")

    async def _task(self, kind: str, arguments: dict[str, object]) -> None:
        made = await self._post("/v1/tasks", {"kind": kind, "arguments": arguments}, kind)
        if made is not None:
            await self._wait(made["id"], kind)

    async def _wait(self, task_id: str, what: str) -> None:
        for _ in range(20):
            async with self._http.get(f"/v1/tasks/{task_id}?wait=10") as answer:
                view = await answer.json()
                if answer.status != 200:
                    self.tally.odd.append(f"{what}: {answer.status} for an accepted task")
                    return
            if view["state"] not in ("queued", "running"):
                self.tally.outcomes[what, view["state"]] += 1
                return
        self.tally.odd.append(f"{what}: not ended after 200 s")

    async def _post(self, path: str, body: object, what: str) -> dict | None:
        async with self._http.post(path, json=body) as answer:
            told = await answer.json()
            self.tally.saw(what, answer.status)
            return told if answer.status in (200, 202) else None


@asynccontextmanager
async def fetched_site() -> AsyncIterator[str]:
    """A small site on this machine for io.fetch."""

    async def thing(_: web.Request) -> web.Response:
        return web.Response(body=b"y" * 1024)

    app = web.Application()
    app.router.add_get("/thing", thing)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()
