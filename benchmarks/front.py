"""The front of `llmtaskpool local` against its worker asked directly, before and after.

    python benchmarks/front.py [--before COMMIT] [--rounds 5] [--seconds 2] [--output json]

One worker's HTTP server (the real one, over routes that do nothing), two fronts over it: that of
this tree, and that of an older commit. The same requests go to all three ports, one after the
other in each round, over connections that are kept. Medians over the rounds; milliseconds of the
front's own processor time for each request tell its cost from the load generator's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles

import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
BEFORE = "437e906"
"""The last commit whose front was HTTP by hand."""

WORKER = """
import asyncio, json
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from llmtaskpool_worker.http_api.limits import HttpLimits
from llmtaskpool_worker.http_api.server import HttpServer

EVENT = b'data: {"choices": [{"index": 0, "delta": {"content": " token"}}]}\\n\\n'

async def small(request):
    return JSONResponse({"answered": json.loads(await request.body())})

async def body(request):
    size = 0
    async for part in request.stream():
        size += len(part)
    return JSONResponse({"bytes": size})

async def stream(request):
    await request.body()
    async def events():
        for _ in range(50):
            yield EVENT
    return StreamingResponse(events(), media_type="text/event-stream")

async def main():
    app = Starlette(routes=[Route(f"/{f.__name__}", f, methods=["POST"])
                            for f in (small, body, stream)])
    server = HttpServer(app, "127.0.0.1", 0, HttpLimits(), 75.0)
    print(await server.start(), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""

FRONT = """
import asyncio
from llmtaskpool_operator.local.front import Front

async def main():
    front = Front()
    port = await front.start("127.0.0.1", 0)
    front.route("worker-1", "127.0.0.1", {port})
    print(port, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of exchange: its route, its body, and how many connections send it."""

    name: str
    path: str
    body: bytes
    connections: int


KINDS = (
    Kind("small JSON", "/small", json.dumps({"messages": ["x" * 200]}).encode(), 16),
    Kind("SSE, 50 events", "/stream", json.dumps({"stream": True}).encode(), 16),
    Kind("1 MB body", "/body", b"x" * 2**20, 4),
)


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds, and ``processor`` the port's own seconds of processor time for each request."""

    per_second: float
    p50: float
    p99: float
    processor: float


@contextmanager
def listening(program: str, path: str | None = None) -> Iterator[tuple[int, psutil.Process]]:
    """A process that prints its port; ended afterwards."""
    environment = dict(os.environ) | ({"PYTHONPATH": path} if path is not None else {})
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline()), psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


class Asker(asyncio.Protocol):
    """One connection that asks again and again, and checks that each answer is a whole 200."""

    def __init__(self, request: bytes, until: float, took: list[float]) -> None:
        self.ended = asyncio.get_running_loop().create_future()
        self._request = request
        self._until = until
        self._took = took
        self._seen = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first time."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._began = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Ask again when the answer is whole."""
        self._seen += data
        head = self._seen.find(b"\r\n\r\n")
        if head < 0:
            return
        fields = bytes(self._seen[:head]).lower()
        _, found, length = fields.partition(b"\r\ncontent-length:")
        if found:
            if len(self._seen) < head + 4 + int(length.split(b"\r\n", 1)[0]):
                return
        elif not self._seen.endswith(b"\r\n0\r\n\r\n"):
            return
        assert fields.startswith(b"http/1.1 200"), fields
        now = time.perf_counter()
        self._took.append(now - self._began)
        self._seen.clear()
        if now < self._until:
            self._ask()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell ``ended`` how."""
        if not self.ended.done():
            self.ended.set_result(exc)


async def measure(port: int, process: psutil.Process, kind: Kind, seconds: float) -> Measured:
    """Ask as fast as answers come, over ``kind.connections`` connections."""
    request = (
        f"POST {kind.path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer none\r\ncontent-length: {len(kind.body)}\r\n\r\n"
    ).encode() + kind.body
    took: list[float] = []
    loop, began = asyncio.get_running_loop(), time.perf_counter()
    used = sum(process.cpu_times()[:2])
    askers = [Asker(request, began + seconds, took) for _ in range(kind.connections)]
    for asker in askers:
        await loop.create_connection(lambda asker=asker: asker, "127.0.0.1", port)
    for asker in askers:
        if (error := await asker.ended) is not None:
            raise error
    lasted = time.perf_counter() - began
    spent = sum(process.cpu_times()[:2]) - used
    return Measured(len(took) / lasted, median(took), quantiles(took, n=100)[98], spent / len(took))


def older_tree(commit: str, into: str) -> str:
    """The operator's package of a commit, unpacked: a path to import it from."""
    archive = subprocess.run(
        ["git", "archive", commit, "operator"],  # noqa: S607  found on PATH
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    subprocess.run(["tar", "-x", "-C", into], input=archive.stdout, check=True)  # noqa: S607
    return str(Path(into) / "operator")


def middle(all_of: list[Measured]) -> Measured:
    """Each number's median."""
    rows = (asdict(one).values() for one in all_of)
    return Measured(*(median(column) for column in zip(*rows, strict=True)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", default=BEFORE)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--output", choices=["table", "json"], default="table")
    chosen = parser.parse_args()
    measured: dict[tuple[str, str], list[Measured]] = {}
    with ExitStack() as stack:
        into = stack.enter_context(tempfile.TemporaryDirectory())
        worker = stack.enter_context(listening(WORKER))
        program = FRONT.replace("{port}", str(worker[0]))
        ports = {
            "worker": worker,
            "before": stack.enter_context(listening(program, older_tree(chosen.before, into))),
            "after": stack.enter_context(listening(program, str(ROOT / "operator"))),
        }
        for number in range(chosen.rounds + 1):
            for kind in KINDS:
                for name, (port, process) in ports.items():
                    seconds = chosen.seconds if number else 0.3
                    one = asyncio.run(measure(port, process, kind, seconds))
                    if number:  # the first round warms up
                        measured.setdefault((kind.name, name), []).append(one)
    results = {key: middle(values) for key, values in measured.items()}
    if chosen.output == "json":
        print(json.dumps([{"kind": k, "port": p} | asdict(m) for (k, p), m in results.items()]))
        return
    table = Table("exchange", "port", "requests/s", "p50, ms", "p99, ms", "CPU ms/request")
    for (kind_name, port_name), m in results.items():
        times = (f"{value * 1000:.2f}" for value in (m.p50, m.p99, m.processor))
        table.add_row(kind_name, port_name, f"{m.per_second:.0f}", *times)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
