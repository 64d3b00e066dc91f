"""Long texts of results as JSON, made in pieces in a thread and sent one by one.

Whole, they would stop the loop: made, joined, put into their task and handed to the socket, each
of these is a copy of up to 16 MB.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import msgspec

from llmtaskpool_worker.http_api.sse import encode

LONG_LETTERS = 256 * 1024
"""Longer texts are encoded in pieces of so many letters: one call over 16 MB holds Python's lock,
and with it the event loop, for 20 to 100 ms."""

_ENCODING = ThreadPoolExecutor(max_workers=2, thread_name_prefix="encode")
_HERE = b"\x00"
"""Stands for a long text until all else is encoded: no JSON has this byte."""


async def in_pieces(task: dict[str, Any]) -> list[bytes]:
    """A task as JSON; the pieces of a long text of its result are pieces of their own."""
    result = task["result"]
    value = result.get("value") if result is not None else None
    if not isinstance(value, dict):
        return [encode(task)]
    long = {k: v for k, v in value.items() if isinstance(v, str) and len(v) > LONG_LETTERS}
    if not long:
        return [encode(task)]
    texts = await asyncio.get_running_loop().run_in_executor(_ENCODING, _texts, list(long.values()))
    around = encode(task | {"result": {"value": value | dict.fromkeys(long, msgspec.Raw(_HERE))}})
    first, *others = around.split(_HERE)
    return [
        first,
        *chain.from_iterable((*text, rest) for text, rest in zip(texts, others, strict=True)),
    ]


def _texts(texts: list[str]) -> list[list[bytes]]:
    return [[b'"', *_pieces(text), b'"'] for text in texts]


def _pieces(text: str) -> list[bytes]:
    starts = range(0, len(text), LONG_LETTERS)
    return [msgspec.json.encode(text[at : at + LONG_LETTERS])[1:-1] for at in starts]
