"""A pool in front of a server: the order that it keeps, what it costs, what it learns and survives.

    python benchmarks/upstream.py [--quick] [--part order] [--out FILE] [--output json]

A real llama.cpp server (the wheel xllamacpp) with SmolLM2, and a real worker in front of it. In the
parts that compare, each round measures each way once, so that a busy machine is busy for all.

- Order: an urgent request's wait for its first token, alone, behind a backlog of bulk streams that
  are read (nobody can make way), and behind the same backlog sent straight to the server.
- N: the server's tokens per second at fixed numbers of streams, each kept up; the N that a fresh
  worker has learned within a minute of load.
- Throughput: the same requests through the pool, all at once, and straight to the server, as many
  at once as it is best at.
- First token: through the pool and straight, one request at a time, at a server that answers at
  once (tests/fakes/vllm_stub.py), so that only the way is measured.
- Leaving: clients that go after their first token, and what they leave behind.
- Standing still: SIGSTOP of the server while streams run, and when the worker says so.

The whole takes about eleven minutes, `--quick` about four; a part takes one or two, N seven.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

from rich.console import Console
from upstream_clients import (
    TOKEN,
    Wire,
    asked,
    backlog,
    gauge,
    many,
    readiness,
    stub,
    wait_ready,
    worker,
)
from upstream_page import page

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fakes.llama_server import llama_serving

BULK = {"weight": 0.1, "ignore_eos": True}
URGENT = {"weight": 100.0, "temperature": 0, "ignore_eos": True}
"""So that each has a token: an end at once, or half an emoji, would have none."""
BULK_TOKENS, URGENT_TOKENS, LOAD_TOKENS = 48, 3, 24
ORDER_SLOTS, SLOTS = 4, 16
"""Of the servers for the order, and for N and throughput."""
SWEEP = (1, 2, 4, 6, 8, 12, 16)
LEAST_MARGIN = 0.05
"""One more stream is worth it while it brings so much of what one brings on average."""
GAP_SECONDS = 0.3
SETTLE_SECONDS = 3.0

Found = dict[str, object]


def at(values: Sequence[float], share: float) -> float:
    """The value below which this share of them is."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def urgent_waits(url: str, count: int) -> list[float]:
    """Waits of urgent requests for their first token, one after the other."""
    wire, waits = Wire(url), []
    for _ in range(count):
        waits.append((await wire.ask(asked(URGENT_TOKENS, **URGENT))).first)
        await asyncio.sleep(GAP_SECONDS)
    wire.leave()
    return waits


async def straight_wait(url: str, waiting: int, seconds: float) -> float:
    """One urgent request's wait behind the backlog, straight to the server."""
    async with backlog(url, [asked(BULK_TOKENS, ignore_eos=True) for _ in range(waiting)]):
        began = time.perf_counter()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return (await Wire(url).ask(asked(URGENT_TOKENS))).first
        return time.perf_counter() - began


async def order(chosen: argparse.Namespace) -> Found:
    """How long urgent requests wait."""
    alone: list[float] = []
    behind: list[float] = []
    first: list[float] = []
    with (
        llama_serving(slots=ORDER_SLOTS, context=512 * ORDER_SLOTS) as server,
        worker(server.url, ORDER_SLOTS) as pool,
    ):
        await many(pool, [asked(16, ignore_eos=True) for _ in range(8)], ORDER_SLOTS)
        for _ in range(chosen.rounds):
            alone += await urgent_waits(pool, chosen.urgent)
            bulk = [asked(BULK_TOKENS, **BULK) for _ in range(chosen.backlog)]
            async with backlog(pool, bulk):
                waits = await urgent_waits(pool, chosen.urgent)
            first.append(waits[0])
            behind += waits
        straight = await straight_wait(server.url, chosen.backlog, chosen.straight)
    return {
        "order_slots": ORDER_SLOTS,
        "bulk_tokens": BULK_TOKENS,
        "straight_at_most": chosen.straight,
        "backlog": chosen.backlog,
        "urgent": len(behind),
        "alone_p50": median(alone),
        "alone_p95": at(alone, 0.95),
        "behind_p50": median(behind),
        "behind_p95": at(behind, 0.95),
        "behind_first": max(first),
        "order_ratio": at(behind, 0.95) / at(alone, 0.95),
        "straight": straight,
    }


@asynccontextmanager
async def load(url: str, at_once: int) -> AsyncIterator[list[int]]:
    """So many clients ask all the time; a list with the tokens that came."""
    came = [0]

    async def client() -> None:
        wire = Wire(url)
        try:
            while True:
                async for piece in wire.begin(asked(LOAD_TOKENS, words=8, ignore_eos=True)):
                    came[0] += len(TOKEN.findall(piece))
        finally:
            wire.leave()

    clients = [asyncio.create_task(client()) for _ in range(at_once)]
    try:
        yield came
    finally:
        for one in clients:
            one.cancel()
        for ended in await asyncio.gather(*clients, return_exceptions=True):
            if not isinstance(ended, asyncio.CancelledError):
                raise SystemExit(f"a client failed: {ended!r}")
        await asyncio.sleep(GAP_SECONDS)  # the server lets go of what was left


async def rate(url: str, at_once: int, seconds: float) -> float:
    """Tokens per second with so many clients, once they have settled."""
    async with load(url, at_once) as came:
        await asyncio.sleep(SETTLE_SECONDS)
        began, before = time.perf_counter(), came[0]
        await asyncio.sleep(seconds)
        return (came[0] - before) / (time.perf_counter() - began)


async def limits_under_load(url: str, seconds: float) -> list[int]:
    """N of a pool, each second, while more requests wait all the time than it has places."""
    limits: list[int] = []
    async with load(url, 2 * SLOTS):
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            await asyncio.sleep(1.0)
            limit = await asyncio.to_thread(gauge, url, "llmtaskpool_upstream_limit")
            limits.append(round(limit))
    return limits


def best_of(rates: dict[int, float]) -> int:
    """The last N of a sweep that is worth its streams: each brings LEAST_MARGIN of the mean."""
    sizes = sorted(rates)
    best = sizes[0]
    for before, size in itertools.pairwise(sizes):
        gain = (rates[size] - rates[before]) / (size - before)
        if gain >= LEAST_MARGIN * rates[size] / size:
            best = size
    return best


async def learned(chosen: argparse.Namespace) -> Found:
    """The sweep, what a fresh worker learned, and throughput at it beside the server's best."""
    ratios: list[tuple[float, float]] = []
    with llama_serving(slots=SLOTS, context=512 * SLOTS) as server:
        swept: dict[int, list[float]] = {size: [] for size in SWEEP}
        await rate(server.url, 4, 2.0)
        for number in range(chosen.sweeps):
            for size in SWEEP if number % 2 else reversed(SWEEP):
                swept[size].append(await rate(server.url, size, chosen.seconds))
        rates = {size: median(found) for size, found in swept.items()}
        best, fastest = best_of(rates), max(rates, key=rates.__getitem__)
        with worker(server.url, SLOTS) as pool:
            limits = await limits_under_load(pool, chosen.learning)
            for number in range(chosen.ways):
                ways = [(pool, 2 * SLOTS), (server.url, fastest)]
                each = {}
                for url, clients in ways if number % 2 else reversed(ways):
                    each[url] = await rate(url, clients, chosen.way_seconds)
                ratios.append((each[pool], each[server.url]))
    n = limits[-1]
    near = min(rates, key=lambda size: abs(size - n))
    return {
        "slots": SLOTS,
        "rates": rates,
        "best_n": best,
        "fastest_n": fastest,
        "learned_n": n,
        "learned_on_the_way": limits,
        "learned_rate_over_best": rates[near] / max(rates.values()),
        "pool_tokens_per_second": median([through for through, _ in ratios]),
        "server_tokens_per_second": median([itself for _, itself in ratios]),
        "throughput_ratio": median([through / itself for through, itself in ratios]),
    }


async def first_token(chosen: argparse.Namespace) -> Found:
    """What the way through the pool adds to the first token."""
    ways: dict[str, Wire] = {}
    with stub(0.001) as (url, _), worker(url, 8) as pool:
        named = {"model": "stub/letters", "stream_options": {"include_usage": True}}
        bodies = {pool: {}, url: named}
        seen: dict[str, list[float]] = {pool: [], url: []}
        for way in bodies:
            ways[way] = Wire(way)
            for _ in range(20):
                await ways[way].ask(asked(2) | bodies[way])
        for number in range(chosen.pairs):
            for way in (pool, url) if number % 2 else (url, pool):
                seen[way].append((await ways[way].ask(asked(2) | bodies[way])).first)
    gaps = [through - itself for through, itself in zip(seen[pool], seen[url], strict=True)]
    return {
        "first_token_p50": median(gaps),
        "first_token_p99": at(gaps, 0.99),
        "first_pool_p50": median(seen[pool]),
        "first_pool_p99": at(seen[pool], 0.99),
        "first_straight_p50": median(seen[url]),
        "first_straight_p99": at(seen[url], 0.99),
    }


async def leaving(chosen: argparse.Namespace) -> Found:
    """Clients that leave after their first token."""
    left = chosen.leavers
    with stub(0.005) as (url, _), worker(url, 64) as pool:

        async def client() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                wire = Wire(pool)
                async for _ in wire.begin(asked(4000, words=4, ignore_eos=True)):
                    break
                wire.leave()

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(64)))
        took, until = time.perf_counter() - began, time.perf_counter() + 30
        while time.perf_counter() < until:
            held = gauge(url, "vllm:num_requests_running") + gauge(url, "vllm:num_requests_waiting")
            ours = gauge(pool, 'llmtaskpool_upstream_requests{model="chat",state="in_flight"}')
            slots = gauge(pool, 'llmtaskpool_tasks_active{lane="compute"}')
            if not held + ours + slots:
                break
            await asyncio.sleep(0.05)
        rest = time.perf_counter() - began - took
    return {
        "leavers": chosen.leavers,
        "leavers_per_second": chosen.leavers / took,
        "left_at_server": held,
        "left_in_flight": ours,
        "left_in_slots": slots,
        "rest_seconds": rest,
    }


async def standing_still(_: argparse.Namespace) -> Found:
    """SIGSTOP of the server under load: when it is told, and when all is well again."""
    with stub(0.02) as (url, pid), worker(url, 8) as pool:
        bodies = [asked(4000, words=4, ignore_eos=True) for _ in range(4)]
        async with backlog(pool, bodies):
            os.kill(pid, signal.SIGSTOP)
            began = time.perf_counter()
            try:
                while (told := readiness(pool)) is None:
                    if time.perf_counter() - began > 90:
                        raise SystemExit("a server that stands still was never told")
                    await asyncio.sleep(0.1)
                noticed = time.perf_counter() - began
            finally:
                os.kill(pid, signal.SIGCONT)
            again = wait_ready(pool)
    return {"stop_noticed": noticed, "stop_told": told, "ready_again": again}


PARTS: dict[str, Callable[[argparse.Namespace], Awaitable[Found]]] = {
    "order": order,
    "n": learned,
    "first": first_token,
    "leaving": leaving,
    "still": standing_still,
}


async def measure(chosen: argparse.Namespace) -> Found:
    """All numbers, by their names; seconds."""
    found: Found = {"load": os.getloadavg()[0], "cores": os.cpu_count()}
    for name in chosen.part or [name for name in PARTS if name not in chosen.without]:
        began = time.perf_counter()
        found |= await PARTS[name](chosen)
        sys.stderr.write(f"{name}: {time.perf_counter() - began:.1f} s\n")
    return found


def main() -> None:
    """Measure and print."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--quick", action="store_true")
    given.add_argument("--part", action="append", choices=PARTS, help="this alone, as JSON")
    given.add_argument("--out", type=Path)
    given.add_argument("--output", choices=("text", "json"), default="text")
    chosen = given.parse_args()
    full = {
        "backlog": 200,
        "rounds": 5,
        "urgent": 10,
        "sweeps": 2,
        "learning": 55.0,
        "seconds": 8.0,
        "ways": 4,
        "way_seconds": 20.0,
        "pairs": 1000,
        "leavers": 10_000,
        "straight": 30.0,
        "without": (),
    }
    quick = full | {
        "rounds": 2,
        "ways": 2,
        "way_seconds": 5.0,
        "urgent": 5,
        "sweeps": 1,
        "seconds": 5.0,
        "learning": 50.0,
        "pairs": 200,
        "leavers": 1000,
        "straight": 5.0,
        "without": ("still",),
    }
    for name, value in (quick if chosen.quick else full).items():
        setattr(chosen, name, value)
    with contextlib.suppress(KeyboardInterrupt):
        found = asyncio.run(measure(chosen))
        if chosen.output == "json" or chosen.part:
            Console(soft_wrap=True).print(json.dumps(found))
            return
        text = page(found)
        if chosen.out is not None:
            chosen.out.write_text(text)
        Console(soft_wrap=True).print(text)


if __name__ == "__main__":
    main()
