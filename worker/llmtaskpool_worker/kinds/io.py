"""The built-in kinds of lane io: fetch over HTTP, read and write objects of a data folder."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from llmtaskpool_worker.kinds.content import OBJECT_BYTES, content_of, encoding_of, told
from llmtaskpool_worker.kinds.registry import (
    ArgumentsError,
    AsyncHandler,
    CallContext,
    HandlerError,
    Kind,
    Kinds,
)
from llmtaskpool_worker.kinds.threads import PIECE_BYTES, Threads

if TYPE_CHECKING:
    import httpx

    from llmtaskpool_worker.kinds.fetching import Resolve

FILE_THREADS = 4
"""So many objects are read or written at once: each takes a few times its bytes."""
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
    objects, allowed = _Objects(data_dir), _Hosts(fetch_hosts)
    kinds.register(Kind("io.read", objects.read, "io", objects.check_read))
    kinds.register(Kind("io.write", objects.write, "io", objects.check_write))
    kinds.register(
        Kind("io.fetch", _fetching(fetch_hosts, transport, resolve), "io", allowed.check)
    )


def _fetching(
    hosts: Collection[str], transport: httpx.AsyncBaseTransport | None, resolve: Resolve | None
) -> AsyncHandler:
    if not hosts:  # the check refuses all, and httpx takes 70 ms to import
        return _fetch_nothing
    from llmtaskpool_worker.kinds.fetching import Fetcher

    return Fetcher(transport, resolve).fetch


async def _fetch_nothing(_arguments: dict[str, Any], _: CallContext) -> dict[str, Any]:
    raise HandlerError("not_allowed", "no host is listed in LLMTASKPOOL_FETCH_HOSTS")


class _Objects:
    """Objects are files of one folder, by checked names; links are not followed."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._threads = Threads(FILE_THREADS, "files")

    def check_read(self, arguments: dict[str, Any]) -> None:
        _only(arguments, {"name", "encoding"})
        self._checked_name(arguments)
        encoding_of(arguments)

    def check_write(self, arguments: dict[str, Any]) -> None:
        _only(arguments, {"name", "encoding", "content"})
        self._checked_name(arguments)
        content = arguments.get("content")
        if isinstance(content, str) and PIECE_BYTES < len(content) <= 2 * OBJECT_BYTES:
            encoding_of(arguments)  # so long a text is decoded off the loop, when it is written
        else:
            content_of(arguments)

    async def read(self, arguments: dict[str, Any], _: CallContext) -> dict[str, Any]:
        path = self._path(self._checked_name(arguments))
        encoding = encoding_of(arguments)
        read = await self._threads.run(lambda: told(_read_file(path), encoding))
        return {"name": arguments["name"], **read}

    async def write(self, arguments: dict[str, Any], _: CallContext) -> dict[str, Any]:
        path = self._path(self._checked_name(arguments))
        return await self._threads.run(self._written, path, arguments)

    @staticmethod
    def _written(path: Path, arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            content = content_of(arguments)
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


class _Hosts:
    """Which URLs may be fetched: those of listed hosts."""

    def __init__(self, hosts: Collection[str]) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)

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
        if parts.scheme not in ("http", "https") or "@" in parts.netloc or not host:
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
        encoding_of(arguments)


def _only(arguments: dict[str, Any], known: Collection[str]) -> None:
    for name in arguments:
        if name not in known:
            raise ArgumentsError(
                f"arguments.{name[:80]}", f"arguments may be {', '.join(sorted(known))}"
            )
