"""How much a client may send: header bytes, body bytes, JSON depth and size, and time for each.

What is beyond a limit is refused before it is kept, so memory stays flat under any input.
"""

from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import dataclass
from http import HTTPStatus
from itertools import accumulate
from typing import Any

import msgspec
import pydantic_core
from starlette.requests import ClientDisconnect, Request
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from llmtaskpool_worker.http_api.errors import ApiError

BIG_BODY_BYTES = 64 * 1024
"""Bodies from here on are scanned and parsed off the event loop."""

FRAMING_PER_BYTE = 8
"""Bytes of framing that chunked encoding may spend on a byte of body: ``1\\r\\nx\\r\\n`` has 5."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """The bounds in force, in bytes, counts and seconds."""

    header_bytes: int = 64 * 1024
    header_count: int = 128
    header_seconds: float = 10.0
    body_bytes: int = 8 * 1024 * 1024
    body_seconds: float = 60.0
    json_depth: int = 64
    json_values: int = 1_000_000
    connections: int = 4096
    unread_seconds: float = 60.0
    """A client that takes nothing of what is sent for so long is cut off."""


def guarded_protocol(limits: HttpLimits) -> type[GuardedProtocol]:
    """The protocol class for uvicorn with these limits in force."""
    return type("GuardedProtocol", (GuardedProtocol,), {"limits": limits})


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol with a bound on what isn't body, and on the time for a head.

    llhttp itself takes headers, trailers and chunk framing without end.
    """

    limits = HttpLimits()
    _framing = 0
    _headers_seen = 0
    _in_head = True
    _refusal: ApiError | None = None
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a head; refuse at once what is beyond the connections allowed."""
        super().connection_made(transport)
        _watch_peer(transport, self.limits.unread_seconds)
        if len(self.connections) > self.limits.connections:
            self._refuse(503, "too_many_connections", "Too many connections: try again later.", 1.0)
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop the timers, which would keep this connection in memory; uvicorn's after a reset."""
        self._stop_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and refuse when too much of it was no body."""
        if self.transport.is_closing():
            return
        self._framing += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._framing > self.limits.header_bytes:
            self._refuse_headers()
        elif self._in_head and self._head_timer is None:
            self._expect_head()

    def on_message_begin(self) -> None:
        """A new head begins."""
        super().on_message_begin()
        self._in_head = True
        self._framing = self._headers_seen = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header, or a trailer."""
        self._framing += len(name) + len(value)
        self._headers_seen += 1
        if (
            self._framing > self.limits.header_bytes
            or self._headers_seen > self.limits.header_count
        ):
            self._refuse_headers()
            raise ValueError("too many headers")  # stops the parser
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is in."""
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Body bytes pay for the framing around them."""
        self._framing = max(0, self._framing - FRAMING_PER_BYTE * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """What follows is the next head."""
        self._in_head = True
        self._framing = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's words, not ours
        """Answer what can't be parsed, unless it was refused by a limit before."""
        if not self.transport.is_closing():
            self._refuse(400, "invalid_http", "This is not a valid HTTP/1.1 request.")

    def _refuse_headers(self) -> None:
        self._refuse(
            431,
            "headers_too_large",
            f"The headers are more than {self.limits.header_count} or longer than "
            f"{self.limits.header_bytes} bytes: send fewer.",
        )

    def _refuse(
        self, status: int, code: str, message: str, retry_after_seconds: float | None = None
    ) -> None:
        """Answer in our error shape and close; what runs on this connection sees a disconnect."""
        error = ApiError(
            status, message, code=code, retry_after_seconds=retry_after_seconds, close=True
        )
        body = msgspec.json.encode(error.body())
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            *(f"{name}: {value}" for name, value in error.headers().items()),
        ]
        if not self.transport.is_closing():
            self.transport.write("\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body)
            self.transport.close()

    def _expect_head(self) -> None:
        self._stop_timer()
        self._head_timer = self.loop.call_later(self.limits.header_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _watch_peer(transport: asyncio.Transport, unread_seconds: float) -> None:
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


async def read_json(request: Request, limits: HttpLimits) -> dict[str, Any]:
    """The body of a request: a JSON object within the limits.

    Raises:
        ApiError: 413 beyond ``body_bytes``, 408 beyond ``body_seconds``, else 400 when it is no
            JSON object, is nested deeper than ``json_depth`` or holds more than ``json_values``.
        ClientDisconnect: the client left before its body was complete.
    """
    body = await _read_body(request, limits)
    if len(body) >= BIG_BODY_BYTES:
        return await asyncio.to_thread(parse_json, body, limits)
    return parse_json(body, limits)


async def _read_body(request: Request, limits: HttpLimits) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limits.body_bytes:
        raise _too_long(limits)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > limits.body_bytes:
                    raise _too_long(limits)
                body += chunk
    except TimeoutError:
        raise ApiError(
            408,
            f"The body did not arrive within {limits.body_seconds:g} s: send it faster.",
            param="body",
            code="body_timeout",
            close=True,
        ) from None
    return bytes(body)


def _too_long(limits: HttpLimits) -> ApiError:
    return ApiError(
        413,
        f"The body is longer than {limits.body_bytes} bytes: send less in one request.",
        param="body",
        code="body_too_large",
        close=True,  # the rest of it was not read
    )


def parse_json(body: bytes, limits: HttpLimits) -> dict[str, Any]:
    """``body`` as a JSON object; raises ApiError 400 naming what is wrong and where."""
    check_nesting(body, limits)
    try:
        parsed = pydantic_core.from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise ApiError(
            400,
            f"The body is not valid JSON: {error}. Send one JSON object in UTF-8, without NaN.",
            param="body",
            code="invalid_json",
        ) from None
    if not isinstance(parsed, dict):
        raise ApiError(
            400,
            "The body is not a JSON object: send {...}.",
            param="body",
            code="invalid_json",
        )
    return parsed


_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_STRUCTURE = bytes(set(range(256)) - set(b"[]{},"))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1, ord(","): 0}
_SLICE = 64 * 1024
"""Scanned in slices, so that other threads get their turn between them."""


def check_nesting(body: bytes, limits: HttpLimits) -> None:
    """Refuse JSON that is too deep or has too many values, without recursion and before parsing.

    Bodies with few brackets and commas pass at once; else strings are taken out and the depth is
    the running sum of +1 for an opening bracket and -1 for a closing one.
    """
    opening = body.count(b"[") + body.count(b"{")
    if opening <= limits.json_depth and body.count(b",") <= limits.json_values:
        return
    structure = _STRING.sub(b"", body).translate(None, _NOT_STRUCTURE)
    if len(structure) > 2 * limits.json_values:
        raise ApiError(
            400,
            f"The body holds more than {limits.json_values} values: send fewer in one request.",
            param="body",
            code="json_too_large",
        )
    depth = 0
    for start in range(0, len(structure), _SLICE):
        depths = list(accumulate(map(_STEP.__getitem__, structure[start : start + _SLICE])))
        if depth + max(depths) > limits.json_depth:
            raise ApiError(
                400,
                f"The body is nested deeper than {limits.json_depth}: send it flatter.",
                param="body",
                code="json_too_deep",
            )
        depth += depths[-1]


__all__ = [
    "ClientDisconnect",
    "GuardedProtocol",
    "HttpLimits",
    "check_nesting",
    "guarded_protocol",
    "parse_json",
    "read_json",
]
