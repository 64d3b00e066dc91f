"""Results with long texts are the same JSON, though they are made and sent in pieces."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from llmtaskpool_worker.http_api.long_text import LONG_LETTERS, in_pieces
from llmtaskpool_worker.http_api.sse import EventStream, Frame, long_event
from starlette.types import Message


@pytest.mark.parametrize("text", ["", "short", 'a"\\\n\x01' * LONG_LETTERS, "ж😀" * LONG_LETTERS])
def test_a_text_of_any_length_is_told_as_it_is(text: str) -> None:
    value = {"name": "n", "content": text, "more": [1, {"deep": text}], "again": text}
    task = {"id": "t", "result": {"value": value}, "error": None}
    pieces = asyncio.run(in_pieces(task))
    assert json.loads(b"".join(pieces)) == task


def test_no_piece_of_a_long_text_is_long() -> None:
    task = {"id": "t", "result": {"value": {"content": "x" * (8 * LONG_LETTERS)}}}
    assert max(map(len, asyncio.run(in_pieces(task)))) <= LONG_LETTERS


@pytest.mark.parametrize("result", [None, {"text": "x" * (LONG_LETTERS + 1)}, {"value": [1]}])
def test_other_results_are_one_piece(result: object) -> None:
    task = {"id": "t", "result": result}
    (piece,) = asyncio.run(in_pieces(task))
    assert json.loads(piece) == task


def test_no_heartbeat_comes_within_an_event_that_is_read_slowly() -> None:
    pieces = [b'{"a":"', b"x", "\u2028".encode(), b'"}']
    sent: list[bytes] = []

    async def frames() -> AsyncIterator[Frame]:
        yield long_event(pieces, name="end", number=1)

    async def send(message: Message) -> None:
        await asyncio.sleep(0.05)  # five heartbeats
        sent.append(message.get("body", b""))

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    asyncio.run(EventStream(frames(), heartbeat_seconds=0.01)({}, receive, send))
    whole = rb"""id: 1
event: end
data: {"a":"x\u2028"}

"""
    assert whole in b"".join(sent)
