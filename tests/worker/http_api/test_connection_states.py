"""Every state that a connection can be in has a clock: raw sockets that stay in it too long."""

from __future__ import annotations

import socket
import time
from contextlib import closing, suppress

import pytest
from fakes.fake_pool import FakePool, wait_for_ever
from fakes.http_rig import KEY, read_answer, request_bytes, serving, wait_until
from llmtaskpool_worker.http_api import connections

GET = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
SOON = 0.4
"""Seconds of the clocks under test; what should not end has waited several times that."""


def ends(made: socket.socket, trickle: bytes = b"", seconds: float = 20.0) -> bytes:
    """What comes until the server ends the connection, while ``trickle`` is sent byte by byte."""
    made.settimeout(0.1)
    received = b""
    deadline = time.monotonic() + seconds
    left = list(trickle)
    while time.monotonic() < deadline:
        try:
            if left:
                made.sendall(bytes([left.pop(0)]))
            data = made.recv(65536)
        except TimeoutError:
            continue
        except OSError:
            return received
        if not data:
            return received
        received += data
    raise AssertionError(f"the connection never ended; it has sent {received!r}")


def test_a_client_that_sends_nothing_is_closed():
    with serving(header_timeout_seconds=SOON) as rig, closing(rig.connect()) as made:
        assert ends(made) == b""


def test_a_first_head_that_trickles_is_closed():
    with serving(header_timeout_seconds=SOON) as rig, closing(rig.connect()) as made:
        assert ends(made, b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 1000) == b""


def test_a_next_head_that_trickles_is_closed_too():
    with serving(header_timeout_seconds=SOON) as rig, closing(rig.connect()) as made:
        made.sendall(GET)
        assert read_answer(made)[0] == 200
        assert ends(made, GET[:-2] + b"x: y\r\n" * 1000) == b""


def test_a_next_head_that_begins_within_a_long_exchange_is_closed_after_it():
    """Before: the head's clock rang in the exchange, and never again."""
    with (
        serving(
            lambda clock: FakePool(clock, script=wait_for_ever),
            header_timeout_seconds=SOON,
            keep_alive_seconds=60,
        ) as rig,
        closing(rig.connect()) as made,
    ):
        made.sendall(request_bytes("/v1/chat/completions", CHAT) + b"G")
        wait_until(lambda: rig.held() == 1, "the exchange runs")
        time.sleep(3 * SOON)
        (task,) = rig.pool.views
        rig.call(rig.pool.cancel, task)
        received = ends(made, b"ET / HTTP/1.1\r\n" + b"x: y\r\n" * 1000)
        assert received.count(b"HTTP/1.1 ") == 1


def test_an_idle_connection_is_closed_even_when_it_sends_empty_lines():
    """Before: any byte stopped the clock of an idle connection."""
    with (
        serving(keep_alive_seconds=SOON, header_timeout_seconds=60) as rig,
        closing(rig.connect()) as made,
    ):
        made.sendall(GET)
        assert read_answer(made)[0] == 200
        assert ends(made, b"\r\n" * 1000) == b""


def test_a_body_that_trickles_is_answered_408_and_closed():
    with serving(body_timeout_seconds=SOON) as rig, closing(rig.connect()) as made:
        made.sendall(b"POST /v1/tasks HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n")
        assert ends(made, b" " * 1000).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_nobody_reads_and_that_never_ends_is_closed(monkeypatch):
    monkeypatch.setattr(connections, "LINGER_SECONDS", SOON)
    with serving(keep_alive_seconds=60) as rig, closing(rig.connect()) as made:
        made.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n")
        assert ends(made, b" " * 1000).count(b"HTTP/1.1 ") == 1


def is_reset(made: socket.socket) -> bool:
    try:
        made.sendall(b"x")
    except OSError:
        return True
    return False


def test_a_client_that_does_not_close_after_a_last_answer_is_closed(monkeypatch):
    monkeypatch.setattr(connections, "LINGER_SECONDS", SOON)
    with serving(api_keys=(KEY,)) as rig, closing(rig.connect()) as made:
        made.sendall(GET)
        wait_until(lambda: rig.get("/livez").status_code == 200, "others are served")
        made.settimeout(20)
        while made.recv(65536):
            pass
        wait_until(lambda: is_reset(made), "the connection is gone")


def test_a_refused_client_that_still_sends_reads_its_answer(monkeypatch):
    """Before: the close reset the connection, and took the answer with it."""
    with serving(api_keys=(KEY,), max_body_bytes=2**20) as rig:
        for _ in range(20):
            with closing(rig.connect()) as made:
                made.sendall(request_bytes("/v1/tasks", b"x" * 900_000))
                status, headers, answer = read_answer(made)
                assert status == 401
                assert headers["connection"] == "close"
                assert answer["error"]["code"] == "invalid_api_key"


def test_what_is_sent_ahead_is_answered_one_by_one_in_order():
    with serving() as rig, closing(rig.connect()) as made:
        bodies = [{"kind": "sum", "labels": {"n": f"nr-{n}"}} for n in range(50)]
        made.sendall(b"".join(request_bytes("/v1/tasks", body) for body in bodies) + GET)
        stream = made.makefile("rb")
        tasks = []
        for _ in bodies:
            assert stream.readline().split()[1] == b"202"
            length = 0
            while line := stream.readline().strip():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            tasks.append(stream.read(length))
        assert all(f'"nr-{n}"'.encode() in task for n, task in enumerate(tasks))
        assert stream.readline().split()[1] == b"200"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64])
def test_requests_that_come_in_pieces_of_any_size_are_the_same_requests(size):
    chunked = (
        b"POST /v1/tasks HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        b'7\r\n{"kind"\r\n8\r\n: "sum"}\r\n0\r\n\r\n'
    )
    whole = (GET + chunked + request_bytes("/v1/tasks", {"kind": "sum"})) * 3
    with serving() as rig, closing(rig.connect()) as made:
        for at in range(0, len(whole), size):
            made.sendall(whole[at : at + size])
        received = b""
        made.settimeout(20)
        while received.count(b"HTTP/1.1 ") < 9 or not received.endswith(b"}"):
            received += made.recv(65536)
        assert received.count(b"HTTP/1.1 202") == 6
        assert received.count(b"HTTP/1.1 200") == 3


def test_a_client_that_leaves_while_it_has_sent_ahead_leaves_no_task():
    with serving(lambda clock: FakePool(clock, script=wait_for_ever)) as rig:
        made = rig.connect()
        made.sendall(request_bytes("/v1/chat/completions", CHAT) + GET * 10)
        wait_until(lambda: rig.held() == 1, "the task runs")
        made.close()
        wait_until(lambda: rig.held() == 0, "the task was cancelled")


# Too many connections


def fill(rig, count: int, first: bytes = b"") -> list[socket.socket]:
    made = [rig.connect() for _ in range(count)]
    for one in made:
        if first:
            one.sendall(first)
            assert read_answer(one)[0] == 200
    return made


def is_open(made: socket.socket) -> bool:
    made.settimeout(0.05)
    try:
        return made.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


def test_idle_strangers_go_first_and_the_known_stay(monkeypatch):
    """Before: idle sockets filled a port, and everybody else was refused."""
    from llmtaskpool_worker.http_api import crowd

    monkeypatch.setattr(crowd, "FRESH_SECONDS", 0.0)
    with_key = GET[:-2] + f"authorization: Bearer {KEY}\r\n\r\n".encode()
    with serving(api_keys=(KEY,), max_connections=16) as rig:
        known = fill(rig, 4, with_key)
        strangers = fill(rig, 40)
        for one in known:
            one.sendall(with_key)
            assert read_answer(one)[0] == 200
        late = fill(rig, 3, with_key)
        for one in (*known, *late):
            assert is_open(one)
        assert sum(map(is_open, strangers)) <= 16
        for one in (*known, *late, *strangers):
            one.close()


def test_known_clients_that_idle_make_room_for_newcomers_beyond_their_share(monkeypatch):
    from llmtaskpool_worker.http_api import crowd

    monkeypatch.setattr(crowd, "FRESH_SECONDS", 0.0)
    with serving(max_connections=8) as rig:
        idle = fill(rig, 8, GET)
        late = [one for _ in range(4) for one in fill(rig, 1, GET)]
        assert all(map(is_open, late))
        assert [is_open(one) for one in idle] == [False] * 4 + [True] * 4
        for one in (*idle, *late):
            one.close()


def test_nobody_whose_request_is_worked_on_is_cut_off_for_a_newcomer(monkeypatch):
    from llmtaskpool_worker.http_api import crowd

    monkeypatch.setattr(crowd, "FRESH_SECONDS", 0.0)
    with serving(lambda clock: FakePool(clock, script=wait_for_ever), max_connections=6) as rig:
        busy = [rig.connect() for _ in range(6)]
        for one in busy:
            one.sendall(request_bytes("/v1/chat/completions", CHAT))
        wait_until(lambda: rig.call(lambda: len(rig.pool.requests)) == 6, "all run")
        for _ in range(10):
            with suppress(OSError):  # reset before the answer was read
                assert rig.raw(GET)[0] == 503
        assert all(map(is_open, busy))
        for one in busy:
            one.close()
