"""A pool in front of llama.cpp's server: the order that it keeps, and what it costs.

    python benchmarks/upstream.py [--backlog 200] [--rounds 5] [--out benchmarks/upstream.md]

A real llama.cpp server (the wheel xllamacpp) with SmolLM2, and a real worker in front of it. All is
interleaved: each round measures each way once, so that a busy machine is busy for all.

- Order: how long an urgent request waits for its first token, alone, behind a backlog of bulk
  requests in the pool, and behind the same backlog sent straight to the server.
- Throughput: the same requests through the pool and straight, as many at once as the server has
  slots.
- First token: through the pool and straight, one request at a time, at a server that answers at
  once (tests/fakes/vllm_stub.py), so that only the way is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx
from rich.console import Console

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from fakes.llama_server import llama_serving  # noqa: E402

TALK = [{"role": "user", "content": "Tell me about the sea, in a few words."}]
BULK_TOKENS, URGENT_TOKENS, LOAD_TOKENS = 16, 4, 32
URGENT_GAP_SECONDS = 0.3


@contextmanager
def process(*command: str, environment: dict[str, str] | None = None) -> Iterator[str]:
    """A program until the block's end; the first line that it prints."""
    started = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT / "tests",
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests")} | (environment or {}),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert started.stdout is not None
        yield started.stdout.readline()
    finally:
        started.terminate()
        started.wait()


@contextmanager
def worker(url: str, threads: int) -> Iterator[str]:
    """A worker in front of the server at ``url``; its own address."""
    options = ["--port", "0", "--control-port", "0", "--threads", str(threads)]
    options += ["--model", f"chat=openai:{url}", "--grace-seconds", "0", "--log-level", "error"]
    tokens = {"LLMTASKPOOL_CONTROL_TOKENS": "bench"}
    with process("llmtaskpool_worker", "serve", *options, environment=tokens) as line:
        address = f"http://127.0.0.1:{json.loads(line)['data_port']}/v1"
        root = address.removesuffix("/v1")
        for _ in range(600):
            if httpx.get(f"{root}/readyz").status_code == 200:
                break
            time.sleep(0.1)
        else:
            raise SystemExit("the worker was never ready")
        yield address


async def first_token(client: httpx.AsyncClient, url: str, body: dict) -> float:
    """Seconds to the first token of a stream, which is read to its end."""
    began, seconds = time.perf_counter(), None
    async with client.stream("POST", f"{url}/chat/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            told = line.replace(" ", "")
            if seconds is None and '"content":"' in told and '"content":""' not in told:
                seconds = time.perf_counter() - began
    if seconds is None:
        raise SystemExit(f"no token came: {answer.status_code}")
    return seconds


def asked(tokens: int, **more: object) -> dict:
    """A body that asks for so many tokens."""
    return {"model": "chat", "messages": TALK, "max_tokens": tokens, "stream": True} | more


async def urgent_waits(
    client: httpx.AsyncClient, url: str, backlog: int, count: int, weights: bool
) -> list[float]:
    """Waits of urgent requests, one after the other, with so many bulk ones before them."""
    light, heavy = ({"weight": 0.1}, {"weight": 100.0}) if weights else ({}, {})
    bulk = [
        asyncio.create_task(_whole(client, url, asked(BULK_TOKENS, ignore_eos=True, **light)))
        for _ in range(backlog)
    ]
    await asyncio.sleep(1.0 if backlog else 0.0)
    waits = []
    for _ in range(count):
        waits.append(await first_token(client, url, asked(URGENT_TOKENS, **heavy)))
        await asyncio.sleep(URGENT_GAP_SECONDS)
    for one in bulk:
        one.cancel()
    await asyncio.gather(*bulk, return_exceptions=True)
    await asyncio.sleep(2.0)  # the server lets go of what was left
    return waits


async def _whole(client: httpx.AsyncClient, url: str, body: dict) -> int:
    async with client.stream("POST", f"{url}/chat/completions", json=body) as answer:
        return sum([1 async for line in answer.aiter_lines() if line.startswith("data: {")])


async def tokens_per_second(
    client: httpx.AsyncClient, url: str, requests: int, at_once: int
) -> float:
    """Of the same requests, so many at once."""
    places = asyncio.Semaphore(at_once)

    async def one() -> None:
        async with places:
            await _whole(client, url, asked(LOAD_TOKENS, ignore_eos=True))

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(requests)))
    return requests * LOAD_TOKENS / (time.perf_counter() - began)


def at(values: list[float], share: float) -> float:
    """The value below which this share of them is."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def measure(chosen: argparse.Namespace) -> dict[str, object]:
    """All numbers, by their names; seconds."""
    limits, slots = httpx.Limits(max_connections=None), chosen.slots
    alone: list[float] = []
    behind: list[float] = []
    straight: list[float] = []
    rates: list[tuple[float, float]] = []
    gaps: list[float] = []
    async with httpx.AsyncClient(timeout=None, limits=limits) as client:  # noqa: S113
        with (
            llama_serving(slots=slots, context=512 * slots) as server,
            worker(server.url, slots) as pool,
        ):
            await tokens_per_second(client, pool, 2 * slots, slots)
            for _ in range(chosen.rounds):
                alone += await urgent_waits(client, pool, 0, chosen.urgent, True)
                behind += await urgent_waits(client, pool, chosen.backlog, chosen.urgent, True)
                straight += await urgent_waits(client, server.url, chosen.backlog, 1, False)
                each = chosen.requests
                through = await tokens_per_second(client, pool, each, slots)
                itself = await tokens_per_second(client, server.url, each, slots)
                rates.append((through, itself))
        with (
            process("fakes.vllm_stub", "--step-seconds", "0.001") as port,
            worker(f"http://127.0.0.1:{int(port)}/v1", 8) as pool,
        ):
            url = f"http://127.0.0.1:{int(port)}/v1"
            named = {"model": "stub/letters", "stream_options": {"include_usage": True}}
            for _ in range(chosen.pairs):
                way = await first_token(client, pool, asked(2))
                gaps.append(way - await first_token(client, url, asked(2) | named))
    return {
        "slots": slots,
        "backlog": chosen.backlog,
        "urgent": len(behind),
        "alone_p50": median(alone),
        "alone_p95": at(alone, 0.95),
        "behind_p50": median(behind),
        "behind_p95": at(behind, 0.95),
        "straight_p50": median(straight),
        "pool_tokens_per_second": median([one for one, _ in rates]),
        "server_tokens_per_second": median([one for _, one in rates]),
        "throughput_ratio": median([through / itself for through, itself in rates]),
        "first_token_p50": median(gaps),
        "first_token_p99": at(gaps, 0.99),
    }


def table(found: dict, load: float) -> str:
    """The numbers as a page."""

    def ms(name: str) -> str:
        return f"{1000 * found[name]:,.1f} ms"

    ratio = found["behind_p95"] / found["alone_p95"]
    return f"""# A pool in front of llama.cpp's server

`python benchmarks/upstream.py`: SmolLM2-135M on {found["slots"]} slots, {os.cpu_count()} cores,
{found["urgent"]} urgent requests; the machine's load average at the start was {load:.1f}.
Rounds are interleaved.

| an urgent request's wait for its first token | p50 | p95 |
| --- | ---: | ---: |
| in the pool, nothing else | {ms("alone_p50")} | {ms("alone_p95")} |
| in the pool, behind {found["backlog"]} bulk requests | {ms("behind_p50")} | {ms("behind_p95")} |
| straight to the server, behind the same | {ms("straight_p50")} | |

With the backlog the urgent one's p95 is {ratio:.2f} of what it is without.

| tokens per second, {found["slots"]} at once | |
| --- | ---: |
| through the pool | {found["pool_tokens_per_second"]:.1f} |
| straight to the server | {found["server_tokens_per_second"]:.1f} |
| ratio, median of the rounds | {found["throughput_ratio"]:.3f} |

The way through the pool adds {ms("first_token_p50")} to the first token (p50), and
{ms("first_token_p99")} at p99.
"""


def main() -> None:
    """Measure and print."""
    given = argparse.ArgumentParser(description=__doc__)
    for name, value in {
        "slots": 4,
        "backlog": 200,
        "rounds": 5,
        "urgent": 8,
        "requests": 16,
        "pairs": 200,
    }.items():
        given.add_argument(f"--{name}", type=int, default=value)
    given.add_argument("--out", type=Path)
    given.add_argument("--output", choices=("text", "json"), default="text")
    chosen = given.parse_args()
    load = os.getloadavg()[0]
    with contextlib.suppress(KeyboardInterrupt):
        found = asyncio.run(measure(chosen))
        text = table(found, load)
        if chosen.out is not None:
            chosen.out.write_text(text)
        Console(soft_wrap=True).print(json.dumps(found) if chosen.output == "json" else text)


if __name__ == "__main__":
    main()
