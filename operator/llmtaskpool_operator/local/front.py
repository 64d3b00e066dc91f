"""The public port of a local pool: spreads requests over the ready workers.

aiohttp's server reads the requests and its client passes them on, over connections to each worker
that are kept; between them is which worker a request goes to (routing.py) and what is passed on.
Bytes stream both ways and are never held: the slower side sets the pace. A request is sent once:
only when no connection could be had does it go to another worker.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import struct
from collections.abc import AsyncIterator, Callable

import aiohttp
from aiohttp import StreamReader, web
from yarl import URL

from llmtaskpool_operator.local.front_answers import (
    PassedAnswer,
    invalid_http,
    passed_on,
    refusal,
    understood,
)
from llmtaskpool_operator.local.front_connection import (
    READ_BYTES,
    Connection,
    Connections,
    FrontLimits,
)
from llmtaskpool_operator.local.front_places import Places
from llmtaskpool_operator.local.routing import Route, RoutingTable

log = logging.getLogger("llmtaskpool.front")

_KEEP_SECONDS = 15.0
"""Shorter than workers keep a connection: one that is used again is not just being closed."""
_SPARE_FILES = 256
"""Descriptors that are for other things than the front's connections."""


class Front(RoutingTable):
    """The listening port over its routes. All calls are from one asyncio loop."""

    def __init__(
        self, limits: FrontLimits | None = None, starting: Callable[[], bool] = lambda: False
    ) -> None:
        self.limits = limits or FrontLimits()
        super().__init__(self.limits.hold_seconds, starting)
        self.refused = 0
        self._server: asyncio.Server | None = None
        self._clients: Connections | None = None
        self._workers: aiohttp.ClientSession | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the port. Raises OSError when the address can't be had."""
        limits = self.limits
        most = _connections_possible(limits.connections)
        places = Places(most, min(limits.connections_kept, most // 8))
        clients = Connections(self._serve, limits, places)
        self._server = await asyncio.get_running_loop().create_server(
            clients, host, port, backlog=1024, reuse_address=True
        )
        self._clients = clients
        self._workers = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=_KEEP_SECONDS, use_dns_cache=False
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            max_line_size=limits.head_bytes,
            max_field_size=limits.head_bytes,
        )
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Stop listening and cut what is still open; idempotent."""
        if self._server is None or self._clients is None or self._workers is None:
            return
        self._server.close()
        for client in list(self._clients.open):
            client.abort()
        await self._clients.shutdown(self.limits.linger_seconds)
        await self._workers.close()
        await self._server.wait_closed()

    def clients(self) -> int:
        """Connections of clients that are open."""
        return len(self._clients.open) if self._clients is not None else 0

    # -- one request

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, Connection)  # noqa: S101  Connections makes no others
        answer = await self._answered(request, connection)
        if request.version < aiohttp.HttpVersion11:
            answer.force_close()
        return answer

    async def _answered(
        self, request: web.BaseRequest, connection: Connection
    ) -> web.StreamResponse:
        if connection.place is None:
            answer = self._refuse(503, "too_many_connections", "Too many connections: try later.")
            answer.force_close()
            return answer
        if not understood(request._message.version, request.headers):
            request._version = aiohttp.HttpVersion11  # the answer's
            answer = invalid_http()
            answer.force_close()
            return answer
        target = request.rel_url.raw_path_qs
        tried, owner = set[str](), self.keeper(target)
        body = _Body(request, self.limits.body_bytes)
        while (route := await self.pick(tried, owner)) is not None:
            route.links.add(link := object())  # counted at once: a burst must not see it as free
            try:
                return await self._passed_to(route, request, body, connection, target)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
                tried.add(route.worker_id)
            finally:
                route.links.discard(link)
                if not route.links:
                    route.empty.set()
        return self._refuse(
            503, "no_worker_ready", "No worker is ready to take this request: try again later."
        )

    async def _passed_to(
        self,
        route: Route,
        request: web.BaseRequest,
        body: _Body,
        connection: Connection,
        target: str,
    ) -> web.StreamResponse:
        """Send the request to a worker and its answer to the client.

        Raises ClientConnectorError and ConnectionTimeoutError when nothing of it was sent.
        """
        assert self._workers is not None  # noqa: S101  it listens
        headers = passed_on(request.headers)
        try:
            upstream = await self._workers.request(
                request.method,
                URL(f"http://{route.host}:{route.port}{target}", encoded=True),
                headers=headers,
                data=body.data(),
                expect100=body.awaited,
                allow_redirects=False,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            raise
        except (aiohttp.ClientError, OSError):
            return self._unanswered(body)
        try:
            return await _answer(upstream, request, connection, route)
        finally:
            if not body.passed or not upstream.content.at_eof():
                _cut(upstream)

    def _unanswered(self, body: _Body) -> web.Response:
        if body.refusal is not None:
            body.refusal.force_close()
            return body.refusal
        return self._refuse(
            502,
            "worker_lost",
            "The worker of this request ended before it answered: send the request again.",
        )

    def _refuse(self, status: int, code: str, message: str) -> web.Response:
        self.refused += 1
        return refusal(status, code, message, self.limits.retry_after_seconds)


async def _answer(
    upstream: aiohttp.ClientResponse,
    request: web.BaseRequest,
    connection: Connection,
    route: Route,
) -> web.StreamResponse:
    content = upstream.content
    transport = upstream.connection.transport if upstream.connection is not None else None
    if transport is not None and hasattr(transport, "max_size"):
        transport.max_size = READ_BYTES
    route.answers += 1
    try:
        first = content.read_nowait()
        answer = PassedAnswer(
            upstream.status,
            upstream.reason,
            passed_on(upstream.headers),
            at_once=not first and not content.at_eof(),
        )
        if upstream.status >= 400 and upstream.headers.get("connection", "").lower() == "close":
            answer.force_close()  # what the worker would not read on is no next request here
        await answer.prepare(request)
        if first:
            await answer.write(first)
        sized = "content-length" in upstream.headers
        while part := await _next_piece(content, sized=sized):
            await answer.write(part)
            route.answers += 1
            connection.moved()
    except (aiohttp.ClientPayloadError, aiohttp.ClientOSError) as error:
        connection.abort()  # a reset tells the client that the answer is not whole
        raise ConnectionResetError("the worker ended amid its answer") from error
    await answer.write_eof()
    return answer


async def _next_piece(content: StreamReader, *, sized: bool) -> bytes:
    """What has come, as soon as it comes; nothing at the end.

    Of a body with a length a piece as it was read, which saves a copy of it; of one in chunks all
    that is here, because a chunk may be one byte.
    """
    if sized:
        piece, _ = await content.readchunk()
        return piece
    return await content.readany()


class _Body:
    """A request's body on its way. ``passed``: the worker has all of it.

    ``awaited``: the client waits for a 100 before it sends it. ``refusal``: why it could not be
    passed on, when that is the client's doing.
    """

    def __init__(self, request: web.BaseRequest, most: int) -> None:
        self.refusal: web.Response | None = None
        self._request = request
        self._content: StreamReader = request.content
        self._most = most
        self.passed = self._whole = self._content.is_eof()
        self._held = (self._content.read_nowait() or None) if self._whole else None
        self.awaited = (
            not self._whole
            and request.version >= aiohttp.HttpVersion11
            and request.headers.get("expect", "").lower() == "100-continue"
        )

    def data(self) -> bytes | AsyncIterator[bytes] | None:
        """For aiohttp's client: what is here already in one piece, else as it comes."""
        return self._held if self._whole else self._parts()

    async def _parts(self) -> AsyncIterator[bytes]:
        if self.awaited:
            await self._request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._request.writer.output_size = 0
        yield b""  # sends the head, which aiohttp holds back for the first part
        size, request = 0, self._request
        try:
            sized = "content-length" in request.headers
            while part := await _next_piece(self._content, sized=sized):
                size += len(part)
                if size > self._most:
                    raise ValueError("too long")  # noqa: TRY301  stops the client's writer
                yield part
        except web.RequestPayloadError:
            self.refusal = invalid_http()
            raise
        except ValueError:
            self.refusal = refusal(
                413,
                "body_too_large",
                f"The body is longer than {self._most} bytes: send less in one request.",
            )
            raise
        self.passed = True


def _cut(upstream: aiohttp.ClientResponse) -> None:
    """Reset the connection to the worker: nobody waits for the rest, which is to stop at once."""
    transport = upstream.connection.transport if upstream.connection is not None else None
    if transport is not None:
        connected = transport.get_extra_info("socket")
        if connected is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    upstream.close()


def _connections_possible(wanted: int) -> int:
    """As many of ``wanted`` as this process may open files for: one for each side."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * wanted + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, (soft - _SPARE_FILES) // 2))
