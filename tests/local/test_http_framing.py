"""Where HTTP messages end, from their bytes alone, however these are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llmtaskpool_operator.local.http_framing import HEAD_BYTES_MAX, Exchanges

GET = b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED_POST = b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
HEAD = b"HEAD /x HTTP/1.1\r\n\r\n"
SIZED = b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nhello world"
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"
STREAM = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    b"9;x=y\r\nab\r\n0\r\n\r\n\r\n2\r\nhi\r\n0\r\nTrailer: 1\r\n\r\n"
)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
ENDLESS = b"HTTP/1.1 200 OK\r\n\r\nwho knows"
HEAD_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n"

whole_exchanges = st.sampled_from(
    [
        (GET, SIZED),
        (POST, STREAM),
        (CHUNKED_POST, EMPTY),
        (POST, CONTINUE + SIZED),
        (HEAD, HEAD_ANSWER),
    ]
)


@given(st.lists(whole_exchanges, min_size=1, max_size=4), st.data())
def test_exchanges_end_exactly_with_their_last_byte_however_they_are_cut(exchanges, data):
    seen = Exchanges()
    for request, answer in exchanges:
        for part in cut(request, data):
            seen.request(part)
            assert not seen.idle
        assert seen.unanswered
        parts = cut(answer, data)
        for part in parts[:-1]:
            seen.answer(part)
            assert not seen.idle
            assert not seen.unanswered or answer.startswith(CONTINUE)
        seen.answer(parts[-1])
        assert seen.idle


def cut(whole: bytes, data) -> list[bytes]:
    places = data.draw(st.lists(st.integers(1, len(whole) - 1), unique=True, max_size=6))
    ends = [0, *sorted(places), len(whole)]
    return [whole[a:b] for a, b in pairwise(ends)]


def test_requests_sent_ahead_of_their_answers_are_counted():
    seen = Exchanges()
    seen.request(GET + GET)
    seen.answer(SIZED)
    assert not seen.idle
    seen.answer(SIZED)
    assert seen.idle


def test_an_answer_before_its_requests_last_byte_is_no_rest():
    seen = Exchanges()
    seen.request(POST[:-2])
    seen.answer(SIZED)
    assert not seen.idle


@pytest.mark.parametrize(
    "answer",
    [
        ENDLESS,
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\na",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"nonsense\r\n\r\n",
        b"x" * (HEAD_BYTES_MAX + 1),
    ],
)
def test_an_answer_without_a_known_end_never_looks_ended(answer):
    seen = Exchanges()
    seen.request(GET)
    seen.answer(answer)
    seen.answer(b"\r\n0\r\n\r\n" + SIZED)
    assert not seen.idle
