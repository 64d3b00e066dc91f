"""Bad input: an early 4xx that names the field, with nothing else touched and memory flat."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from fakes.fake_pool import FakePool, Running, wait_for_ever
from fakes.http_rig import read_answer, request_bytes, serving, wait_until

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
EMBED = {"model": "vectors", "input": "a"}
COMPLETE = {"model": "echo", "prompt": "a"}
HUGE = 10**400
A_CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.fixture(scope="module")
def rig():
    with serving(max_body_bytes=2**20) as running:
        yield running


def refused(rig, path: str, body, *, field: str, status: int = 400) -> dict:
    """The error of a request that must be refused, and name ``field``, and leave no task."""
    before = len(rig.pool.requests)
    got, _, answer = rig.raw(request_bytes(path, body))
    error = answer["error"]
    assert got == status, error
    assert error["param"] == field, error
    assert field.split("[")[0].split(".")[-1] in error["message"] or field == "body", error
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) < 600
    assert len(rig.pool.requests) == before
    return error


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_tokens": 257}, "max_tokens"),
        ({"max_tokens": HUGE}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"n": 10**6}, "n"),
        ({"n": 0}, "n"),
        ({"stop": ["x"] * 10_000}, "stop"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": [1]}, "stop[0]"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": HUGE}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"seed": 2**64}, "seed"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"logprobs": 5}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"weight": 0}, "weight"),
        ({"weight": -1}, "weight"),
        ({"priority": 1.5}, "priority"),
        ({"service_tier": "gold"}, "service_tier"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 500_000}]}, "messages"),
        ({"model": 5}, "model"),
        ({"model": "vectors"}, "model"),
        ({"tools": [{"type": "function", "function": {"name": "f g"}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function"}], "tool_choice": "auto"}, "tools[0].function"),
        ({"tools": [5], "tool_choice": "none"}, "tools[0]"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"verbosity": "low"}, "verbosity"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "tool_call_id": "a"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [A_CALL] * 129}]},
            "messages[0].tool_calls",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "a"}]}]},
            "messages[0].tool_calls[0].function",
        ),
        ({"response_format": {"type": "json"}}, "response_format.type"),
        ({"logit_bias": {"1": 500}}, "logit_bias"),
        ({"max_token": 5}, "max_token"),
        ({"x" * 10_000: 5}, "x" * 61 + "..."),
    ],
)
def test_a_bad_field_of_a_chat_is_named_and_refused(rig, fields, field):
    refused(rig, "/v1/chat/completions", CHAT | fields, field=field)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**40]}, "prompt"),
        ({"prompt": [2**31 - 1]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1] * 300}, "prompt"),
        ({"prompt": ["a"] * 60, "n": 16}, "n"),
        ({"echo": True}, "echo"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "z"}, "suffix"),
        ({"logprobs": True}, "logprobs"),
    ],
)
def test_a_bad_field_of_a_completion_is_named_and_refused(rig, fields, field):
    refused_at = refused_prompt if field == "prompt" else refused
    refused_at(rig, "/v1/completions", COMPLETE | fields, field=field)


def refused_prompt(rig, path, body, *, field):
    """A prompt may be named with the index at fault."""
    got, _, answer = rig.raw(request_bytes(path, body))
    assert got == 400, answer
    assert answer["error"]["param"].split("[")[0] == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 7}, "dimensions"),
        ({"dimensions": 0}, "dimensions"),
        ({"model": "echo"}, "model"),
    ],
)
def test_a_bad_field_of_embeddings_is_named_and_refused(rig, fields, field):
    refused(rig, "/v1/embeddings", EMBED | fields, field=field)


def test_an_unknown_model_is_404_and_names_those_that_exist(rig):
    error = refused(
        rig, "/v1/chat/completions", CHAT | {"model": "gpt-9"}, field="model", status=404
    )
    assert "echo" in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
        b'{"temperature": -Infinity}',
        b'{"a": ' + b"9" * 100_000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": "' + b'\\"[' * 1000,
        b'{"model": "echo"} trailing',
    ],
)
def test_a_body_that_is_no_json_object_is_refused(rig, body):
    refused(rig, "/v1/chat/completions", body, field="body")


def test_a_float_beyond_all_floats_is_refused(rig):
    body = json.dumps(CHAT)[:-1].encode() + b', "temperature": 1e999}'
    refused(rig, "/v1/chat/completions", body, field="temperature")


def test_too_many_values_are_refused_before_they_are_parsed():
    with serving(max_json_values=1000) as rig:
        body = b'{"model": "echo", "prompt": [' + b"1," * 5000 + b"1]}"
        refused(rig, "/v1/completions", body, field="body")


def test_brackets_and_quotes_in_a_text_are_no_nesting(rig):
    text = '[[{"\\' * 20 + ",,,"
    answer = rig.post(
        "/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": text}]}
    )
    assert answer.status_code == 200, answer.text


def test_a_key_that_is_given_twice_counts_once_the_last(rig):
    body = json.dumps(CHAT)[:-1].encode() + b', "max_tokens": 0, "max_tokens": 1}'
    assert rig.raw(request_bytes("/v1/chat/completions", body))[0] == 200


def test_an_announced_body_over_the_cap_is_refused_before_it_is_sent(rig):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n"
    status, headers, answer = rig.raw(head)
    assert status == 413
    assert headers["connection"] == "close"
    assert answer["error"]["param"] == "body"


def test_a_chunked_body_over_the_cap_is_refused_and_not_kept(rig):
    before = psutil.Process().memory_info().rss
    with closing(rig.connect()) as made:
        made.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        chunk = b"%x\r\n" % 65536 + b"a" * 65536 + b"\r\n"
        sent = 0
        try:
            while sent < 64 * 2**20:
                made.sendall(chunk)
                sent += 65536
        except OSError:
            pass  # it hung up
    assert sent < 64 * 2**20
    assert psutil.Process().memory_info().rss - before < 32 * 2**20


@pytest.mark.parametrize(
    "flood",
    [
        b"".join(b"x-%d: y\r\n" % i for i in range(1000)),
        b"x: " + b"y" * 100_000 + b"\r\n",
        b"x" * 100_000 + b": y\r\n",
    ],
)
def test_a_header_flood_is_answered_431(rig, flood):
    status, headers, answer = rig.raw(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + flood + b"\r\n")
    assert status == 431
    assert headers["connection"] == "close"
    assert answer["error"]["code"] == "headers_too_large"


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx: ",  # a header that never ends
        b"GET /",  # a target that never ends
        # trailers, and a chunk extension, that never end
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1;",
    ],
)
def test_what_never_ends_is_cut_off_with_memory_flat(rig, head):
    before = psutil.Process().memory_info().rss
    with closing(rig.connect()) as made:
        sent = 0
        try:
            made.sendall(head)
            while sent < 64 * 2**20:
                made.sendall(b"y" * 65536)
                sent += 65536
        except OSError:
            pass  # it hung up
    assert sent < 64 * 2**20
    assert psutil.Process().memory_info().rss - before < 32 * 2**20


@pytest.mark.parametrize(
    "junk", [b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"hello\r\n\r\n"]
)
def test_what_is_no_http_is_answered_400_in_our_shape(rig, junk):
    status, _, answer = rig.raw(junk)
    assert status == 400
    assert answer["error"]["code"] == "invalid_http"


def test_a_slow_head_is_cut_off_while_others_are_served():
    with serving(header_timeout_seconds=0.3) as rig:
        slow = [rig.connect() for _ in range(50)]
        for made in slow:
            made.sendall(b"GET /v1/models HT")
        assert rig.post("/v1/chat/completions", CHAT).status_code == 200
        for made in slow:
            made.settimeout(20)
            assert made.recv(100) == b""
            made.close()


def test_a_slow_body_is_answered_408_while_others_are_served():
    with serving(body_timeout_seconds=0.3) as rig, closing(rig.connect()) as made:
        made.sendall(request_bytes("/v1/chat/completions", CHAT)[:-5])
        assert rig.post("/v1/chat/completions", CHAT).status_code == 200
        status, headers, answer = read_answer(made)
        assert status == 408
        assert headers["connection"] == "close"
        assert answer["error"]["code"] == "body_timeout"


async def talk_for_ever(run: Running) -> None:
    run.start()
    while True:
        run.say("word " * 1000, 1)
        await asyncio.sleep(0)


def test_a_client_that_reads_nothing_is_cut_off_and_its_task_cancelled():
    with (
        serving(lambda c: FakePool(c, script=talk_for_ever), unread_timeout_seconds=0.5) as rig,
        socket.socket() as made,
    ):
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        made.connect(("127.0.0.1", rig.port))
        made.sendall(request_bytes("/v1/chat/completions", CHAT | {"stream": True}))
        wait_until(lambda: len(rig.pool.requests) == 1, "the task runs")
        wait_until(lambda: rig.held() == 0, "the task was cancelled")


def test_connections_beyond_the_limit_are_answered_503_and_freed_ones_count_again():
    with serving(max_connections=5) as rig:
        held = [rig.connect() for _ in range(5)]
        wait_until(lambda: refused_connection(rig) == 503, "a sixth is refused")
        for made in held:
            made.close()
        wait_until(lambda: refused_connection(rig) == 200, "a place is free again")


def refused_connection(rig) -> int:
    try:
        return rig.raw(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")[0]
    except OSError:
        return 503  # reset before the answer was read


def test_bad_requests_touch_no_running_one():
    with (
        serving(lambda clock: FakePool(clock, script=wait_for_ever)) as rig,
        closing(rig.connect()) as made,
    ):
        made.sendall(request_bytes("/v1/chat/completions", CHAT | {"stream": True}))
        wait_until(lambda: rig.held() == 1, "one runs")
        for body in (b"[" * 100_000, b"{", b'{"n": 1000000}'):
            assert rig.raw(request_bytes("/v1/chat/completions", body))[0] == 400
        assert rig.held() == 1
        received = b""
        while b"once" not in received:
            received += made.recv(4096)


def test_bad_requests_leave_memory_flat(rig):
    deep = request_bytes("/v1/chat/completions", b"[" * 500_000)
    wide = request_bytes("/v1/completions", {"model": "echo", "prompt": [1] * 100_000})

    def storm(times: int) -> int:
        for _ in range(times):
            for request in (deep, wide):
                assert rig.raw(request)[0] == 400
        return psutil.Process().memory_info().rss

    warm = storm(10)
    assert storm(60) - warm < 24 * 2**20


def test_no_path_traceback_or_prompt_is_in_an_answer_or_in_the_log(caplog):
    def broken_pool(clock):
        pool = FakePool(clock)

        async def submit(_request):
            raise RuntimeError("boom secret-prompt /etc/passwd")

        pool.submit = submit
        return pool

    from llmtaskpool_worker.assembly.logs import OneLine

    caplog.set_level(logging.DEBUG)
    with serving(broken_pool) as rig:
        asked = {"model": "echo", "messages": [{"role": "user", "content": "secret-prompt"}]}
        answer = rig.post("/v1/chat/completions?secret-prompt", asked)
        wrong = rig.post("/v1/chat/completions", asked | {"stop": ["secret-prompt"] * 9})
        rig.post("/v1/secret-prompt", asked)
    assert answer.status_code == 500
    assert wrong.status_code == 400
    lines = "\n".join(
        OneLine().format(record)
        for record in caplog.records
        if record.name.startswith(("llmtaskpool", "uvicorn"))
    )
    assert "RuntimeError" in lines
    assert answer.headers["x-request-id"] in lines
    for text in (answer.text, wrong.text, lines):
        assert "secret-prompt" not in text
        assert "Traceback" not in text
        assert str(Path(__file__).parents[3]) not in text
        assert "/etc/passwd" not in text
