"""Long texts of results as JSON, made in pieces in a thread: whole, they would stop the loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

LONG_LETTERS = 256 * 1024
"""Longer texts are encoded in pieces of so many letters: one call over 16 MB holds Python's lock,
and with it the event loop, for 20 to 100 ms."""

_ENCODING = ThreadPoolExecutor(max_workers=2, thread_name_prefix="encode")


async def with_texts_encoded(task: dict[str, Any]) -> dict[str, Any]:
    """A task as JSON-able values; the long texts of its result are JSON already."""
    result = task["result"]
    value = result.get("value") if result is not None else None
    if not isinstance(value, dict):
        return task
    long = {k: v for k, v in value.items() if isinstance(v, str) and len(v) > LONG_LETTERS}
    if not long:
        return task
    encoded = await asyncio.get_running_loop().run_in_executor(_ENCODING, _encoded, long)
    return task | {"result": {"value": value | encoded}}


def _encoded(texts: dict[str, str]) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(_text(text)) for name, text in texts.items()}


def _text(text: str) -> bytes:
    pieces = (text[i : i + LONG_LETTERS] for i in range(0, len(text), LONG_LETTERS))
    return b'"' + b"".join(msgspec.json.encode(piece)[1:-1] for piece in pieces) + b'"'
