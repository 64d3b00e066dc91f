"""Files, fetches and tokenizing each have threads of their own."""

from __future__ import annotations

import asyncio
import base64
import http.server
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from llmtaskpool_worker.http_api.catalog import BIG_TEXT, Model
from llmtaskpool_worker.kinds.content import OBJECT_BYTES
from llmtaskpool_worker.kinds.io import register_io_kinds
from llmtaskpool_worker.kinds.registry import CallContext, HandlerError, Kinds
from llmtaskpool_worker.kinds.threads import PIECE_BYTES, Threads


def io_kinds(folder: Path | None, *hosts: str) -> Kinds:
    kinds = Kinds()
    register_io_kinds(kinds, data_dir=folder, fetch_hosts=hosts)
    return kinds


def call(kinds: Kinds, name: str, arguments: dict):
    kind = kinds.by_name[name]
    assert kind.check is not None
    kind.check(arguments)
    return kind.handler(arguments, CallContext("t", 0.0))


class Letters:
    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


@contextmanager
def a_full_default_executor() -> Iterator[None]:
    """As handlers that wait in asyncio.to_thread fill it."""
    gate = threading.Event()
    loop = asyncio.get_running_loop()
    for _ in range(64):
        loop.run_in_executor(None, gate.wait, 30)
    try:
        yield
    finally:
        gate.set()


def test_tokenizing_and_files_do_not_wait_for_the_threads_of_handlers(tmp_path: Path) -> None:
    async def story() -> None:
        model = Model("letters", "generate", 0, codec=Letters(), context_length=1 << 20)
        kinds = io_kinds(tmp_path)
        with a_full_default_executor():
            async with asyncio.timeout(10):
                long = "x" * (BIG_TEXT + 1)
                assert len(await model.encode(long, "prompt")) == len(long)
                await call(kinds, "io.write", {"name": "a", "content": "b"})
                assert (await call(kinds, "io.read", {"name": "a"}))["content"] == "b"

    asyncio.run(story())


def test_who_is_cancelled_while_its_thread_runs_ends_with_the_thread() -> None:
    async def story() -> None:
        threads, gate, began = Threads(1, "one"), threading.Event(), threading.Event()

        def work() -> None:
            began.set()
            gate.wait(30)

        running = asyncio.create_task(threads.run(work))
        waiting = asyncio.create_task(threads.run(began.clear))
        await asyncio.sleep(0)
        assert began.wait(10)
        await asyncio.sleep(0)
        running.cancel()
        waiting.cancel()
        await asyncio.sleep(0.05)
        assert not running.done()
        assert waiting.cancelled(), "what has not begun need not be waited for"
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert began.is_set(), "and it is not begun"

    asyncio.run(asyncio.wait_for(story(), 30))


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("set-cookie", "who=me")
        self.send_header("x-sent", self.headers.get("cookie", ""))
        self.end_headers()
        self.wfile.write(self.headers.get("cookie", "none").encode())

    def log_message(self, *_: object) -> None:
        pass


def test_whom_tls_trusts_is_read_once_and_off_the_loop_and_no_cookie_is_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[threading.Thread] = []
    real = ssl.create_default_context

    def counted(*args, **kwargs):
        made.append(threading.current_thread())
        return real(*args, **kwargs)

    monkeypatch.setattr(ssl, "create_default_context", counted)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    kinds = io_kinds(None, "127.0.0.1")

    async def story() -> list[dict]:
        url = f"http://127.0.0.1:{server.server_port}/"
        first = await call(kinds, "io.fetch", {"url": url})
        return [first, await call(kinds, "io.fetch", {"url": url})]

    try:
        answers = asyncio.run(asyncio.wait_for(story(), 30))
    finally:
        server.shutdown()
        server.server_close()
        serving.join()
    assert [answer["content"] for answer in answers] == ["none", "none"]
    assert len(made) == 1
    assert made[0] is not threading.main_thread()


@pytest.mark.parametrize("encoding", ["text", "base64"])
def test_an_object_of_many_pieces_comes_back_as_it_was(tmp_path: Path, encoding: str) -> None:
    raw = ("aж€😀" * (PIECE_BYTES // 3)).encode()
    (tmp_path / "big").write_bytes(raw)
    kinds = io_kinds(tmp_path)
    told = asyncio.run(call(kinds, "io.read", {"name": "big", "encoding": encoding}))
    assert told["content"] == (
        raw.decode() if encoding == "text" else base64.b64encode(raw).decode()
    )
    written = {"name": "copy", "encoding": encoding, "content": told["content"]}
    assert asyncio.run(call(kinds, "io.write", written))["bytes"] == len(raw)
    assert (tmp_path / "copy").read_bytes() == raw


@pytest.mark.parametrize(
    "content",
    ["A" * (PIECE_BYTES - 1) + "=" + "AAAA", "A" * PIECE_BYTES + "?", "A" * (2 * OBJECT_BYTES)],
)
def test_a_long_text_that_is_no_base64_fails_by_what_is_wrong(tmp_path: Path, content: str) -> None:
    arguments = {"name": "a", "encoding": "base64", "content": content}
    with pytest.raises(HandlerError) as failed:
        asyncio.run(call(io_kinds(tmp_path), "io.write", arguments))
    assert failed.value.code == "invalid"
    assert failed.value.message.startswith("a")
    assert not (tmp_path / "a").exists()
