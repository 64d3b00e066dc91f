"""io.fetch: HTTP to hosts that are listed, and to no inner address behind their names."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import certifi
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from llmtaskpool_worker.kinds.content import OBJECT_BYTES, SHORT_BYTES, encoding_of, told
from llmtaskpool_worker.kinds.registry import CallContext, HandlerError
from llmtaskpool_worker.kinds.threads import Threads

FETCH_SECONDS = 30.0
FETCH_THREADS = 4
"""So many long answers are made text at once: each takes a few times its bytes."""
HEAD_BYTES = 64 * 1024
"""The longest line of an answer's head."""
SENT = {"accept-encoding": "identity", "user-agent": "llmtaskpool"}
"""No compression: a small answer must not unfold to a huge one."""
Resolve = Callable[[str], Awaitable[list[str]]]
"""The addresses that a host's name stands for. Raises OSError."""
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=None)
"""FETCH_SECONDS is the bound of all of it."""


class Fetcher:
    """GET and POST; redirects are answered and not followed, cookies neither kept nor sent."""

    def __init__(self, resolve: Resolve | None = None) -> None:
        self._resolver = _Outer(resolve or _resolve)
        self._threads = Threads(FETCH_THREADS, "fetch")
        self._trust: asyncio.Task[ssl.SSLContext] | None = None

    async def fetch(self, arguments: dict[str, Any], _: CallContext) -> dict[str, Any]:
        """The kind's handler, of checked arguments. Raises HandlerError."""
        try:
            async with asyncio.timeout(FETCH_SECONDS), await self._session() as session:
                status, content = await _asked(session, arguments)
        except TimeoutError:
            raise HandlerError(
                "not_fetched", f"the answer took longer than {FETCH_SECONDS:g} seconds"
            ) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise HandlerError("not_fetched", f"fetching failed: {type(error).__name__}") from None
        encoding = encoding_of(arguments)
        if sum(map(len, content)) <= SHORT_BYTES:
            return {"status": status, **told(content, encoding)}
        return {"status": status, **await self._threads.run(told, content, encoding)}

    async def _session(self) -> aiohttp.ClientSession:
        """Each task's own, with connections that nobody had before it: it costs little."""
        connector = aiohttp.TCPConnector(
            resolver=self._resolver,
            use_dns_cache=False,
            force_close=True,
            ssl=await self._context(),
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=_NO_TIMEOUT,
            headers=SENT,
            skip_auto_headers=("content-type",),
            auto_decompress=False,
            max_line_size=HEAD_BYTES,
            max_field_size=HEAD_BYTES,
        )

    async def _context(self) -> ssl.SSLContext:
        """Whom TLS trusts: read from disk once, in a thread, as it takes tens of milliseconds."""
        if self._trust is None or _failed(self._trust):
            self._trust = asyncio.ensure_future(self._threads.run(_trusted))
        return await asyncio.shield(self._trust)


async def _asked(
    session: aiohttp.ClientSession, arguments: Mapping[str, Any]
) -> tuple[int, list[bytes]]:
    body = arguments.get("body")
    url = _read(str(arguments["url"]))
    asked = session.request(
        arguments.get("method", "GET"),
        url,
        data=body.encode() if body else None,
        allow_redirects=False,
    )
    async with asked as answer:
        size, content = 0, []
        async for part in answer.content.iter_any():
            content.append(part)
            size += len(part)
            if size > OBJECT_BYTES:
                answer.close()
                raise HandlerError("too_large", f"more than {OBJECT_BYTES} bytes came")
        return answer.status, content


def _read(given: str) -> URL:
    """A URL as it is called, which must lead to where the one that was checked does."""
    url, checked = URL(given), urlsplit(given)
    hosts = {(name or "").lower() for name in (url.host, url.raw_host)}
    same_host = (checked.hostname or "").lower() in hosts
    if not same_host or (url.scheme, url.explicit_port) != (checked.scheme, checked.port):
        raise HandlerError("not_allowed", "the URL can be read in two ways")
    return url


class _Outer(AbstractResolver):
    """The addresses of a listed name, none of which may be an inner one.

    An inner address must be listed itself: link-local ones answer with credentials. What is called
    is what was checked: asked again, the name could lead elsewhere.
    """

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """See AbstractResolver. Raises HandlerError."""
        try:
            found = await (_resolve(host) if host == "localhost" else self._resolve(host))
        except OSError:
            raise HandlerError("not_fetched", "the host's name can't be resolved") from None
        addresses = [ipaddress.ip_address(one) for one in found]
        inner = host != "localhost" and not all(one.is_global for one in addresses)
        if not addresses or inner:
            raise HandlerError(
                "not_allowed", "the host's name leads to an inner address: list that address"
            )
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=_FAMILY[address.version],
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
            if family in (socket.AF_UNSPEC, _FAMILY[address.version])
        ]

    async def close(self) -> None:
        """Holds nothing."""


_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_NAMES = Threads(16, "names")


async def _resolve(host: str) -> list[str]:
    entries = await _NAMES.run(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in entries]


def _trusted() -> ssl.SSLContext:
    """Of the public authorities, or of those that LLMTASKPOOL_TRUSTED_CA_FILE made of them."""
    return ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or certifi.where())


def _failed(made: asyncio.Task[ssl.SSLContext]) -> bool:
    return made.done() and (made.cancelled() or made.exception() is not None)
