"""What lies under a connection: when its socket is read, where a body ends, how it closes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Protocol

from uvicorn.protocols.http.flow_control import FlowControl


class Flow(FlowControl):
    """Reading stops while a body is not taken (uvicorn's wish) or too much waits (ours)."""

    def __init__(self, transport: asyncio.Transport, go_on: Callable[[], None]) -> None:
        super().__init__(transport)
        self._go_on = go_on
        self._too_much = False
        self._stopped = False

    def pause_reading(self) -> None:
        """A body is not taken."""
        self.read_paused = True
        self._apply()

    def resume_reading(self) -> None:
        """It is taken again: go on with what was read already, too."""
        if self.read_paused:
            self.read_paused = False
            self._apply()
            self._go_on()

    def hold(self, *, too_much: bool) -> None:
        """Whether more waits to be parsed than should."""
        self._too_much = too_much
        self._apply()

    def _apply(self) -> None:
        stop = self.read_paused or self._too_much
        if stop != self._stopped:
            self._stopped = stop
            if stop:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()


READ_BYTES = 64 * 1024
"""Read from a socket at once. Loops bring 256 KB of each connection in a turn, of their own accord,
and say it to an asyncio.Protocol whole."""
_READ = memoryview(bytearray(READ_BYTES))
"""One for all connections: what has come is told of before the next is read."""


class InPieces(asyncio.BufferedProtocol):
    """Stands before a protocol and gives it what comes in pieces of at most READ_BYTES."""

    def __init__(self, behind: asyncio.Protocol) -> None:
        self._data_received = behind.data_received
        self.eof_received = behind.eof_received  # type: ignore[method-assign]
        self.connection_lost = behind.connection_lost  # type: ignore[method-assign]
        self.pause_writing = behind.pause_writing  # type: ignore[method-assign]
        self.resume_writing = behind.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  what the loop would take
        """Where it is to be read to."""
        return _READ

    def buffer_updated(self, nbytes: int) -> None:
        """So much has come."""
        self._data_received(bytes(_READ[:nbytes]))


_HEAD = b"HTTP/1."


class Lingering(Protocol):
    """A protocol that decides itself how its connection ends."""

    def finish(self) -> None:
        """Close it once what was written is out, and so that the client can still read it."""

    def is_over(self) -> bool:
        """Whether nothing more is answered on this connection."""

    def moved(self) -> None:
        """Bytes went to the client."""


class LingeringTransport:
    """A transport whose ``close`` is the protocol's: what uvicorn closes, lingers."""

    def __init__(self, transport: asyncio.Transport, protocol: Lingering) -> None:
        self._transport = transport
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._head = b""

    def close(self) -> None:
        """As the protocol ends it."""
        self._protocol.finish()

    def is_closing(self) -> bool:
        """Whether nothing more goes out."""
        return self._protocol.is_over() or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Send, unless it is closing; a head leaves with what follows it in the same turn.

        Each write is a call to the kernel, and wakes a client that can't do anything with a head.
        """
        if self.is_closing():
            return
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(_HEAD):  # a body that begins like one waits for no longer either
            self._head = data
            self._loop.call_soon(self.flush)
            return
        self._transport.write(data)
        self._protocol.moved()

    def flush(self) -> None:
        """Send the head that waits, if one does."""
        if self._head:
            self.write(b"")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def watch_peer(transport: asyncio.Transport, unread_seconds: float) -> None:
    """Let the kernel end a connection whose peer is gone or reads nothing.

    TCP_USER_TIMEOUT (RFC 5482) also bounds a zero window, which would otherwise hold the buffer
    and the task for as long as the peer likes; keep-alive probes find a peer that vanished while
    its request was waiting.
    """
    connected = transport.get_extra_info("socket")
    if connected is None or connected.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        milliseconds = max(1, round(unread_seconds * 1000))
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def body_length(headers: list[tuple[bytes, bytes]]) -> int | None:
    """Bytes of body that a head announces, None for chunks; the parser has checked both."""
    length = 0
    for name, value in headers:
        if name == b"transfer-encoding":
            return None
        if name == b"content-length" and value.strip().isdigit():
            length = int(value)
    return length
