"""The operator's open pages: /livez and /readyz by progress, /metrics."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from llmtaskpool_operator.cluster.metrics import OperatorMetrics


class HealthPages:
    """``alive`` and ``fault`` (why not ready; empty: ready) are asked at each request."""

    def __init__(
        self, metrics: OperatorMetrics, *, alive: Callable[[], bool], fault: Callable[[], str]
    ) -> None:
        self._metrics = metrics
        self._alive = alive
        self._fault = fault

    @asynccontextmanager
    async def serving(self, host: str, port: int) -> AsyncIterator[int]:
        """Listen; gives the port. Raises OSError when it is taken."""
        app = web.Application(client_max_size=1024)
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._page)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await _site(runner, host, port).start()
            yield int(runner.addresses[0][1])
        finally:
            await runner.cleanup()

    async def _livez(self, _request: web.Request) -> web.Response:
        alive = self._alive()
        return web.json_response({"alive": alive}, status=200 if alive else 503)

    async def _readyz(self, _request: web.Request) -> web.Response:
        fault = self._fault()
        if fault:
            return web.json_response({"ready": False, "why": fault}, status=503)
        return web.json_response({"ready": True})

    async def _page(self, _request: web.Request) -> web.Response:
        self._alive()  # brings the queue's gauges up to date
        text = generate_latest(self._metrics.registry)
        return web.Response(body=text, headers={"content-type": CONTENT_TYPE_LATEST})


def _site(runner: web.AppRunner, host: str, port: int) -> web.BaseSite:
    """``::`` is every address, IPv6 and IPv4; without IPv6, those of IPv4."""
    if host != "::":
        return web.TCPSite(runner, host, port)
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    listener = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    return web.SockSite(runner, listener)
