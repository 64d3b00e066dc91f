"""Frames on a socket: a 4-byte big-endian length, then msgpack of one protocol message."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Final, cast

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


def body_length(header: bytes | bytearray) -> int:
    """The length that a header announces. Raises FrameTooLong."""
    (length,) = HEADER.unpack(header)
    if length > MAX_FRAME_BYTES:
        raise FrameTooLong(length)
    return int(length)


class Frames(asyncio.Protocol):
    """The frames of a connection: ``told`` is called with the body of each as it is whole.

    Without a task that waits for them and is woken, which with a StreamReader each frame cost
    twice. ``ended`` is done when the connection is. A stream that can't be trusted is closed: one
    with too long a frame, or of which ``told`` raises ValueError.
    """

    def __init__(self, told: Callable[[bytes], None]) -> None:
        self._told = told
        self._held = bytearray()
        self._transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It can be read."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Some more has come."""
        assert self._transport is not None  # noqa: S101 - it has said something
        if self._transport.is_closing():
            return
        self._held += data
        at = 0
        try:
            while len(self._held) - at >= HEADER.size:
                body = at + HEADER.size
                end = body + body_length(self._held[at:body])
                if len(self._held) < end:
                    break
                self._told(bytes(self._held[body:end]))
                at = end
        except (FrameTooLong, ValueError):
            self._transport.close()
            at = len(self._held)
        del self._held[:at]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  an end is an end
        """There will be no more."""
        if not self.ended.done():
            self.ended.set_result(None)


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
