"""What a request costs beside its engine's step: the fourth table of `benchmarks/engines.md`.

One short text at a time, with nothing else to do, asked for in three ways in turn: of an engine's
process itself, over its socket; of a server with nothing but what it takes (engines_bare.py); and
of a worker. The client is a socket and nothing more, as httpx would take longer than what is
measured. Each way has an engine of its own, and the steps of the others empty the processor's
caches before each request, as a worker's own engine does.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import tokenizers
import uvloop
from llmtaskpool_worker.engines.process import EngineProcess
from llmtaskpool_worker.engines.protocol import AdmitEmbedding, ModelSpec, Ready, Vector
from processes import free_port, started

TEXT = "The quick brown fox jumps over the lazy dog"
ROUNDS, WARM_UP = 300, 30
HERE = Path(__file__).parent
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


class Client:
    """One connection that asks the same again and again."""

    def __init__(self, url: str, model: str) -> None:
        at = urlsplit(url)
        body = json.dumps({"model": model, "input": TEXT}).encode()
        head = (
            f"POST /v1/embeddings HTTP/1.1\r\nhost: {at.netloc}\r\n"
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
def bare(folder: str, threads: int) -> Iterator[str]:
    """The address of a bare server, ready."""
    port = free_port()
    with started(str(HERE / "engines_bare.py"), str(port), folder, str(threads)) as process:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None, "the bare server has ended"
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"


async def _rounds(worker_url: str, bare_url: str, folder: str, threads: int) -> list[list[float]]:
    engine = EngineProcess(
        ModelSpec("alone", folder, "embed", {"torch_threads": threads, "device": "cpu"})
    )
    await engine.start()
    events = engine.events()
    async for event in events:
        if isinstance(event, Ready):
            break
    tokenizer = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokens = tokenizer.encode(TEXT).ids
    ours, theirs = Client(worker_url, "minilm"), Client(bare_url, "bare")
    vectors = [json.loads(one.ask())["data"][0]["embedding"] for one in (ours, theirs)]
    assert max(abs(a - b) for a, b in zip(*vectors, strict=True)) < 1e-6
    taken: list[list[float]] = [[], [], []]
    for number in range(WARM_UP + ROUNDS):
        began = time.perf_counter()
        engine.send(AdmitEmbedding(number, tokens))
        async for event in events:
            if isinstance(event, Vector):
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


def overhead_rows(worker_url: str, folder: str, threads: int) -> list[str]:
    """The rows of the table: p50 and p90 in milliseconds, and what is beyond the engine's p50."""
    with bare(folder, threads) as bare_url:
        taken = uvloop.run(_rounds(worker_url, bare_url, folder, threads))
    names = ("the engine's process alone", "Starlette and nothing else", "a worker")
    alone, rows = median(taken[0]), []
    for name, times in zip(names, taken, strict=True):
        p90 = sorted(times)[int(0.9 * len(times))]
        beyond = "" if times is taken[0] else f"{median(times) - alone:.2f}"
        rows.append(f"| {name} | {median(times):.2f} | {p90:.2f} | {beyond} |")
    return rows
