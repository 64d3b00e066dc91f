"""What io tasks carry: bytes as text or base64, in pieces where they are many."""

from __future__ import annotations

import base64
import binascii
import codecs
import threading
from collections.abc import Callable, Iterator
from typing import Any

from llmtaskpool_worker.kinds.registry import ArgumentsError
from llmtaskpool_worker.kinds.threads import PIECE_BYTES

OBJECT_BYTES = 16 * 1024 * 1024
"""The largest object that is read, written or fetched."""
SHORT_BYTES = 16 * 1024
"""So many are made text faster than a thread takes over, and wait for no long text."""


def encoding_of(arguments: dict[str, Any]) -> str:
    """How content is written. Raises ArgumentsError."""
    encoding = arguments.get("encoding", "text")
    if encoding not in ("text", "base64"):
        raise ArgumentsError("arguments.encoding", "arguments.encoding must be text or base64")
    return str(encoding)


def content_of(arguments: dict[str, Any]) -> bytes:
    """The bytes that are to be written. Raises ArgumentsError."""
    content = arguments.get("content")
    if not isinstance(content, str):
        raise ArgumentsError("arguments.content", "arguments.content must be a string")
    if len(content) > 2 * OBJECT_BYTES:
        raise ArgumentsError("arguments.content", f"at most {OBJECT_BYTES} bytes")
    decode: Callable[[str], bytes] = str.encode
    if encoding_of(arguments) == "base64":
        decode = _from_base64
    pieces = [content[i : i + PIECE_BYTES] for i in range(0, len(content), PIECE_BYTES)]
    padded = decode is _from_base64 and any(piece.endswith("=") for piece in pieces[:-1])
    try:
        decoded = decode("=") if padded else b"".join(map(decode, pieces))
    except (binascii.Error, UnicodeEncodeError, ValueError):
        raise ArgumentsError("arguments.content", "arguments.content can't be decoded") from None
    if len(decoded) > OBJECT_BYTES:
        raise ArgumentsError("arguments.content", f"at most {OBJECT_BYTES} bytes")
    return decoded


def _from_base64(content: str) -> bytes:
    return base64.b64decode(content, validate=True)


_MAKING_TEXT = threading.Lock()
"""Held while a long text is made: two at once would hold Python's lock for twice as long."""


def told(content: list[bytes], encoding: str) -> dict[str, Any]:
    """Bytes as a result has them; of many call it in a thread."""
    if sum(map(len, content)) <= SHORT_BYTES:
        return _told(content, encoding)
    with _MAKING_TEXT:
        return _told(content, encoding)


def _told(content: list[bytes], encoding: str) -> dict[str, Any]:
    pieces = _in_base64(content) if encoding == "base64" else _in_text(content)
    return {"content": "".join(pieces), "encoding": encoding}


def _in_base64(content: list[bytes]) -> Iterator[str]:
    left = b""
    for piece in content:
        whole = left + piece
        end = len(whole) // 3 * 3  # what needs no padding
        left = whole[end:]
        yield binascii.b2a_base64(whole[:end], newline=False).decode()
    yield binascii.b2a_base64(left, newline=False).decode()


def _in_text(content: list[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in content:
        yield decoder.decode(piece)
    yield decoder.decode(b"", final=True)
