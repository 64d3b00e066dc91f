"""A proxy before the API server that sees the operator's writes and breaks what a test says.

Runs in a thread with its own event loop. Rules are plain attributes, read at each request.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

WRITES = {"POST", "PUT", "PATCH", "DELETE"}
_HOP = {"transfer-encoding", "connection", "content-length", "content-encoding", "keep-alive"}
_SESSION = web.AppKey("session", aiohttp.ClientSession)
_SERVER = web.AppKey("server", str)


@dataclass(frozen=True, slots=True)
class Write:
    """One write that came by, Leases and Events left out: those are not the pool's."""

    method: str
    path: str
    at: float
    status: int
    who: str
    """The bearer token, by which tests tell operators apart."""
    body: bytes = b""


class ApiProxy:
    """``fault(method, path)`` answers instead of the server: (status, headers), or None."""

    def __init__(self) -> None:
        self.url = ""
        self.writes: list[Write] = []
        self.before: Callable[[Write], bool] = lambda _write: False
        """True: the write is not done and its connection is cut."""
        self.after: Callable[[Write], bool] = lambda _write: False
        """True: the write is done and its answer is lost."""
        self.fault: Callable[[str, str], tuple[int, dict[str, str]] | None] = lambda _m, _p: None
        self.drop_event: Callable[[str, dict[str, Any]], bool] = lambda _p, _e: False
        self.replace_event: Callable[[str, dict[str, Any]], dict[str, Any]] = lambda _p, e: e
        self.freeze_watches = threading.Event()

    def fresh(self) -> None:
        """As new, for the next test; what is connected stays."""
        url = self.url
        self.__init__()
        self.url = url

    def of(self, namespace: str) -> list[Write]:
        """The writes in a namespace."""
        return [write for write in self.writes if f"/{namespace}/" in write.path]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = request.raw_path.split("?")[0]
        if (broken := self.fault(request.method, path)) is not None:
            status, headers = broken
            body = {"kind": "Status", "status": "Failure", "message": "by the test", "code": status}
            return web.json_response(body, status=status, headers=headers)
        counted = (
            request.method in WRITES and not path.endswith("/events") and "/leases" not in path
        )
        body = await request.read()
        who = request.headers.get("authorization", "").removeprefix("Bearer ")
        write = Write(request.method, path, time.monotonic(), 0, who, body)
        if counted and self.before(write):
            request.transport.abort()
            raise web.HTTPServiceUnavailable
        headers = {k: v for k, v in request.headers.items() if k.lower() not in {"host", *_HOP}}
        session: aiohttp.ClientSession = request.app[_SESSION]
        async with session.request(
            request.method,
            request.app[_SERVER] + request.raw_path,
            data=body or None,
            headers=headers,
        ) as answer:
            if counted:
                write = replace(write, at=time.monotonic(), status=answer.status)
                self.writes.append(write)
                if self.after(write):
                    await answer.read()
                    request.transport.abort()
                    raise web.HTTPServiceUnavailable
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP}
            response = web.StreamResponse(status=answer.status, headers=kept)
            with contextlib.suppress(aiohttp.ClientConnectionResetError):  # the operator is gone
                await response.prepare(request)
                if "watch=true" in request.raw_path:
                    async for line in self._events(path, answer):
                        await response.write(line)
                else:
                    await response.write(await answer.read())
                await response.write_eof()
            return response

    async def _events(self, path: str, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        async for line in answer.content:
            while self.freeze_watches.is_set():  # noqa: ASYNC110  set and cleared by a thread
                await asyncio.sleep(0.05)
            if not line.strip():
                continue
            event = json.loads(line)
            if not self.drop_event(path, event):
                yield json.dumps(self.replace_event(path, event)).encode() + b"\n"


@contextmanager
def api_proxy(kubeconfig: Path, folder: Path) -> Iterator[ApiProxy]:
    """A proxy that uses this kubeconfig's rights for whoever comes."""
    proxy = ApiProxy()
    loops: list[asyncio.AbstractEventLoop] = []
    started = threading.Event()
    stopping = asyncio.Event()

    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]

    async def serve() -> None:
        connector = aiohttp.TCPConnector(ssl=_context(cluster, user, folder), limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        app = web.Application(client_max_size=2**26)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, read_bufsize=2**21
        ) as session:
            app[_SESSION], app[_SERVER] = session, cluster["server"]
            app.router.add_route("*", "/{path:.*}", proxy.handle)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            loops.append(asyncio.get_running_loop())
            started.set()
            await stopping.wait()
            await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield proxy
    finally:
        loops[0].call_soon_threadsafe(stopping.set)
        thread.join(10)


def _context(cluster: dict[str, Any], user: dict[str, Any], folder: Path) -> ssl.SSLContext:
    def file(source: dict[str, Any], name: str) -> str:
        if name in source:
            return source[name]
        place = folder / f"proxy-{name}"
        place.write_bytes(base64.b64decode(source[f"{name}-data"]))
        return str(place)

    context = ssl.create_default_context(cafile=file(cluster, "certificate-authority"))
    context.check_hostname = False
    with contextlib.suppress(KeyError):
        certificate = file(user, "client-certificate")
        context.load_cert_chain(certificate, file(user, "client-key"))
    return context


def through(proxy: ApiProxy, who: str, folder: Path) -> Path:
    """A kubeconfig for ``who``, through the proxy."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": who,
        "clusters": [{"name": who, "cluster": {"server": proxy.url}}],
        "users": [{"name": who, "user": {"token": who}}],
        "contexts": [{"name": who, "context": {"cluster": who, "user": who}}],
    }
    path = folder / f"{who}.kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path
