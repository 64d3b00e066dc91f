"""A worker's HTTP servers on free ports, in a thread of their own, over any TaskPool."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager
from inspect import isawaitable
from typing import Any

import httpx
from fakes.fake_pool import FakePool
from fakes.letters_engine import LetterTokenizer
from fakes.plain_http import NO_TLS
from llmtaskpool_worker.assembly.keys import keys_of
from llmtaskpool_worker.assembly.settings import Settings
from llmtaskpool_worker.assembly.worker import build
from llmtaskpool_worker.engines.protocol import Engine
from llmtaskpool_worker.http_api.catalog import Catalog, Model
from llmtaskpool_worker.http_api.metrics import Metrics
from llmtaskpool_worker.http_api.server import Clocks, HttpServer, control_app, data_app
from llmtaskpool_worker.kinds.registry import Kinds
from llmtaskpool_worker.scheduling.task import EncodedRow

DEADLINE_SECONDS = 120.0
KEY = "data-key"
TOKEN = "control-token"


END = 0x10FFFE
"""A special token: answers leave it out."""


class LetterCodec(LetterTokenizer):
    """One token per letter: its code point."""

    def encode(self, text):
        return [ord(letter) for letter in text]

    def encode_document(self, text):
        return self.encode(text)

    def encode_rows(self, texts, *, spans=False):
        return [self._row(text) for text in texts]

    def _row(self, text):
        """A pair has a 0 between its texts."""
        first, second = ("", text) if isinstance(text, str) else text
        before = [*self.encode(first), 0] if first else []
        places = [(0, 0)] * len(before) + [(place, place + 1) for place in range(len(second))]
        tokens = before + self.encode(second)
        return EncodedRow(tokens, len(before), len(tokens), places)

    def complete(self, tokens):
        return list(tokens)

    def encode_chat(self, messages, tools=()):
        return self.encode("".join(f"{m['role'][0]}:{m['content']}\n" for m in messages))

    def token_bytes(self, token):
        return chr(token).encode("utf-8", "replace")

    def reads_tools(self):
        return True

    def is_in_text(self, token):
        return token != END


TABLE = {
    "platform": "llmtaskpool",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 1]}],
}
ONE_PASS_MODELS = {"pairs": "rerank", "moods": "classify", "names": "tag", "reader": "answer"}


def models() -> list[Model]:
    codec = LetterCodec()
    return [
        Model("echo", "generate", 1, codec, 256, 0x110000, longest_token=16),
        Model("vectors", "embed", 1, codec, 256, 0x110000, dimensions=3, longest_token=16),
        Model("scorer", "tensor", 1, about=TABLE),
        Model("photos", "classify", 1, about={"modality": "image", "labels": ["calm", "angry"]}),
        Model("boxes", "detect", 1, about={"modality": "image", "labels": ["calm", "angry"]}),
        *(
            Model(name, task, 1, codec, 256, 0x110000, longest_token=16)
            for name, task in ONE_PASS_MODELS.items()
        ),
    ]


def wait_until(true: Callable[[], bool], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Return once ``true()``; fail when that takes longer than ``seconds``."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.005)


class Rig:
    """Two listening servers and the pool behind them."""

    def __init__(self, loop, pool, data_port, control_port):
        self.loop = loop
        self.pool = pool
        self.port = data_port
        self.control_port = control_port
        self.url = f"http://127.0.0.1:{data_port}"
        self.control_url = f"http://127.0.0.1:{control_port}"

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function, or a coroutine's, in the servers' loop and return what it returns."""

        async def run():
            answer = function(*arguments)
            return await answer if isawaitable(answer) else answer

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(DEADLINE_SECONDS)

    def client(self, **options) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=DEADLINE_SECONDS, verify=NO_TLS, **options)

    def post(self, path: str, body: Any = None, **options) -> httpx.Response:
        with self.client() as client:
            return client.post(path, json=body, **options)

    def get(self, path: str, **options) -> httpx.Response:
        with self.client() as client:
            return client.get(path, **options)

    def control(self, method: str, path: str, **options) -> httpx.Response:
        with httpx.Client(
            base_url=self.control_url, timeout=DEADLINE_SECONDS, verify=NO_TLS
        ) as client:
            return client.request(method, path, **options)

    def connect(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_SECONDS)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def raw(self, request: bytes) -> tuple[int, dict[str, str], Any]:
        """Send bytes as they are; status, headers and the JSON body of the answer."""
        with closing(self.connect()) as made:
            made.sendall(request)
            return read_answer(made)

    def held(self) -> int:
        """Tasks that wait or run."""
        lanes = self.call(self.pool.state).lanes.values()
        return sum(lane.active + lane.queued for lane in lanes)


def read_answer(made: socket.socket) -> tuple[int, dict[str, str], Any]:
    """One answer with a content-length from a socket."""
    stream = made.makefile("rb")
    status = int(stream.readline().split()[1])
    headers = {}
    while line := stream.readline().strip():
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    body = stream.read(int(headers["content-length"]))
    return status, headers, json.loads(body)


def request_bytes(path: str, body: Any, *, headers: str = "") -> bytes:
    """A POST with a JSON body, as bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"{headers}content-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


@contextmanager
def serving(make_pool=FakePool, served=None, **chosen):
    """A Rig over ``make_pool(clock)`` with the models ``served``; ``chosen`` are settings."""
    settings = Settings(port=0, control_port=0, **chosen)
    clocks = Clocks(time.monotonic, time.time)

    @asynccontextmanager
    async def servers():
        pool = make_pool(clocks.monotonic)
        catalog = Catalog(models() if served is None else served)
        metrics = Metrics(pool.state)
        keys, tokens = keys_of(settings, clocks.monotonic)
        limits, keep_alive = settings.http_limits(), settings.keep_alive_seconds
        beat = settings.heartbeat_seconds
        app = data_app(
            pool,
            catalog,
            metrics,
            keys,
            limits,
            clocks,
            heartbeat_seconds=beat,
            cors_origins=settings.cors_origins,
        )
        data = HttpServer(app, settings.host, 0, limits, keep_alive)
        app = control_app(pool, tokens, limits)
        control = HttpServer(app, settings.control_host, 0, limits, keep_alive)
        ports = await data.start(), await control.start()
        yield Rig(asyncio.get_running_loop(), pool, *ports)
        await asyncio.gather(data.stop(), control.stop())

    with _in_a_thread(servers) as rig:
        yield rig


@contextmanager
def serving_engines(*engines: Engine, codec: LetterCodec | None = None, load_codec=None, **chosen):
    """A Rig over the real Dispatcher with these engines, wired as the worker wires its own."""
    by_name = {engine.spec.name: engine for engine in engines}
    texts = tuple(
        f"{e.spec.name}={e.spec.source},task={e.spec.task}"
        + "".join(f",alias={alias}" for alias in e.spec.aliases)
        + "".join(f",{name}={value}" for name, value in e.spec.options.items())
        for e in engines
    )
    settings = Settings(port=0, control_port=0, models=texts, **chosen)

    @asynccontextmanager
    async def servers():
        worker = build(
            settings,
            make_engine=lambda spec: by_name[spec.name],
            load_codec=load_codec or (lambda _: codec or LetterCodec()),
            clocks=Clocks(time.monotonic, time.time),
            kinds=Kinds(),
            announce=lambda _: None,
        )
        ports = await worker.data.start(), await worker.control.start()
        await worker.pool.start()
        worker.batches.start()
        yield Rig(asyncio.get_running_loop(), worker.pool, *ports)
        await worker.batches.stop(0.0)
        await worker.pool.stop(0.0)
        await asyncio.gather(worker.data.stop(), worker.control.stop())

    with _in_a_thread(servers) as rig:
        wait_until(lambda: rig.get("/readyz").status_code == 200, "the worker is ready")
        yield rig


@contextmanager
def _in_a_thread(servers: Callable[[], AbstractAsyncContextManager[Rig]]):
    started: list[Rig | BaseException] = []
    ready = threading.Event()
    stop: list[asyncio.Event] = []

    async def main():
        stop.append(asyncio.Event())
        async with servers() as rig:
            started.append(rig)
            ready.set()
            await stop[0].wait()

    def run():
        try:
            asyncio.run(main())
        except BaseException as error:
            started.append(error)
            ready.set()
            raise

    thread = threading.Thread(target=run, name="http-rig", daemon=True)
    thread.start()
    assert ready.wait(DEADLINE_SECONDS), "the servers did not start"
    rig = started[0]
    if isinstance(rig, BaseException):
        raise rig
    try:
        yield rig
    finally:
        rig.loop.call_soon_threadsafe(stop[0].set)
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive(), "the servers did not stop"
