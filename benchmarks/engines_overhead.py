"""What a request costs beside its engine's step: the fourth table of `benchmarks/engines.md`.

One at a time, with nothing else to do, asked for in three ways in turn: of an engine's process
itself, over its socket; of a server with nothing but what it takes (engines_bare.py); and of a
worker. The client is a socket and nothing more, as httpx would take longer than what is measured.
Each way has an engine of its own.

Two models: a scorer of 30 numbers, whose step is short, and MiniLM, whose isn't. A process with
nothing to do for as long as a step of MiniLM begins with cold caches on a machine that others use
too, so the same calls take longer then: the short step tells what they take, the long one what
becomes of it.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import tokenizers
import torch
import uvloop
from llmtaskpool_worker.engines.process import EngineProcess
from llmtaskpool_worker.engines.protocol import (
    AdmitEmbedding,
    AdmitInputs,
    ModelSpec,
    Ready,
    Tensor,
    Values,
    Vector,
)
from processes import free_port, started
from safetensors.torch import save_file

TEXT = "The quick brown fox jumps over the lazy dog"
ROW = [number / 30 for number in range(30)]
ROUNDS, WARM_UP = 300, 30
HERE = Path(__file__).parent
MODEL = "model"
"""What it is called in the worker."""
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


@dataclass(frozen=True, slots=True)
class Kind:
    """A request, as a server and as an engine are asked for it, and the numbers of an answer."""

    name: str
    task: str
    folder: Path
    path: str
    body: dict[str, object]
    message: Callable[[int], AdmitEmbedding | AdmitInputs]
    numbers: Callable[[dict[str, list[dict[str, list[float]]]]], list[float]]


def table(folder: Path) -> Kind:
    """One row of 30 numbers for a scorer with a hidden layer of 16, made there."""
    folder.mkdir()
    spec = {"module": "mlp", "sizes": [len(ROW), 16, 1], "output": "sigmoid"}
    (folder / "model.json").write_text(json.dumps(spec))
    layers = {0: torch.nn.Linear(len(ROW), 16), 1: torch.nn.Linear(16, 1)}
    weights = {
        f"tower.layers.{place}.{name}": value
        for place, layer in layers.items()
        for name, value in layer.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors")
    given = {"name": "x", "datatype": "FP32", "shape": [1, len(ROW)]}
    row = Tensor(**given, data=struct.pack(f"<{len(ROW)}f", *ROW))  # type: ignore[arg-type]
    return Kind(
        "a row of a table",
        "tensor",
        folder,
        f"/v2/models/{MODEL}/infer",
        {"inputs": [given | {"data": ROW}]},
        lambda number: AdmitInputs(number, tensors=[row]),
        lambda answer: answer["outputs"][0]["data"],
    )


def text(folder: Path) -> Kind:
    """A text for MiniLM, which is there."""
    tokenizer = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokens = tokenizer.encode(TEXT).ids
    return Kind(
        "a text for MiniLM",
        "embed",
        folder,
        "/v1/embeddings",
        {"model": MODEL, "input": TEXT},
        lambda number: AdmitEmbedding(number, tokens),
        lambda answer: answer["data"][0]["embedding"],
    )


class Client:
    """One connection that asks the same again and again."""

    def __init__(self, url: str, kind: Kind) -> None:
        at = urlsplit(url)
        body = json.dumps(kind.body).encode()
        head = (
            f"POST {kind.path} HTTP/1.1\r\nhost: {at.netloc}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._request = head.encode() + body
        self._socket = socket.create_connection((at.hostname, at.port))

    def ask(self) -> bytes:
        """The body of the answer."""
        self._socket.sendall(self._request)
        got = self._socket.recv(1 << 18)
        while (ends := got.find(b"\r\n\r\n")) < 0:
            got += self._socket.recv(1 << 18)
        length = _LENGTH.search(got)
        assert got.startswith(b"HTTP/1.1 200"), got[:200]
        assert length is not None
        while len(got) < ends + 4 + int(length[1]):
            got += self._socket.recv(1 << 18)
        return got[ends + 4 :]


@contextmanager
def bare(kind: Kind, threads: int) -> Iterator[str]:
    """The address of a bare server, ready."""
    port = free_port()
    options = str(port), kind.task, str(kind.folder), str(threads)
    with started(str(HERE / "engines_bare.py"), *options) as process:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None, "the bare server has ended"
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"


async def _rounds(kind: Kind, worker_url: str, bare_url: str, threads: int) -> list[list[float]]:
    options = {"torch_threads": threads, "device": "cpu"}
    engine = EngineProcess(ModelSpec("alone", str(kind.folder), kind.task, options))
    await engine.start()
    events = engine.events()
    async for event in events:
        if isinstance(event, Ready):
            break
    ours, theirs = Client(worker_url, kind), Client(bare_url, kind)
    numbers = [kind.numbers(json.loads(one.ask())) for one in (ours, theirs)]
    assert max(abs(a - b) for a, b in zip(*numbers, strict=True)) < 1e-6
    taken: list[list[float]] = [[], [], []]
    for number in range(WARM_UP + ROUNDS):
        began = time.perf_counter()
        engine.send(kind.message(number))
        async for event in events:
            if isinstance(event, Vector | Values):
                break
        at = [time.perf_counter()]
        for client in (theirs, ours):
            client.ask()
            at.append(time.perf_counter())
        if number >= WARM_UP:
            for all_of_one, before, after in zip(taken, [began, *at], at, strict=False):
                all_of_one.append(1000 * (after - before))
    await engine.stop(5.0)
    return taken


def overhead_rows(kind: Kind, worker_url: str, threads: int) -> list[str]:
    """A kind's rows: p50 and p90 in milliseconds, and what is beyond the engine's p50."""
    with bare(kind, threads) as bare_url:
        taken = uvloop.run(_rounds(kind, worker_url, bare_url, threads))
    names = ("the engine's process alone", "Starlette and nothing else", "a worker")
    alone, rows = median(taken[0]), []
    for name, times in zip(names, taken, strict=True):
        p90 = sorted(times)[int(0.9 * len(times))]
        beyond = "" if times is taken[0] else f"{median(times) - alone:.2f}"
        rows.append(f"| {kind.name}: {name} | {median(times):.2f} | {p90:.2f} | {beyond} |")
    return rows
