"""One client's connection to the front: aiohttp's, with the clocks and bounds that it lacks.

aiohttp parses, answers in order, bounds what is pipelined and closes what rests too long. Here is
a clock and a bound for heads, a place among the others (front_places.py), an answer for a client
that has closed its sending side, and errors in OpenAI's shape.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import HttpVersion11, StreamReader, web
from aiohttp.helpers import set_exception
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from llmtaskpool_operator.local.front_answers import invalid_http, refusal
from llmtaskpool_operator.local.front_places import Place, Places

log = logging.getLogger("llmtaskpool.front")

READ_BYTES = 64 * 1024
"""Read from a socket at once. asyncio's own 256 KiB make malloc map and unmap memory each time."""

_HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class FrontLimits:
    """The front's bounds, in seconds, bytes and counts.

    ``hold_seconds``: how long a request waits for a worker when none is routed. ``idle_seconds``:
    how long a connection may rest between two exchanges. ``head_seconds``: how long a head may
    take. ``half_closed_seconds``: a client that has closed its sending side and to whom nothing
    could be said for so long is taken for gone. ``unread_seconds``: one that takes nothing of
    what is sent for so long is cut off. ``body_bytes`` is more than workers take: they refuse
    first, in their words. ``connections_kept``: of the connections, those for clients that had a
    good answer.
    """

    connections: int = 4096
    connections_kept: int = 512
    connect_seconds: float = 2.0
    hold_seconds: float = 10.0
    idle_seconds: float = 75.0
    head_seconds: float = 10.0
    half_closed_seconds: float = 2.0
    linger_seconds: float = 2.0
    unread_seconds: float = 60.0
    head_bytes: int = 64 * 1024
    header_count: int = 128
    body_bytes: int = 1024 * 1024 * 1024
    retry_after_seconds: int = 5


class Connections(web.Server):
    """The connections that are open; each is a Connection with a place among ``places``."""

    def __init__(self, handler: Any, limits: FrontLimits, places: Places) -> None:
        super().__init__(handler, handler_cancellation=True)
        self.limits = limits
        self.places = places
        self.by_place: dict[Place, Connection] = {}
        self.open: set[Connection] = set()

    def __call__(self) -> Connection:
        """A protocol for a connection that was just accepted."""
        return Connection(self)


class Connection(web.RequestHandler):
    """aiohttp's protocol with the front's bounds; it needs some of its private names.

    ``place`` is None for one that came when all places were taken: it gets a refusal.
    """

    def __init__(self, server: Connections) -> None:
        limits = server.limits
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=limits.idle_seconds,
            tcp_keepalive=False,  # _watch_peer does that
            access_log=None,  # type: ignore[arg-type]  # as aiohttp's own runners pass it
            max_line_size=limits.head_bytes,
            max_field_size=limits.head_bytes,
            max_headers=limits.header_count,
            lingering_time=limits.linger_seconds,
            auto_decompress=False,
        )
        self.place: Place | None = None
        self.half_closed = False
        self._server = server
        self._limits = limits
        self._payload: StreamReader = EMPTY_PAYLOAD
        self._asked = False
        """A whole request has come, and its answer has not gone."""
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._gone_timer: asyncio.TimerHandle | None = None
        self._moved_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place, and send away who rests longest when there is none."""
        if hasattr(transport, "max_size"):
            transport.max_size = READ_BYTES
        server = self._server
        peer = transport.get_extra_info("peername")
        self.place, victim = server.places.arrive(str(peer[0]) if peer else "", self._loop.time())
        if victim is not None:
            server.by_place.pop(victim).abort()
        if self.place is not None:
            server.by_place[self.place] = self
        elif len(server.open) >= server.places.most + server.places.kept:
            cast(asyncio.Transport, transport).abort()  # too many even to be told so
        server.open.add(self)
        super().connection_made(transport)
        _watch_peer(transport, self._limits.unread_seconds)
        self._expect_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give the place back and stop the clocks, which would keep this in memory."""
        self._stop(self._head_timer)
        self._stop(self._gone_timer)
        self._server.open.discard(self)
        if self.place is not None:
            self._server.places.leave(self.place)
            self._server.by_place.pop(self.place, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, head by head: of what is parsed in one piece, a fault would hide what was good."""
        if not data:  # aiohttp's own, to go on with what it holds
            super().data_received(data)
            return
        at = 0
        while at < len(data) and not self._close and not self._force_close:
            end = data.find(_HEAD_END, at) if self._payload.is_eof() else -1
            end = len(data) if end < 0 else end + len(_HEAD_END)
            self._parse(data[at:end] if at or end < len(data) else data)
            at = end

    def _parse(self, data: bytes) -> None:
        requests, payload = self._request_count, self._payload
        in_body = not payload.is_eof()
        super().data_received(data)
        if in_body and self._messages and isinstance(self._messages[-1][0], _ErrInfo):
            # What can't be read is that request's body, and not a next request: aiohttp would let
            # who reads the body wait for ever.
            self._messages.pop()
            set_exception(payload, web.RequestPayloadError("the body is no HTTP"))
        elif self._request_count != requests:
            self._stop(self._head_timer)
            self._head_timer, self._head_bytes, self._asked = None, 0, True
            if self._messages:
                self._payload = self._messages[-1][1]
            if self.place is not None:
                self._server.places.begin(self.place)
        elif not in_body:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.head_bytes:
                self._refuse_head()
            elif self._head_timer is None:
                self._expect_head()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The client will send no more: what it asked for in whole is still answered."""
        if not self._asked or not self._payload.is_eof():
            return None  # closes
        self.half_closed = True
        self._moved_at = self._loop.time()
        self._look_for_client()
        return True

    def moved(self) -> None:
        """Bytes went to the client: had it gone, the kernel would have heard so soon."""
        self._moved_at = self._loop.time()

    def abort(self) -> None:
        """Close now, so that the client sees that an answer is not whole."""
        if self.transport is not None:
            self.transport.abort()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """The exchange is over."""
        ended = await super().finish_response(request, resp, start_time)
        if not self._messages:
            self._asked = False
            if self.place is not None:
                self._server.places.end(self.place, good=resp.status < 400)
            if self.half_closed:
                self.close()
        return ended

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  aiohttp's words, not ours
    ) -> web.StreamResponse:
        """What can't be parsed, or what nobody foresaw, in our shape."""
        request._version = HttpVersion11  # ours, whatever the request says
        if request.writer.output_size > 0:
            self.abort()
            raise ConnectionResetError("half an answer is out: only cutting it off tells so")
        if isinstance(exc, LineTooLong) or "Too many headers" in str(exc):
            answer = _head_too_large(self._limits)
        elif status < 500:
            answer = invalid_http()
        else:
            log.error("request failed: %s", type(exc).__name__)
            answer = refusal(status, "internal_error", "The front could not pass this request on.")
        answer.force_close()
        return answer

    # -- clocks

    def _expect_head(self) -> None:
        self._head_timer = self._loop.call_later(self._limits.head_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._asked:
            self._expect_head()  # nobody waits for that head yet
        else:
            self.force_close()

    def _refuse_head(self) -> None:
        """In its turn, behind the answers that are due before it."""
        self._messages.append((_ErrInfo(400, LineTooLong("", ""), ""), EMPTY_PAYLOAD))
        self._request_count += 1
        self._head_bytes = 0
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _look_for_client(self) -> None:
        left = self._moved_at + self._limits.half_closed_seconds - self._loop.time()
        if left <= 0:
            self.abort()
        else:
            self._gone_timer = self._loop.call_later(left, self._look_for_client)

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


def _head_too_large(limits: FrontLimits) -> web.Response:
    return refusal(
        431,
        "headers_too_large",
        f"The headers are more than {limits.header_count} or longer than {limits.head_bytes} "
        "bytes: send fewer.",
    )


def _watch_peer(transport: asyncio.BaseTransport, unread_seconds: float) -> None:
    """Let the kernel end a connection whose peer is gone or reads nothing (RFC 5482)."""
    connected = transport.get_extra_info("socket")
    if connected is None or connected.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        milliseconds = max(1, round(unread_seconds * 1000))
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
