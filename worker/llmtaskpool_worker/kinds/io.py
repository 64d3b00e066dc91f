"""The built-in kinds of lane io: fetch over HTTP, read and write objects of a data folder."""

from __future__ import annotations

import asyncio
import base64
import binascii
import codecs
import ipaddress
import os
import re
import socket
import ssl
import stat
import tempfile
import threading
from collections.abc import Awaitable, Callable, Collection, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from llmtaskpool_worker.kinds.registry import ArgumentsError, CallContext, HandlerError, Kind, Kinds
from llmtaskpool_worker.kinds.threads import PIECE_BYTES, Threads

OBJECT_BYTES = 16 * 1024 * 1024
"""The largest object that is read, written or fetched."""
FETCH_SECONDS = 30.0
FILE_THREADS, FETCH_THREADS = 4, 4
"""So many objects are read, written or decoded at once: each takes a few times its bytes."""
Resolve = Callable[[str], Awaitable[list[str]]]
"""The addresses that a host's name stands for. Raises OSError."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}){0,7}")


def register_io_kinds(
    kinds: Kinds,
    *,
    data_dir: Path | None,
    fetch_hosts: Collection[str],
    transport: httpx.AsyncBaseTransport | None = None,
    resolve: Resolve | None = None,
) -> None:
    """Register io.fetch, io.read and io.write. What isn't configured refuses with the remedy."""
    objects = _Objects(data_dir)
    fetcher = _Fetcher(
        frozenset(host.lower() for host in fetch_hosts),
        transport,
        resolve if resolve is not None or transport is not None else _resolve,
    )
    kinds.register(Kind("io.read", objects.read, "io", objects.check_read))
    kinds.register(Kind("io.write", objects.write, "io", objects.check_write))
    kinds.register(Kind("io.fetch", fetcher.fetch, "io", fetcher.check))


class _Objects:
    """Objects are files of one folder, by checked names; links are not followed."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._threads = Threads(FILE_THREADS, "files")

    def check_read(self, arguments: dict[str, Any]) -> None:
        _only(arguments, {"name", "encoding"})
        self._checked_name(arguments)
        _encoding(arguments)

    def check_write(self, arguments: dict[str, Any]) -> None:
        _only(arguments, {"name", "encoding", "content"})
        self._checked_name(arguments)
        content = arguments.get("content")
        if isinstance(content, str) and PIECE_BYTES < len(content) <= 2 * OBJECT_BYTES:
            _encoding(arguments)  # so long a text is decoded off the loop, when it is written
        else:
            _content(arguments)

    async def read(self, arguments: dict[str, Any], _: CallContext) -> dict[str, Any]:
        path = self._path(self._checked_name(arguments))
        encoding = _encoding(arguments)
        told = await self._threads.run(lambda: _told(_read_file(path), encoding))
        return {"name": arguments["name"], **told}

    async def write(self, arguments: dict[str, Any], _: CallContext) -> dict[str, Any]:
        path = self._path(self._checked_name(arguments))
        return await self._threads.run(self._written, path, arguments)

    @staticmethod
    def _written(path: Path, arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            content = _content(arguments)
        except ArgumentsError as error:
            raise HandlerError("invalid", error.message) from None
        _write_file(path, content)
        return {"name": arguments["name"], "bytes": len(content)}

    def _checked_name(self, arguments: dict[str, Any]) -> str:
        if self._folder is None:
            raise ArgumentsError(
                "kind", "this worker has no data folder: set LLMTASKPOOL_DATA_DIR (--data-dir)"
            )
        name = arguments.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ArgumentsError(
                "arguments.name",
                "arguments.name must be 1 to 8 parts of letters, digits, '_', '-' and '.' "
                "divided by '/'; no part begins with a dot",
            )
        return name

    def _path(self, name: str) -> Path:
        assert self._folder is not None  # noqa: S101 - checked with the name
        root = self._folder.resolve()
        path = root / name
        if not path.parent.resolve().is_relative_to(root) or path.is_symlink():
            raise HandlerError("not_found", "there is no such object")
        return path


def _read_file(path: Path) -> list[bytes]:
    try:
        # O_NONBLOCK: a named pipe must not hold the thread until somebody writes to it.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        raise HandlerError("not_found", "there is no such object") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise HandlerError("not_found", "there is no such object")
    with os.fdopen(handle, "rb") as stream:
        size, content = 0, []
        while size <= OBJECT_BYTES and (piece := stream.read(PIECE_BYTES)):
            content.append(piece)
            size += len(piece)
    if size > OBJECT_BYTES:
        raise HandlerError("too_large", f"the object is larger than {OBJECT_BYTES} bytes")
    return content


def _write_file(path: Path, content: bytes) -> None:
    """Whole or not at all: a reader sees the old object or the new one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as unfinished:
            try:
                unfinished.write(content)
                unfinished.flush()
                Path(unfinished.name).replace(path)
            except OSError:
                Path(unfinished.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise HandlerError("not_written", f"writing failed: {error.strerror}") from None


class _Fetcher:
    """HTTP GET and POST to listed hosts only; redirects are answered and not followed."""

    def __init__(
        self,
        hosts: frozenset[str],
        transport: httpx.AsyncBaseTransport | None,
        resolve: Resolve | None,
    ) -> None:
        self._hosts, self._transport, self._resolve = hosts, transport, resolve
        self._threads = Threads(FETCH_THREADS, "fetch")
        self._trust: asyncio.Task[ssl.SSLContext] | None = None

    def check(self, arguments: dict[str, Any]) -> None:
        _only(arguments, {"url", "method", "body", "encoding"})
        url = arguments.get("url")
        if not isinstance(url, str) or len(url) > 2048:
            raise ArgumentsError("arguments.url", "arguments.url must be a URL of at most 2048")
        try:
            parts = urlsplit(url)
            host = (parts.hostname or "").lower()
            port = parts.port
        except ValueError:
            raise ArgumentsError("arguments.url", "arguments.url is not a URL") from None
        if parts.scheme not in ("http", "https") or parts.username or not host:
            raise ArgumentsError("arguments.url", "arguments.url must be http(s)://host/...")
        if host not in self._hosts and f"{host}:{port}" not in self._hosts:
            raise ArgumentsError(
                "arguments.url",
                f"host {host[:80]!r} is not allowed here: list it in LLMTASKPOOL_FETCH_HOSTS",
            )
        if arguments.get("method", "GET") not in ("GET", "POST"):
            raise ArgumentsError("arguments.method", "arguments.method must be GET or POST")
        if not isinstance(arguments.get("body", ""), str):
            raise ArgumentsError("arguments.body", "arguments.body must be a string")
        _encoding(arguments)

    async def fetch(self, arguments: dict[str, Any], _: CallContext) -> dict[str, Any]:
        try:
            async with (
                asyncio.timeout(FETCH_SECONDS),
                httpx.AsyncClient(
                    transport=self._transport,
                    verify=True if self._transport is not None else await self._context(),
                    timeout=FETCH_SECONDS,
                    trust_env=False,
                ) as client,
            ):
                return await self._send(client, arguments)
        except TimeoutError:
            raise HandlerError(
                "not_fetched", f"the answer took longer than {FETCH_SECONDS:g} seconds"
            ) from None
        except httpx.HTTPError as error:
            raise HandlerError("not_fetched", f"fetching failed: {type(error).__name__}") from None

    async def _send(self, client: httpx.AsyncClient, arguments: dict[str, Any]) -> dict[str, Any]:
        url, body = httpx.URL(str(arguments["url"])), arguments.get("body")
        request = client.build_request(
            arguments.get("method", "GET"),
            url,
            content=body.encode() if body else None,
            headers={"accept-encoding": "identity"},  # a small answer must not unfold to a huge one
        )
        address = await self._address(url.host)
        if address is not None:
            # To the address that was checked: asked again, the name could lead elsewhere.
            request.url = url.copy_with(host=address)
            request.extensions["sni_hostname"] = url.host
        answer = await client.send(request, stream=True)
        try:
            size, content = 0, []
            async for part in answer.aiter_raw():
                content.append(part)
                size += len(part)
                if size > OBJECT_BYTES:
                    raise HandlerError("too_large", f"more than {OBJECT_BYTES} bytes came")
        finally:
            await answer.aclose()
        told = await self._threads.run(_told, content, _encoding(arguments))
        return {"status": answer.status_code, **told}

    async def _context(self) -> ssl.SSLContext:
        """Whom TLS trusts: read from disk once, in a thread, as it takes tens of milliseconds.

        The client is each task's own: a shared one would keep the cookies of one task for the next.
        """
        if self._trust is None or _failed(self._trust):
            making = self._threads.run(httpx.create_ssl_context, trust_env=False)
            self._trust = asyncio.ensure_future(making)
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


def _only(arguments: dict[str, Any], known: Collection[str]) -> None:
    for name in arguments:
        if name not in known:
            raise ArgumentsError(
                f"arguments.{name[:80]}", f"arguments may be {', '.join(sorted(known))}"
            )


def _encoding(arguments: dict[str, Any]) -> str:
    encoding = arguments.get("encoding", "text")
    if encoding not in ("text", "base64"):
        raise ArgumentsError("arguments.encoding", "arguments.encoding must be text or base64")
    return str(encoding)


def _content(arguments: dict[str, Any]) -> bytes:
    content = arguments.get("content")
    if not isinstance(content, str):
        raise ArgumentsError("arguments.content", "arguments.content must be a string")
    if len(content) > 2 * OBJECT_BYTES:
        raise ArgumentsError("arguments.content", f"at most {OBJECT_BYTES} bytes")
    decode: Callable[[str], bytes] = str.encode
    if _encoding(arguments) == "base64":
        decode = _from_base64
    pieces = [content[i : i + PIECE_BYTES] for i in range(0, len(content), PIECE_BYTES)]
    padded = decode is _from_base64 and any(piece.endswith("=") for piece in pieces[:-1])
    try:
        decoded = decode("=") if padded else b"".join(map(decode, pieces))
    except (binascii.Error, UnicodeEncodeError, ValueError):
        raise ArgumentsError("arguments.content", "arguments.content can't be decoded") from None
    if len(decoded) > OBJECT_BYTES:
        raise ArgumentsError("arguments.content", f"at most {OBJECT_BYTES} bytes")
    return decoded


def _from_base64(content: str) -> bytes:
    return base64.b64decode(content, validate=True)


_MAKING_TEXT = threading.Lock()
"""Held while a long text is made: two at once would hold Python's lock for twice as long."""


def _told(content: list[bytes], encoding: str) -> dict[str, Any]:
    with _MAKING_TEXT:
        pieces = _in_base64(content) if encoding == "base64" else _in_text(content)
        return {"content": "".join(pieces), "encoding": encoding}


def _in_base64(content: list[bytes]) -> Iterator[str]:
    left = b""
    for piece in content:
        whole = left + piece
        end = len(whole) // 3 * 3  # what needs no padding
        left = whole[end:]
        yield binascii.b2a_base64(whole[:end], newline=False).decode()
    yield binascii.b2a_base64(left, newline=False).decode()


def _in_text(content: list[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in content:
        yield decoder.decode(piece)
    yield decoder.decode(b"", final=True)
