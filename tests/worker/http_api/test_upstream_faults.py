"""What becomes of requests when the server behind a model fails, row by row; nothing hangs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fakes.http_rig import serving_engines, wait_until
from fakes.raw_server import END, GOOD, HEAD, piece, plain, raw_serving, says
from llmtaskpool_worker.engines.protocol import ModelSpec
from llmtaskpool_worker.engines.upstream.address import address_of
from llmtaskpool_worker.engines.upstream.engine import UpstreamEngine

COMPLETIONS = "/v1/chat/completions"
BODY = {"model": "chat", "messages": [{"role": "user", "content": "hello"}]}
TRACE = 'Traceback (most recent call last):\n  File "/usr/lib/vllm/engine.py", line 5'


def engine_at(port: int, **options) -> UpstreamEngine:
    spec = ModelSpec("chat", f"openai:http://127.0.0.1:{port}/v1")
    return UpstreamEngine(spec, address_of(spec.source), look_seconds=0.1, **options)


def sending(*parts: bytes, close: bool = False, hold: bool = False):
    """A script that sends these bytes; then closes, or holds the connection open."""

    async def script(server, reader, writer):
        for part in parts:
            writer.write(part)
        await writer.drain()
        if close:
            raise ConnectionError
        if hold:
            await reader.read(1)  # until the other side closes
            raise ConnectionError

    return script


def error_500(message: str) -> bytes:
    body = json.dumps({"error": {"message": message, "type": "x", "code": 500}}).encode()
    return plain("500 Internal Server Error", "application/json", body)


BEGUN = HEAD + says("some")
NOT_BEGUN = {
    "garbage": (sending(b"\x00\x01garbage\r\n\r\n", close=True), 502, "is no HTTP"),
    "a page in HTML": (sending(plain("200 OK", "text/html", b"<p>hi</p>")), 502, "text/html"),
    "HTML and 502": (
        sending(plain("502 Bad Gateway", "text/html", b"<p>nginx</p>")),
        502,
        "answered with status 502",
    ),
    "a whole JSON answer": (
        sending(plain("200 OK", "application/json", b'{"choices": []}')),
        502,
        "application/json in place of an event stream",
    ),
    "half JSON": (sending(HEAD, piece(b'data: {"choices": [{"de\n\n'), close=True), 502, "no JSON"),
    "a list for a chunk": (sending(HEAD, piece(b"data: [1]\n\n")), 502, "no JSON object"),
    "500 with words": (sending(error_500("out of luck")), 502, "status 500: out of luck"),
    "500 with a traceback": (sending(error_500(TRACE)), 502, "answered with status 500"),
    "a redirect": (
        sending(plain("302 Found\r\nlocation: http://elsewhere/", "text/plain", b"")),
        502,
        "answered with status 302",
    ),
    "400 with words": (
        sending(plain("400 Bad Request", "application/json", b'{"message": "top_k is odd"}')),
        400,
        "status 400: top_k is odd",
    ),
    "an error in place of a chunk": (
        sending(HEAD, piece(b'data: {"error": {"message": "no memory", "code": 500}}\n\n')),
        502,
        "gave up: no memory",
    ),
    "a line of 10 MB": (
        sending(HEAD, piece(b"data: " + b"x" * 10_000_000)),
        502,
        "an event of more than 4 MiB",
    ),
    "a head of 1 MB": (
        sending(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 1_000_000 + b"\r\n\r\n", close=True),
        502,
        "is no HTTP",
    ),
    "it always closes at once": (sending(close=True), 502, "in each of 3 attempts"),
    "it always closes after the head": (sending(HEAD, close=True), 502, "in each of 3 attempts"),
    "it always ends without a reason": (
        sending(HEAD, says("a"), b"0\r\n\r\n"),
        502,
        "in each of 3 attempts",
    ),
}


def test_a_server_that_is_done_and_never_said_why_has_stopped():
    """`[DONE]` ends an answer; what ends without either was cut, and runs again."""
    script = sending(HEAD, says("all"), END)
    with raw_serving(script) as server, serving_engines(engine_at(server.port)) as rig:
        (choice,) = rig.post(COMPLETIONS, BODY).json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("all", "stop")
        text = rig.post(COMPLETIONS, BODY | {"stream": True}).text
        events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        assert "error" not in text
        reasons = [c["finish_reason"] for e in events[:-1] for c in json.loads(e)["choices"]]
        assert [reason for reason in reasons if reason] == ["stop"]


@pytest.mark.parametrize("name", NOT_BEGUN)
def test_a_whole_answer_that_can_not_be_had_is_an_error_with_a_status(name):
    script, status, words = NOT_BEGUN[name]
    with raw_serving(script) as server, serving_engines(engine_at(server.port)) as rig:
        answer = rig.post(COMPLETIONS, BODY)
        assert answer.status_code == status
        error = answer.json()["error"]
        assert words in error["message"]
        assert "upstream" in error["message"]
        assert "/usr/" not in error["message"]
        server.script = sending(GOOD)
        after = rig.post(COMPLETIONS, BODY)
        assert after.json()["choices"][0]["message"]["content"] == "good"
        assert rig.get("/readyz").status_code == 200


BEGUN_ROWS = {
    "half JSON": (sending(BEGUN, piece(b'data: {"choices\n\n')), "no JSON object"),
    "an error": (sending(BEGUN, piece(b'data: {"error": "worn out"}\n\n')), "gave up: worn out"),
    "a closed connection": (sending(BEGUN, close=True), "connection to the upstream broke"),
    "an end without a reason": (sending(BEGUN, b"0\r\n\r\n"), "connection to the upstream broke"),
    "a line of 10 MB": (sending(BEGUN, piece(b"data: " + b"x" * 10_000_000)), "more than 4 MiB"),
}


@pytest.mark.parametrize("name", BEGUN_ROWS)
def test_a_stream_that_somebody_reads_ends_with_an_error_frame(name):
    script, words = BEGUN_ROWS[name]
    with raw_serving(script) as server, serving_engines(engine_at(server.port)) as rig:
        answer = rig.post(COMPLETIONS, BODY | {"stream": True})
        assert answer.status_code == 200
        frames = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
        assert json.loads(frames[0])["choices"][0]["delta"]["content"] == "some"
        assert words in json.loads(frames[-1])["error"]["message"]
        assert server.posts == 1, "what was read is not run again"


def test_a_kept_connection_that_the_server_closed_is_no_error():
    async def once(server, reader, writer):
        if server.posts == 2:
            raise ConnectionError  # as a server does whose keep-alive time was over just now
        writer.write(GOOD)

    with raw_serving(once) as server, serving_engines(engine_at(server.port)) as rig:
        for _ in range(2):
            answer = rig.post(COMPLETIONS, BODY)
            assert answer.json()["choices"][0]["message"]["content"] == "good"
        assert server.posts == 3


def test_an_answer_without_usage_is_counted_here():
    script = sending(HEAD, says("a"), says("b"), says("", "stop"), END)
    with raw_serving(script) as server, serving_engines(engine_at(server.port)) as rig:
        usage = rig.post(COMPLETIONS, BODY).json()["usage"]
        assert usage["completion_tokens"] == 3
        assert usage["prompt_tokens"] > 0


def test_a_stream_that_goes_on_after_its_end_is_whole():
    script = sending(HEAD, says("all", "stop"), hold=True)
    with raw_serving(script) as server, serving_engines(engine_at(server.port)) as rig:
        answer = rig.post(COMPLETIONS, BODY)
        assert answer.json()["choices"][0]["message"]["content"] == "all"


@pytest.mark.parametrize("begun", [b"", HEAD, BEGUN], ids=["nothing", "a head", "a token"])
def test_a_server_that_never_ends_is_left_at_the_task_s_timeout(begun):
    script = sending(begun, hold=True)
    with raw_serving(script) as server, serving_engines(engine_at(server.port)) as rig:
        answer = rig.post(COMPLETIONS, BODY | {"timeout_seconds": 0.5})
        assert answer.status_code == 504
        wait_until(lambda: server.open <= 1, "its connection is closed")
        wait_until(lambda: rig.held() == 0, "its place is free")


def test_a_server_that_draws_for_ever_is_left_at_the_task_s_timeout():
    async def for_ever(server, reader, writer):
        writer.write(HEAD)
        while True:
            writer.write(says("x"))
            await writer.drain()
            await asyncio.sleep(0.001)

    with raw_serving(for_ever) as server, serving_engines(engine_at(server.port)) as rig:
        answer = rig.post(COMPLETIONS, BODY | {"timeout_seconds": 0.5})
        assert answer.status_code == 504
        wait_until(lambda: server.open <= 1, "its connection is closed")


def stub_process(port: int = 0) -> tuple[subprocess.Popen[str], int]:
    tests = Path(__file__).parents[2]
    started = subprocess.Popen(
        [sys.executable, "-m", "fakes.vllm_stub", "--port", str(port)],
        cwd=tests,
        env=os.environ | {"PYTHONPATH": str(tests)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None
    return started, int(started.stdout.readline())


def test_a_server_killed_under_load_loses_nothing_that_was_not_read_and_is_used_again():
    process, port = stub_process()
    with serving_engines(engine_at(port), threads=8) as rig:
        whole, streamed, begun = [], [], []
        body = BODY | {"ignore_eos": True, "max_tokens": 50}

        def ask() -> None:
            whole.append(rig.post(COMPLETIONS, body))

        def follow() -> None:
            long = body | {"stream": True, "max_tokens": 4000}
            with rig.client() as client, client.stream("POST", COMPLETIONS, json=long) as answer:
                lines = answer.iter_lines()
                begun.append(next(lines))
                streamed.append([line for line in lines if line])

        askers = [threading.Thread(target=follow) for _ in range(4)]
        askers += [threading.Thread(target=ask) for _ in range(20)]
        for one in askers[:4]:
            one.start()
        wait_until(lambda: len(begun) == 4, "four streams are read")
        for one in askers[4:]:
            one.start()
        wait_until(lambda: rig.held() >= 12, "others run and wait")
        process.kill()
        process.wait()
        wait_until(lambda: rig.get("/readyz").status_code == 503, "it is told")
        problem = rig.get("/readyz").json()["models"]
        assert problem["chat"] in ("restarting", "retrying")
        process, _ = stub_process(port)
        try:
            for one in askers:
                one.join(120)
                assert not one.is_alive()
        finally:
            process.kill()
            process.wait()
        assert [one.status_code for one in whole] == [200] * 20
        assert ['"engine_crashed"' in lines[-1] for lines in streamed] == [True] * 4


def test_a_server_that_stands_still_is_named_and_used_again_when_it_goes():
    process, port = stub_process()
    try:
        with serving_engines(engine_at(port, silent_seconds=2.0)) as rig:
            os.kill(process.pid, signal.SIGSTOP)
            asker = threading.Thread(target=rig.post, args=(COMPLETIONS, BODY))
            asker.start()
            wait_until(lambda: rig.get("/readyz").status_code == 503, "it is noticed")
            problems = rig.call(rig.pool.problems)
            assert f"127.0.0.1:{port}" in problems["chat"].message
            assert "has not answered for" in problems["chat"].message
            assert rig.get("/livez").status_code == 200, "its own end would mend nothing"
            os.kill(process.pid, signal.SIGCONT)
            asker.join(120)
            assert not asker.is_alive()
            wait_until(lambda: rig.get("/readyz").status_code == 200, "it is used again")
    finally:
        process.kill()
        process.wait()


def test_five_hundred_connections_that_are_cut_leave_nothing_behind():
    """As clients do it; ten thousand are a part of benchmarks/upstream.py."""
    total, at_once = 500, 25
    content = json.dumps(BODY | {"stream": True, "ignore_eos": True}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"

    async def leaving(port: int) -> None:
        numbers = iter(range(total))

        async def client() -> None:
            for number in numbers:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                # A reset: one that only stops sending may still read, and is waited for.
                connected = writer.get_extra_info("socket")
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.write(head.encode() + content)
                if number % 2:  # half of them in the middle of a stream, half before it
                    await reader.readuntil(b"data: ")
                writer.transport.abort()

        await asyncio.gather(*(client() for _ in range(at_once)))

    with (
        raw_serving(sending(HEAD, says("a"), hold=True)) as server,
        serving_engines(engine_at(server.port), threads=16) as rig,
    ):
        asyncio.run(asyncio.wait_for(leaving(rig.port), 250))
        wait_until(lambda: rig.held() == 0, "no place is taken")
        state = rig.call(rig.pool.state)
        assert state.upstreams["chat"].in_flight == 0
        assert (state.lanes["compute"].active, state.lanes["compute"].queued) == (0, 0)
        wait_until(lambda: server.open <= 1, "the server has let go of all but the asking one")
        server.script = sending(GOOD)
        assert rig.post(COMPLETIONS, BODY).status_code == 200


def test_ten_thousand_clients_that_leave_leave_nothing_behind():
    """Over the engine, where each is a message: what a connection's end costs is in test_floods."""
    from llmtaskpool_worker.engines.protocol import AdmitForward, Answered, Cancel, Piece, Ready

    total, at_once = 10_000, 50

    async def story(port: int) -> None:
        engine = engine_at(port)
        await engine.start()
        events = engine.events()
        sent = ended = 0
        body = json.dumps({"prompt": "abc", "max_tokens": 4000, "ignore_eos": True}).encode()
        async for event in events:
            if isinstance(event, Ready):
                for sent in range(1, at_once + 1):
                    engine.send(AdmitForward(sent, "completions", body))
            elif isinstance(event, Piece):
                engine.send(Cancel(event.id))
            elif isinstance(event, Answered):
                assert event.reason == "cancelled"
                ended += 1
                if ended == total:
                    break
                if sent < total:
                    sent += 1
                    engine.send(AdmitForward(sent, "completions", body))
        assert engine.in_flight == 0
        await engine.stop(5.0)

    with raw_serving(sending(HEAD, says("a"), hold=True)) as server:
        asyncio.run(asyncio.wait_for(story(server.port), 250))
        wait_until(lambda: server.open == 0, "the server has let go of all")
        assert server.posts == total
