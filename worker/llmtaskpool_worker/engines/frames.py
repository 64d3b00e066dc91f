"""Frames on a socket: a 4-byte big-endian length, then msgpack of one protocol message."""

from __future__ import annotations

import socket
import struct
from typing import Final

import msgspec

from llmtaskpool_worker.engines.protocol import MAX_FRAME_BYTES, FromEngine, ModelSpec, ToEngine

HEADER: Final = struct.Struct(">I")
encode: Final = msgspec.msgpack.Encoder().encode
decode_to_engine: Final = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine: Final = msgspec.msgpack.Decoder(FromEngine).decode
decode_spec: Final = msgspec.msgpack.Decoder(ModelSpec).decode


class FrameTooLong(Exception):
    """A frame is longer than MAX_FRAME_BYTES: the stream can't be trusted any more."""


def framed(message: object) -> bytes:
    """A message with its length before it. Raises FrameTooLong."""
    body = encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameTooLong(len(body))
    return HEADER.pack(len(body)) + body


def body_length(header: bytes) -> int:
    """The length that a header announces. Raises FrameTooLong."""
    (length,) = HEADER.unpack(header)
    if length > MAX_FRAME_BYTES:
        raise FrameTooLong(length)
    return int(length)


def receive(connection: socket.socket) -> bytes | None:
    """The next frame's body, blocking; None once the other side has gone."""
    header = _exactly(connection, HEADER.size)
    return None if header is None else _exactly(connection, body_length(header))


def _exactly(connection: socket.socket, length: int) -> bytes | None:
    body = bytearray(length)
    view = memoryview(body)
    while view:
        got = connection.recv_into(view)
        if not got:
            return None
        view = view[got:]
    return bytes(body)
