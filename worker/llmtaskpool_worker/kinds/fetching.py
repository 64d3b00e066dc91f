"""io.fetch: HTTP to hosts that are listed, and to no inner address behind their names."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import certifi
import httpx

from llmtaskpool_worker.kinds.content import OBJECT_BYTES, SHORT_BYTES, encoding_of, told
from llmtaskpool_worker.kinds.registry import CallContext, HandlerError
from llmtaskpool_worker.kinds.threads import Threads

FETCH_SECONDS = 30.0
FETCH_THREADS = 4
"""So many long answers are made text at once: each takes a few times its bytes."""
Resolve = Callable[[str], Awaitable[list[str]]]
"""The addresses that a host's name stands for. Raises OSError."""

_SENT = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "llmtaskpool"}
"""No compression: a small answer must not unfold to a huge one."""
_TIMEOUT = dict.fromkeys(("connect", "read", "write", "pool"), FETCH_SECONDS)


class Fetcher:
    """GET and POST; redirects are answered and not followed.

    Of httpx, though aiohttp takes half of its time: that one closes TLS by reading on for 30 s,
    reads interim answers without end, takes a reset for the end of a body, and writes a URL's
    escapes anew.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        self._transport = transport
        self._resolve = resolve or (_resolve if transport is None else None)
        self._threads = Threads(FETCH_THREADS, "fetch")
        self._trust: asyncio.Task[ssl.SSLContext] | None = None

    async def fetch(self, arguments: dict[str, Any], _: CallContext) -> dict[str, Any]:
        """The kind's handler, of checked arguments. Raises HandlerError."""
        try:
            async with asyncio.timeout(FETCH_SECONDS), await self._connections() as connections:
                return await self._send(connections, arguments)
        except TimeoutError:
            raise HandlerError(
                "not_fetched", f"the answer took longer than {FETCH_SECONDS:g} seconds"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise HandlerError("not_fetched", f"fetching failed: {type(error).__name__}") from None

    async def _connections(self) -> httpx.AsyncBaseTransport:
        """Each task's own, as what one site said must not reach another's task.

        No client of httpx's around them: redirects, cookies and proxies are not wanted.
        """
        if self._transport is not None:
            return self._transport
        return httpx.AsyncHTTPTransport(verify=await self._context(), trust_env=False)

    async def _send(
        self, connections: httpx.AsyncBaseTransport, arguments: dict[str, Any]
    ) -> dict[str, Any]:
        url, body = httpx.URL(str(arguments["url"])), arguments.get("body")
        request = httpx.Request(
            arguments.get("method", "GET"),
            url,
            content=body.encode() if body else None,
            headers=_SENT,
            extensions={"timeout": _TIMEOUT},
        )
        address = await self._address(url.host)
        if address is not None:
            # To the address that was checked: asked again, the name could lead elsewhere.
            request.url = url.copy_with(host=address)
            request.extensions["sni_hostname"] = url.host
        answer = await connections.handle_async_request(request)
        try:
            size, content = 0, []
            async for part in answer.aiter_raw():
                content.append(part)
                size += len(part)
                if size > OBJECT_BYTES:
                    raise HandlerError("too_large", f"more than {OBJECT_BYTES} bytes came")
        finally:
            await answer.aclose()
        encoding = encoding_of(arguments)
        if size <= SHORT_BYTES:
            return {"status": answer.status_code, **told(content, encoding)}
        return {"status": answer.status_code, **await self._threads.run(told, content, encoding)}

    async def _context(self) -> ssl.SSLContext:
        """Whom TLS trusts: read from disk once, in a thread, as it takes tens of milliseconds."""
        if self._trust is None or _failed(self._trust):
            self._trust = asyncio.ensure_future(self._threads.run(_trusted))
        return await asyncio.shield(self._trust)

    async def _address(self, host: str) -> str | None:
        """The address to call for a listed name; None where the address itself is listed.

        A listed name must not lead to an inner address: link-local ones answer with credentials.
        """
        if self._resolve is None or _is_address(host) or host == "localhost":
            return None
        try:
            found = await self._resolve(host)
        except OSError:
            raise HandlerError("not_fetched", "the host's name can't be resolved") from None
        if not found or not all(ipaddress.ip_address(address).is_global for address in found):
            raise HandlerError(
                "not_allowed", "the host's name leads to an inner address: list that address"
            )
        return found[0]


def _trusted() -> ssl.SSLContext:
    """Of the public authorities, or of those that LLMTASKPOOL_TRUSTED_CA_FILE made of them."""
    return ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or certifi.where())


def _failed(made: asyncio.Task[ssl.SSLContext]) -> bool:
    return made.done() and (made.cancelled() or made.exception() is not None)


_NAMES = Threads(16, "names")


async def _resolve(host: str) -> list[str]:
    entries = await _NAMES.run(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in entries]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
