"""The public port of a local pool: spreads connections over the ready workers.

Which worker a request goes to is in routing.py. Bytes stream both ways; the slower side sets the
pace. Of HTTP the front knows only where messages end (http_framing.py): a client's connection
that rests between two exchanges is tied to no worker, so the next request goes wherever there is
room, a new worker gets its share from clients that keep their connections, and a worker that
leaves takes no request with it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass

from llmtaskpool_operator.local.http_framing import Exchanges
from llmtaskpool_operator.local.routing import Route, RoutingTable, owner_of


@dataclass(frozen=True, slots=True)
class FrontLimits:
    """``hold_seconds``: how long a request waits for a worker when none is routed.

    ``idle_seconds``: how long a client's connection may rest between two exchanges.
    """

    connections: int = 4096
    connect_seconds: float = 2.0
    hold_seconds: float = 10.0
    idle_seconds: float = 75.0
    linger_seconds: float = 2.0
    retry_after_seconds: int = 5


class Front(RoutingTable):
    """The listening port over its routes. All calls are from one asyncio loop."""

    def __init__(
        self, limits: FrontLimits | None = None, starting: Callable[[], bool] = lambda: False
    ) -> None:
        self.limits = limits or FrontLimits()
        super().__init__(self.limits.hold_seconds, starting)
        self.refused = 0
        self._server: asyncio.Server | None = None
        self._clients: set[_Downstream] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; the port. Raises OSError when the address can't be had."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Downstream(self), host, port, backlog=1024, reuse_address=True
        )
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Stop listening and cut what is still open; idempotent."""
        if self._server is not None:
            self._server.close()
            for client in list(self._clients):
                client.abort()
            await self._server.wait_closed()


class _Downstream(asyncio.Protocol):
    """One client's connection: finds a worker for each exchange and passes its bytes."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._exchanges = Exchanges()
        self._transport: asyncio.Transport | None = None
        self._upstream: _Upstream | None = None
        self._route: Route | None = None
        self._first = b""
        self._eof = False
        self._refused = False
        self._connecting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    # -- the client's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  a TCP server's transport is
        self._transport = transport
        self._front._clients.add(self)
        self._close_in(self._front.limits.idle_seconds)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return  # read to its end, so that the refusal is not lost to a reset
        if self._upstream is not None:
            self._exchanges.request(data)
            self._upstream.write(data)
            return
        self._first += data
        if self._connecting is None:
            self._cancel_timer()
            self._pause(True)
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    def eof_received(self) -> bool:
        self._eof = True
        if self._upstream is not None:
            self._upstream.write_eof()
            return True  # half-closed: an answer may still be on its way
        return self._connecting is not None

    def pause_writing(self) -> None:
        if self._upstream is not None:
            self._upstream.pause(True)

    def resume_writing(self) -> None:
        if self._upstream is not None:
            self._upstream.pause(False)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._cancel_timer()
        self._front._clients.discard(self)
        if self._connecting is not None:
            self._connecting.cancel()
        self._detach()

    # -- finding a worker

    async def _connect(self) -> None:
        front, tried = self._front, set[str]()
        if len(front._clients) > front.limits.connections:
            self._refuse(503, "too_many_connections", "Too many connections: try again later.")
            return
        loop = asyncio.get_running_loop()
        owner = owner_of(self._first)
        while (route := await front.pick(tried, owner)) is not None:
            route.links.add(self)  # counted at once: a burst must not see it as free
            self._route = route
            try:
                async with asyncio.timeout(front.limits.connect_seconds):
                    await loop.create_connection(lambda: _Upstream(self), route.host, route.port)
            except OSError:  # TimeoutError is one
                tried.add(route.worker_id)
                self._detach()
                continue
            return
        self._refuse(
            503, "no_worker_ready", "No worker is ready to take this request: try again later."
        )

    def linked(self, upstream: _Upstream) -> None:
        """The worker's side is connected: send what the client has said so far."""
        self._connecting = None
        if self._transport is None or self._transport.is_closing():
            upstream.end(abruptly=True)
            return
        self._upstream = upstream
        first, self._first = self._first, b""
        self._exchanges.request(first)
        upstream.write(first)
        self._pause(False)
        if self._eof:
            upstream.write_eof()

    # -- the worker's side

    def answered(self, upstream: _Upstream, data: bytes) -> None:
        """Bytes from the worker."""
        if upstream is not self._upstream or self._transport is None:
            return
        self._exchanges.answer(data)
        if not self._transport.is_closing():
            self._transport.write(data)
        if self._exchanges.idle:
            self._rest()

    def worker_ended(self, upstream: _Upstream) -> None:
        """The worker closed its side."""
        if upstream is not self._upstream or self._transport is None:
            return
        if self._exchanges.unanswered:
            self._detach()
            self._refuse(502, "worker_lost", "The worker of this request ended: send it again.")
        elif upstream.clean:
            self._transport.close()
        else:
            self.abort()  # a reset tells the client that the answer is not whole

    def _rest(self) -> None:
        """The exchange is over: the next one may go elsewhere."""
        self._detach(abruptly=False)
        if self._transport is None:
            return
        if self._eof:
            self._transport.close()
        else:
            self._close_in(self._front.limits.idle_seconds)

    def pause_client(self, paused: bool) -> None:
        """Stop or go on reading from the client: the worker's side is full or free."""
        self._pause(paused)

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    # -- small steps

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._front.refused += 1
        self._refused = True
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(error_answer(status, code, message, self._front.limits))
        if self._eof or not transport.can_write_eof():
            transport.close()
            return
        transport.write_eof()
        self._pause(False)
        self._close_in(self._front.limits.linger_seconds)

    def _detach(self, *, abruptly: bool = True) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.end(abruptly=abruptly)
        if self._route is not None:
            self._route.links.discard(self)
            if not self._route.links:
                self._route.empty.set()
            self._route = None

    def _pause(self, paused: bool) -> None:
        if self._transport is not None and not self._transport.is_closing():
            if paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _close_in(self, seconds: float) -> None:
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Upstream(asyncio.Protocol):
    """The connection to the worker that serves one client connection."""

    def __init__(self, downstream: _Downstream) -> None:
        self.clean = True
        self._downstream = downstream
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  a TCP client's transport is
        self._transport = transport
        self._downstream.linked(self)

    def data_received(self, data: bytes) -> None:
        self._downstream.answered(self, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.clean = exc is None
        self._downstream.worker_ended(self)

    def pause_writing(self) -> None:
        self._downstream.pause_client(True)

    def resume_writing(self) -> None:
        self._downstream.pause_client(False)

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def write_eof(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def pause(self, paused: bool) -> None:
        if self._transport is not None and not self._transport.is_closing():
            if paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def end(self, *, abruptly: bool) -> None:
        if self._transport is not None:
            if abruptly:
                self._transport.abort()
            else:
                self._transport.close()


def error_answer(status: int, code: str, message: str, limits: FrontLimits) -> bytes:
    """An HTTP answer in OpenAI's error shape that closes its connection."""
    body = json.dumps(
        {"error": {"message": message, "type": "server_error", "param": None, "code": code}}
    ).encode()
    phrase = {502: "Bad Gateway", 503: "Service Unavailable"}[status]
    head = (
        f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nretry-after: {limits.retry_after_seconds}\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode() + body
