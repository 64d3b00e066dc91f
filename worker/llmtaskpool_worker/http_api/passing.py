"""A request on its way from a gate to a worker, and its answer on the way back, as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable
from dataclasses import dataclass

import aiohttp
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from yarl import URL

from llmtaskpool_worker.contract import COLD_START, REQUEST_ID
from llmtaskpool_worker.http_api.sse import while_connected

CONNECT_SECONDS = 2.0
MOST_REFUSAL_BYTES = 64 * 1024
_HOP_BY_HOP = frozenset(
    {
        "connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization",
        "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
_OURS = _HOP_BY_HOP | {"content-length", "content-encoding", "expect", REQUEST_ID}
"""Headers of a request that are not passed on: its body was read and unpacked, its id is ours."""

Headers = list[tuple[str, str]]


class Unreachable(Exception):
    """No connection could be had: nothing of the request was sent."""


class Broken(Exception):
    """The connection ended before an answer began."""


@dataclass(frozen=True, slots=True)
class Refused(Exception):
    """A worker can't take it now; ``answer`` is what it said, to come back after so many seconds.

    ``full``: it has too much to do, and not: it starts or ends.
    """

    answer: Response
    after_seconds: float
    full: bool


@dataclass(frozen=True, slots=True)
class Message:
    """A request as it is passed on; ``target`` is its path with its query, as they came."""

    method: str
    target: str
    headers: Headers
    body: bytes | AsyncIterable[bytes] | None

    @property
    def again(self) -> bool:
        """Whether it can be said a second time."""
        return self.body is None or isinstance(self.body, bytes)


def message_of(
    request: Request,
    body: bytes | AsyncIterable[bytes] | None,
    own_id: str,
    extra: Iterable[tuple[str, str]] = (),
) -> Message:
    """``body`` is unpacked already, or as it comes."""
    raw, query = request.scope.get("raw_path"), request.scope["query_string"]
    path = (raw or request.scope["path"].encode()).partition(b"?")[0].decode("latin-1")
    whole = body is None or isinstance(body, bytes)
    ours = _OURS if whole else _OURS - {"content-length", "content-encoding"}
    headers = [(n, v) for n, v in request.headers.items() if n.lower() not in ours]
    headers += [(REQUEST_ID, own_id), *extra]
    target = f"{path}?{query.decode('latin-1')}" if query else path
    return Message(request.method, target, headers, body)


class Passing:
    """The connections of a gate to workers: one for each request, closed with it."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    def open(self, head_bytes: int) -> None:
        """Be ready to connect; of the running event loop."""
        self._session = aiohttp.ClientSession(
            # A kept connection may just be closed by its worker: a fresh one is a round trip more.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            max_line_size=head_bytes,
            max_field_size=head_bytes,
        )

    async def close(self) -> None:
        """Close all; idempotent."""
        if self._session is not None:
            await self._session.close()

    async def answer(
        self, worker: str, message: Message, *, held: bool, done: Callable[[], None]
    ) -> Response:
        """A worker's answer, of which the head has come. ``done`` is called at its end.

        Raises:
            Unreachable, Broken, Refused: there is none, and ``done`` is not called.
        """
        assert self._session is not None  # noqa: S101  it is open
        try:
            found = await self._session.request(
                message.method,
                URL(f"http://{worker}{message.target}", encoded=True),
                headers=message.headers,
                data=message.body,
                allow_redirects=False,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Unreachable from error
        except (aiohttp.ClientError, OSError) as error:
            raise Broken from error
        after = found.headers.get("retry-after", "")
        if found.status in (429, 503) and after.isdecimal():
            raise Refused(await _whole(found), float(after), found.status == 429)
        return _Passed(found, _heads(found, held=held), done)


async def _whole(found: aiohttp.ClientResponse) -> Response:
    """A short answer, read to its end. Raises Broken."""
    body = b""
    try:
        async for part in found.content.iter_any():
            body += part
            if len(body) > MOST_REFUSAL_BYTES:
                break
    except (aiohttp.ClientError, OSError) as error:
        raise Broken from error
    finally:
        found.close()
    answer = Response(body, found.status)
    heads = [(n, v) for n, v in _heads(found, held=True) if n.lower() != "content-length"]
    answer.raw_headers = [(n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in heads]
    answer.raw_headers.append((b"content-length", str(len(body)).encode()))
    return answer


def _heads(found: aiohttp.ClientResponse, *, held: bool) -> Headers:
    heads = [
        (n, v) for n, v in found.headers.items() if n.lower() not in _HOP_BY_HOP | {REQUEST_ID}
    ]
    return [*heads, (COLD_START, "true")] if held else heads


class _Passed(Response):
    """Sends what a worker says as soon as it says it; a client that leaves takes it along."""

    def __init__(
        self, found: aiohttp.ClientResponse, heads: Headers, done: Callable[[], None]
    ) -> None:
        super().__init__(status_code=found.status)
        self.raw_headers = [(n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in heads]
        self._found, self._done = found, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        try:
            await while_connected(receive, self._send_all(send))
        finally:
            self._found.close()  # amid an answer the worker sees that nobody waits for the rest
            self._done()

    async def _send_all(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        async for part in self._found.content.iter_any():
            await send({"type": "http.response.body", "body": part, "more_body": True})
            await asyncio.sleep(0)  # a client that reads fast never makes ``send`` wait
        await send({"type": "http.response.body", "body": b"", "more_body": False})
