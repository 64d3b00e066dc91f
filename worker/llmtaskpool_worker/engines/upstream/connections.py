"""HTTP to one server: requests that it answers in a stream, and questions about itself."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import aiohttp

from llmtaskpool_worker.engines.upstream.address import Address

NO_HTTP = aiohttp.ClientResponseError
"""What came is no HTTP."""
CONNECT_SECONDS = 5.0
BROKEN = (aiohttp.ClientError, OSError, TimeoutError)
"""A connection that can't be had, or broke; NO_HTTP among them."""


class Sent:
    """What is known of a request on its way: whether its connection had served another before."""

    reused = False


class Connections:
    """The connections to one server; no proxy, no cookies, no redirects.

    One that was kept alive may have been closed by the server in the moment it is used again, so
    there is a second way with fresh ones.
    """

    def __init__(self, address: Address, api_key_env: str | None) -> None:
        self.address = address
        self._key_env = api_key_env
        self._kept: aiohttp.ClientSession | None = None
        self._fresh: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Be ready to connect; of the running event loop."""
        self._kept = _session(keep=True)
        self._fresh = _session(keep=False)

    async def close(self) -> None:
        """Close all; idempotent."""
        for session in (self._kept, self._fresh):
            if session is not None:
                await session.close()

    async def post(
        self, route: str, body: bytes, sent: Sent, *, fresh: bool, at_root: bool = False
    ) -> Any:
        """The answer to a request, its body unread; whoever gets it closes it. Raises BROKEN.

        ``at_root``: the route follows the server's origin, and not what its models' routes do.
        """
        session = self._fresh if fresh else self._kept
        assert session is not None  # noqa: S101 - opened at the start
        return await session.post(
            f"{self.address.root if at_root else self.address.url}/{route}",
            data=body,
            headers=self._headers() | {"content-type": "application/json"},
            allow_redirects=False,
            trace_request_ctx=sent,
        )

    async def get(self, url: str, *, seconds: float, most: int) -> tuple[int, bytes]:
        """Status and at most ``most`` bytes of a page, within ``seconds``. Raises BROKEN."""
        session = self._kept
        assert session is not None  # noqa: S101 - opened at the start
        async with asyncio.timeout(seconds):
            response = await session.get(url, headers=self._headers(), allow_redirects=False)
            try:
                return response.status, await read_at_most(response, most)
            finally:
                response.close()

    def _headers(self) -> dict[str, str]:
        key = os.environ.get(self._key_env, "") if self._key_env else ""
        return {"authorization": f"Bearer {key}"} if key else {}


async def read_at_most(response: Any, most: int) -> bytes:
    """The body of an answer, cut. Raises BROKEN."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > most:
            del body[most:]
            break
    return bytes(body)


def _session(*, keep: bool) -> aiohttp.ClientSession:
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_note_reuse)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=not keep),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[trace],
        trust_env=False,
    )


async def _note_reuse(
    _session: aiohttp.ClientSession,
    context: SimpleNamespace,
    _: aiohttp.TraceConnectionReuseconnParams,
) -> None:
    sent = context.trace_request_ctx
    if isinstance(sent, Sent):
        sent.reused = True
