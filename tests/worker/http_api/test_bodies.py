"""Bodies: packed ones, and the room that all of them share."""

from __future__ import annotations

import gzip
import json
import select
import zlib
from contextlib import closing

import psutil
import pytest
from fakes.http_rig import read_answer, request_bytes, serving, wait_until
from hypothesis import given
from hypothesis import strategies as st
from llmtaskpool_worker.http_api.bodies import BodyBudget, check_nesting
from llmtaskpool_worker.http_api.errors import ApiError
from llmtaskpool_worker.http_api.limits import HttpLimits

TASK = json.dumps({"kind": "sum", "labels": {"a": "b" * 200}}).encode()


@pytest.fixture(scope="module")
def rig():
    with serving(max_body_bytes=2**20) as running:
        yield running


def packed(rig, body: bytes, encoding: str) -> tuple[int, dict, dict]:
    return rig.raw(request_bytes("/v1/tasks", body, headers=f"content-encoding: {encoding}\r\n"))


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(TASK, mtime=0)),
        ("GZIP", gzip.compress(TASK, mtime=0)),
        ("x-gzip", gzip.compress(TASK[:9], mtime=0) + gzip.compress(TASK[9:], mtime=0)),
        ("deflate", zlib.compress(TASK)),
        ("identity", TASK),
        ("identity, gzip", gzip.compress(TASK, mtime=0)),
        ("", TASK),
    ],
)
def test_a_packed_body_is_read(rig, encoding, body):
    status, _, answer = packed(rig, body, encoding)
    assert status == 202, answer
    assert answer["labels"] == {"a": "b" * 200}


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "compress", "x" * 1000])
def test_an_encoding_that_is_not_read_is_415_and_named(rig, encoding):
    status, headers, answer = packed(rig, TASK, encoding)
    assert status == 415
    assert encoding[:30] in answer["error"]["message"]
    assert "gzip" in answer["error"]["message"]
    assert headers["connection"] == "close"
    assert len(answer["error"]["message"]) < 300


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", TASK),
        ("gzip", gzip.compress(TASK, mtime=0)[:-9]),
        ("gzip", gzip.compress(TASK, mtime=0) + b"junk"),
        ("gzip", gzip.compress(TASK, mtime=0)[:-8] + b"\0" * 8),
        ("deflate", gzip.compress(TASK, mtime=0)),
    ],
)
def test_a_packed_body_that_is_broken_is_400(rig, encoding, body):
    status, _, answer = packed(rig, body, encoding)
    assert status == 400
    assert answer["error"]["code"] == "invalid_encoding"


def test_a_small_body_that_unpacks_to_a_gigabyte_is_refused_with_memory_flat(rig):
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = b" " * 2**20
    bomb = b"".join([packer.compress(block) for _ in range(1000)] + [packer.flush()])
    assert len(bomb) < 2**20
    before = psutil.Process().memory_info().rss
    for _ in range(3):
        status, _, answer = packed(rig, bomb, "gzip")
        assert status == 413
        assert answer["error"]["code"] == "body_too_large"
    assert psutil.Process().memory_info().rss - before < 48 * 2**20


def test_bodies_beyond_the_room_are_told_to_come_again_and_small_ones_pass():
    """Whoever holds the room holds it with bodies that don't come to their end."""
    with serving(bodies_bytes=1_000_000) as rig:
        head = b"POST /v1/tasks HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n\r\n"
        held = [rig.connect()]
        held[0].sendall(head + b" " * 800_000)
        big = request_bytes("/v1/tasks", b" " * 200_000 + TASK)

        def status() -> int:
            status, headers, answer = rig.raw(big)
            if status == 503:
                assert int(headers["retry-after"]) >= 1
                assert headers["connection"] == "close"
                assert answer["error"]["code"] == "bodies_full"
            return status

        def full() -> bool:
            if status() == 503:
                return True
            if select.select(held, [], [], 0)[0]:  # ours came first, and he was sent away
                held.pop().close()
                held.append(rig.connect())
                held[0].sendall(head + b" " * 800_000)
            return False

        wait_until(full, "there is no room")
        assert rig.raw(request_bytes("/v1/tasks", TASK))[0] == 202
        held[0].close()
        wait_until(lambda: status() == 202, "the room was given back")


@pytest.mark.parametrize(
    "ending",
    [
        TASK,  # accepted
        b"{",  # no JSON
        b'{"kind": 5}',  # refused
        b'{"kind": "unknown"}',  # rejected
    ],
)
def test_room_is_given_back_however_a_request_ends(ending):
    with serving(bodies_bytes=1_000_000) as rig:
        for _ in range(12):
            assert rig.raw(request_bytes("/v1/tasks", b" " * 300_000 + ending))[0] != 503


def test_a_body_without_its_length_is_stopped_when_the_room_ends():
    with serving(bodies_bytes=1_000_000) as rig, closing(rig.connect()) as held:
        held.sendall(
            b"POST /v1/tasks HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n\r\n" + b" " * 600_000
        )
        with closing(rig.connect()) as made:
            made.sendall(
                b"POST /v1/tasks HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            made.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
            for _ in range(8):
                made.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
            assert read_answer(made)[0] == 503


@given(st.lists(st.tuples(st.integers(0, 400), st.booleans()), max_size=30))
def test_the_room_is_never_overdrawn_but_by_a_body_alone(takes):
    budget = BodyBudget(1000)
    held = []
    for count, small in takes:
        if budget.take(count, small=small):
            held.append(count)
        assert budget.held == sum(held)
        assert budget.held <= 1000 or len([one for one in held if one]) == 1
    for count in held:
        budget.give_back(count)
    assert budget.held == 0


@given(st.randoms(use_true_random=False), st.integers(1, 6))
def test_depth_is_found_wherever_slices_cut_the_body(rng, depth):
    """Strings full of quotes, backslashes and brackets, around the places where slices end."""
    noise = [r"\\", r"\"", "[", "{", ",", "x" * rng.randrange(2000)]
    texts = ['"' + "".join(rng.choices(noise, k=rng.randrange(90))) + '"' for _ in range(60)]
    body = ("[" * depth + ",".join(texts) + "]" * depth).encode()
    json.loads(body)
    check_nesting(body, HttpLimits(json_depth=depth, json_values=100))
    with pytest.raises(ApiError):
        check_nesting(body, HttpLimits(json_depth=depth - 1, json_values=100))
    with pytest.raises(ApiError):
        check_nesting(body, HttpLimits(json_depth=depth, json_values=50))
