"""What `upstream.py` runs and asks: a server, a worker in front of it, and clients of either.

The clients write HTTP by hand: what they cost is not to be measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
TOKEN = re.compile(rb'"content": ?"[^"]')
"""A chunk with text: not the first one, which has a role alone."""
_ENDS = b"\r\n0\r\n\r\n"
_WORDS = [
    *("harbour", "winter", "copper", "ladder", "meadow", "signal", "velvet", "garden", "thunder"),
    *("paper", "island", "candle", "river", "orchard", "saddle", "engine", "mirror", "lantern"),
]
_numbers = itertools.count(1)


def asked(tokens: int, *, model: str = "chat", words: int = 40, **more: object) -> dict:
    """A chat that asks for so many tokens, about words that no other one has in this order.

    So a server's prompt cache helps with the template alone.
    """
    number = next(_numbers)
    told = (
        _WORDS[(number * 7 + place * (number % 17 + 3)) % len(_WORDS)] for place in range(words)
    )
    text = f"Story {number}: {' '.join(told)}. Go on."
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    return body | {"max_tokens": tokens, "stream": True} | more


@dataclass(slots=True)
class Seen:
    """Of one stream: seconds to its first token and to its end, and how many frames it had."""

    first: float
    whole: float
    frames: int


class Wire:
    """One connection to an address ``http://host:port/v1``, kept between requests."""

    def __init__(self, url: str) -> None:
        self._host, port = url.removeprefix("http://").split("/")[0].split(":")
        self._port = int(port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def begin(self, body: dict) -> AsyncIterator[bytes]:
        """Send a chat; what comes, as it comes."""
        content = json.dumps(body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self._host}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        for again in (True, False):
            kept = self._streams is not None
            if self._streams is None:
                self._streams = await asyncio.open_connection(self._host, self._port)
            reader, writer = self._streams
            writer.write(head.encode() + content)
            tail = b""
            while not tail.endswith(_ENDS) and (piece := await self._read(reader)):
                if not tail and not piece.startswith(b"HTTP/1.1 200"):
                    raise SystemExit(f"not answered: {piece[:600]!r}")
                tail = (tail + piece)[-16:]
                yield piece
            if tail.endswith(_ENDS):
                return
            self._streams = None
            if tail or not (kept and again):
                raise SystemExit("a connection was closed in the middle of an answer")

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        """What comes next; nothing where the server closed a connection that it had kept."""
        with contextlib.suppress(ConnectionError):
            return await reader.read(65536)
        return b""

    async def ask(self, body: dict) -> Seen:
        """Send a chat and read its stream to the end."""
        began, first, seen = time.perf_counter(), None, b""
        async for piece in self.begin(body):
            seen += piece
            if first is None and TOKEN.search(seen):
                first = time.perf_counter() - began
        if first is None:
            raise SystemExit(f"no token came: {seen[:300]!r}")
        return Seen(first, time.perf_counter() - began, seen.count(b"data: {"))

    def leave(self) -> None:
        """Close it at once, whatever is under way."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


async def many(url: str, bodies: list[dict], at_once: int) -> float:
    """Seconds for all of these, so many at once."""
    left = iter(bodies)

    async def client() -> None:
        wire = Wire(url)
        for body in left:
            await wire.ask(body)
        wire.leave()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(at_once)))
    return time.perf_counter() - began


@asynccontextmanager
async def backlog(url: str, bodies: list[dict]) -> AsyncIterator[None]:
    """All of these wait or run there; they are left at the block's end."""
    wires = [Wire(url) for _ in bodies]
    asking = [asyncio.create_task(wire.ask(body)) for wire, body in zip(wires, bodies, strict=True)]
    await asyncio.sleep(1.0 + len(bodies) / 200)
    try:
        yield
    finally:
        for one in asking:
            one.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        for wire in wires:
            wire.leave()
        await asyncio.sleep(1.0)  # the server lets go of what was left


@contextmanager
def process(*command: str, environment: dict[str, str] | None = None) -> Iterator[tuple[str, int]]:
    """A program until the block's end: the first line that it prints, and its process id."""
    started = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT / "tests",
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests")} | (environment or {}),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert started.stdout is not None
        yield started.stdout.readline(), started.pid
    finally:
        started.kill()
        started.wait()


@contextmanager
def stub(step_seconds: float) -> Iterator[tuple[str, int]]:
    """tests/fakes/vllm_stub.py: its address, and its process id."""
    with process("fakes.vllm_stub", "--step-seconds", str(step_seconds)) as (line, pid):
        yield f"http://127.0.0.1:{int(line)}/v1", pid


@contextmanager
def worker(url: str, threads: int) -> Iterator[str]:
    """A worker in front of the server at ``url``; its own address."""
    options = ["--port", "0", "--control-port", "0", "--threads", str(threads)]
    options += ["--model", f"chat=openai:{url}", "--grace-seconds", "0", "--log-level", "error"]
    tokens = {"LLMTASKPOOL_CONTROLTOKENS": "bench"}
    with process("llmtaskpool_worker", "serve", *options, environment=tokens) as (line, _):
        address = f"http://127.0.0.1:{json.loads(line)['data_port']}/v1"
        wait_ready(address)
        yield address


def readiness(address: str) -> dict[str, str] | None:
    """What a worker that is not ready says of its models; None: it is ready."""
    answer = httpx.get(f"{address.removesuffix('/v1')}/readyz", timeout=10)
    return None if answer.status_code == 200 else answer.json().get("models", {})


def wait_ready(address: str) -> float:
    """Wait until a worker takes requests; the seconds that it took."""
    began = time.perf_counter()
    while time.perf_counter() - began < 120:
        if readiness(address) is None:
            return time.perf_counter() - began
        time.sleep(0.05)
    raise SystemExit("the worker was never ready")


def gauge(address: str, name: str) -> float:
    """A number of a /metrics page, summed over its labels."""
    page = httpx.get(f"{address.removesuffix('/v1')}/metrics", timeout=10).text
    lines = [line for line in page.splitlines() if line.startswith(name)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)
