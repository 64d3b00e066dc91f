"""The order of the queue under overload: how long the urgent and the lowest wait by each rule.

    python benchmarks/order.py [--out benchmarks/order.md] [--output json]

The product's own TaskQueue in virtual time, over N identical threads. Arrivals and lengths are a
real trace's (Azure 2023, conversations), sped up to 1.3 of what the threads can do and then slowed
down to 0.6; weights 20, 1 and 1/4 for 15, 60 and 25 % of the requests. And a backlog: 5,000 bulk
tasks at once, with chats at a tenth of the threads behind them. Every rule sees the same arrivals.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import heapq
import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path

from llmtaskpool_worker.scheduling.aged_share import DEFAULT_AGED_SHARE
from llmtaskpool_worker.scheduling.task_queue import TaskQueue, Waiting
from rich.console import Console
from rich.progress import Progress

TRACE = Path(__file__).parents[2] / "shared/traces/azure_conv_2023.csv.gz"
AGEING = 300.0
WEIGHTS = ((20.0, 0.15), (1.0, 0.6), (0.25, 0.25))
SECONDS_PER_PROMPT_TOKEN, SECONDS_PER_OUTPUT_TOKEN = 0.0002, 0.03
OVERLOAD, AFTERWARDS = 1.3, 0.6
SEED = 3


@dataclass(frozen=True, slots=True)
class Job:
    """One task: when it comes, what it weighs, what it takes, and whose T it shares."""

    arrival: float
    weight: float
    seconds: float
    cost_class: Hashable


def from_trace(path: Path, overload_seconds: float, threads: int) -> list[Job]:
    """So long at OVERLOAD, and as long again at AFTERWARDS."""
    with gzip.open(path, "rt") as lines:
        rows = [
            (float(at), int(float(p)), int(float(o))) for at, p, o in list(csv.reader(lines))[1:]
        ]
    rows = [row for row in rows if row[2] > 0]
    works = [SECONDS_PER_PROMPT_TOKEN * p + SECONDS_PER_OUTPUT_TOKEN * o for _, p, o in rows]
    natural = sum(works) / (rows[-1][0] - rows[0][0])
    gaps = [max(0.0, later[0] - before[0]) for before, later in pairwise(rows)] + [0.0]
    dice, at, jobs = random.Random(SEED), 0.0, []
    for (_, prompt, output), work, gap in cycle(list(zip(rows, works, gaps, strict=True))):
        if at >= 2 * overload_seconds:
            return jobs
        wanted = OVERLOAD if at < overload_seconds else AFTERWARDS
        at += gap * natural / (wanted * threads)
        (weight,) = dice.choices([w for w, _ in WEIGHTS], [share for _, share in WEIGHTS])
        size = (round(2 * math.log2(max(1, prompt))), math.ceil(math.log2(max(1, output))) // 2)
        jobs.append(Job(at, weight, work, size))
    raise AssertionError


def backlog(threads: int) -> list[Job]:
    """5,000 bulk tasks of weight 0.1 at once, and chats at a tenth of the threads for an hour."""
    dice = random.Random(SEED)
    jobs = [Job(0.0, 0.1, 5.8 * dice.expovariate(1.0), "bulk") for _ in range(5000)]
    at, chat = 0.0, 4.0
    while at < 3600:
        at += dice.expovariate(0.1 * threads / chat)
        jobs.append(Job(at, 1.0, chat * dice.expovariate(1.0), "chat"))
    return jobs


class Line:
    """TaskQueue as the simulation needs it."""

    def __init__(self, load: Callable[[Hashable], float], ageing: float, share: float) -> None:
        self._queue = TaskQueue(
            load=load, max_tasks=1 << 20, max_bytes=1 << 40, ageing_seconds=ageing,
            aged_share=share,
        )  # fmt: skip

    def push(self, number: int, job: Job) -> None:
        """It waits from now on."""
        self._queue.push(Waiting(str(number), "m", job.cost_class, job.weight, job.arrival))

    def take(self, now: float) -> int | None:
        """Who goes next."""
        item = self._queue.take(now, lambda _: True)
        return None if item is None else int(item.id)


class FairLine:
    """Start-time fair queueing between (cost class, weight), shares by weight, to compare with.

    A flow's next task has the start tag max(v, the flow's last finish tag) and the finish tag
    start + T / W; the least start tag goes next, and v is its (Goyal, Vin and Cheng, SIGCOMM 1996).
    """

    def __init__(self, load: Callable[[Hashable], float]) -> None:
        self._load = load
        self._flows: dict[tuple[Hashable, float], list[int]] = defaultdict(list)
        self._heads: list[tuple[float, int, tuple[Hashable, float]]] = []
        self._finish: dict[tuple[Hashable, float], float] = defaultdict(float)
        self._virtual = 0.0

    def push(self, number: int, job: Job) -> None:
        """It waits from now on."""
        flow = (job.cost_class, job.weight)
        self._flows[flow].append(number)
        if len(self._flows[flow]) == 1:
            self._offer(flow)

    def take(self, now: float) -> int | None:  # noqa: ARG002  its time is a virtual one
        """Who goes next."""
        if not self._heads:
            return None
        self._virtual, number, flow = heapq.heappop(self._heads)
        self._finish[flow] = self._virtual + self._load(flow[0]) / flow[1]
        self._flows[flow].pop(0)
        if self._flows[flow]:
            self._offer(flow)
        return number

    def _offer(self, flow: tuple[Hashable, float]) -> None:
        start = max(self._virtual, self._finish[flow])
        heapq.heappush(self._heads, (start, self._flows[flow][0], flow))


def waits_of(jobs: list[Job], threads: int, line: Line | FairLine) -> list[float]:
    """The seconds that each job waits."""
    waits = [math.inf] * len(jobs)
    ends: list[float] = []
    coming, now = 0, 0.0
    while coming < len(jobs) or ends:
        arrival = jobs[coming].arrival if coming < len(jobs) else math.inf
        if ends and ends[0] <= arrival:
            now = heapq.heappop(ends)
        else:
            now = arrival
            line.push(coming, jobs[coming])
            coming += 1
        while len(ends) < threads and (number := line.take(now)) is not None:
            waits[number] = now - jobs[number].arrival
            heapq.heappush(ends, now + jobs[number].seconds)
    return waits


@dataclass(frozen=True, slots=True)
class Row:
    """What a rule came to; seconds."""

    rule: str
    over_first_come: float
    over_smith: float
    urgent_p95: float
    lowest_p99: float
    longest: float


def row(rule: str, jobs: list[Job], waits: list[float], means: dict[str, float]) -> Row:
    """``means``: weighted mean completions so far, by rule; those of the first two are compared."""
    weight = sum(job.weight for job in jobs)
    total = sum(j.weight * (w + j.seconds) for j, w in zip(jobs, waits, strict=True))
    means[rule] = total / weight
    by_weight: dict[float, list[float]] = defaultdict(list)
    for job, wait in zip(jobs, waits, strict=True):
        by_weight[job.weight].append(wait)
    return Row(
        rule,
        means[rule] / means["first come, first served"],
        means[rule] / means.get("W / T alone", math.nan),
        _quantile(by_weight[max(by_weight)], 0.95),
        _quantile(by_weight[min(by_weight)], 0.99),
        max(waits),
    )


def _quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def rules(load: Callable[[Hashable], float]) -> dict[str, Line | FairLine]:
    """A fresh line for each; the first two are what the others are measured by."""
    shares = (DEFAULT_AGED_SHARE, 0.1, 0.2)
    return {
        "first come, first served": Line(load, 0.0, 1.0),
        "W / T alone": Line(load, AGEING, 0.0),
        "the aged first (before)": Line(load, AGEING, 1.0),
        **{
            f"**share {s:g} (default)**" if s == DEFAULT_AGED_SHARE else f"share {s:g}": Line(
                load, AGEING, s
            )
            for s in shares
        },
        "start-time fair queueing": FairLine(load),
    }


def measured(trace: Path) -> dict[str, list[Row]]:
    """All scenes, all rules."""
    scenes = {
        "overload of 1.3 for 15 minutes, 32 threads": (from_trace(trace, 900, 32), 32),
        "overload of 1.3 for 40 minutes, 32 threads": (from_trace(trace, 2400, 32), 32),
        "5,000 bulk tasks at once, chats 10 % of 8 threads": (backlog(8), 8),
    }
    found: dict[str, list[Row]] = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for scene, (jobs, threads) in progress.track(list(scenes.items())):
            jobs.sort(key=lambda job: job.arrival)
            seconds: dict[Hashable, list[float]] = defaultdict(list)
            for job in jobs:
                seconds[job.cost_class].append(job.seconds)
            loads = {size: sum(all_) / len(all_) for size, all_ in seconds.items()}
            means: dict[str, float] = {}
            found[scene] = [
                row(rule, jobs, waits_of(jobs, threads, line), means)
                for rule, line in rules(loads.__getitem__).items()
            ]
    return found


def page(found: dict[str, list[Row]]) -> str:
    """As Markdown."""
    lines = [
        "# The order of the queue under overload",
        "",
        "`python benchmarks/order.py`: virtual time, the product's own queue; ageing bound 300 s.",
        "Weighted mean completion as a ratio; waits in seconds. Urgent is the largest weight (20;",
        "a chat's 1), the lowest the smallest (1/4; bulk's 0.1).",
    ]
    for scene, rows in found.items():
        lines += [
            "",
            f"## {scene[0].upper()}{scene[1:]}",
            "",
            "| rule | over first come | over W / T alone | urgent p95 | lowest p99 | longest |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for one in rows:
            smith = "" if math.isnan(one.over_smith) else f"{one.over_smith:.2f}"
            lines.append(
                f"| {one.rule} | {one.over_first_come:.2f} | {smith} | {one.urgent_p95:,.1f} "
                f"| {one.lowest_p99:,.0f} | {one.longest:,.0f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and tell."""
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("--trace", type=Path, default=TRACE)
    asked.add_argument("--out", type=Path)
    asked.add_argument("--output", choices=("text", "json"), default="text")
    options = asked.parse_args()
    found = measured(options.trace)
    if options.out is not None:
        options.out.write_text(page(found))
    if options.output == "json":
        told = {
            s: [{n: getattr(r, n) for n in Row.__slots__} for r in rows]
            for s, rows in found.items()
        }
        print(json.dumps(told))
    else:
        print(page(found))


if __name__ == "__main__":
    main()
