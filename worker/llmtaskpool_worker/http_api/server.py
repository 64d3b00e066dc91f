"""The two HTTP servers of a worker, data and control, in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from llmtaskpool_worker.contract import LIVEZ, METRICS, OPEN_ROUTES, READYZ, Phase
from llmtaskpool_worker.execution.graphs import GraphBooks
from llmtaskpool_worker.execution.ids import ids
from llmtaskpool_worker.execution.pool import TaskPool
from llmtaskpool_worker.http_api import metrics as metrics_page
from llmtaskpool_worker.http_api.access import Access
from llmtaskpool_worker.http_api.auth import Keys, KeysOfTenants, RequireKey
from llmtaskpool_worker.http_api.batches_api import Batches, BatchRoutes
from llmtaskpool_worker.http_api.beginnings import InTurns
from llmtaskpool_worker.http_api.bodies import Bodies, GiveBack
from llmtaskpool_worker.http_api.browsers import Cors
from llmtaskpool_worker.http_api.catalog import Catalog
from llmtaskpool_worker.http_api.connections import guarded_protocol
from llmtaskpool_worker.http_api.control import ControlRoutes
from llmtaskpool_worker.http_api.errors import ANSWERED, ApiError, answer_error
from llmtaskpool_worker.http_api.files_api import FileRoutes
from llmtaskpool_worker.http_api.graphs_api import GraphRoutes
from llmtaskpool_worker.http_api.limits import HttpLimits
from llmtaskpool_worker.http_api.metrics import Metrics
from llmtaskpool_worker.http_api.openai_api import OpenAIRoutes
from llmtaskpool_worker.http_api.openapi import description_route
from llmtaskpool_worker.http_api.route_hints import hint
from llmtaskpool_worker.http_api.sse import answer
from llmtaskpool_worker.http_api.task_lists import TaskListRoutes
from llmtaskpool_worker.http_api.tasks_api import TaskRoutes

CONTROL_BODY_BYTES = 64 * 1024
"""Bodies of the control routes are a few numbers, and have room of their own."""

CLOSE_SECONDS = 5
"""After the drain, answers that are being written get so long to leave."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """``monotonic`` is the pool's clock; ``wall`` seconds since the epoch."""

    monotonic: Callable[[], float]
    wall: Callable[[], float]


class Health:
    """The open routes."""

    def __init__(
        self, pool: TaskPool, metrics: Metrics, leaving: Callable[[], bool] = lambda: False
    ) -> None:
        self._pool = pool
        self._metrics = metrics
        self._leaving = leaving

    def routes(self) -> list[Route]:
        """For starlette."""
        return [
            Route(LIVEZ, self.livez, methods=["GET"]),
            Route(READYZ, self.readyz, methods=["GET"]),
            Route(METRICS, self.metrics, methods=["GET"]),
        ]

    async def livez(self, _request: Request) -> Response:
        """GET /livez: 503 when an engine stands still and killing it has not helped."""
        alive = self._pool.alive()
        return answer({"alive": alive}, 200 if alive else 503)

    async def readyz(self, _request: Request) -> Response:
        """GET /readyz: 200 while new tasks are taken; else the phase, and models' problems.

        The problems' sentences are for the control port alone: this route asks for no key.
        """
        phase = Phase.DRAINING if self._leaving() else self._pool.state().phase
        ready = phase is Phase.READY and self._pool.alive()
        told: dict[str, object] = {"phase": phase.value}
        if problems := self._pool.problems():
            told["models"] = {name: problem.code for name, problem in problems.items()}
        return answer(told, 200 if ready else 503)

    async def metrics(self, _request: Request) -> Response:
        """GET /metrics."""
        return Response(self._metrics.text(), headers={"content-type": metrics_page.CONTENT_TYPE})


async def _answer_http(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405, in our shape."""
    assert isinstance(error, HTTPException)  # noqa: S101  registered for this class alone
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{request.method} is not allowed on this route: use {allowed}."
        wrong = ApiError(405, message, code="method_not_allowed")
    else:
        message = "There is no such route here." + hint(request.url.path)
        wrong = ApiError(error.status_code, message, code="unknown_route")
    response = wrong.response()
    response.headers.update(error.headers or {})
    return response


def assemble(
    routes: list[Route],
    keys: Keys | KeysOfTenants,
    open_routes: frozenset[str],
    leaving: Callable[[], bool] = lambda: False,
) -> ASGIApp:
    """Routes with what is around each: id and log, keys, errors in our shape."""
    app = Starlette(
        routes=routes,
        exception_handlers=dict.fromkeys(ANSWERED, answer_error) | {HTTPException: _answer_http},
    )
    app.router.redirect_slashes = False
    in_turns = InTurns(GiveBack(app), open_routes)
    return Access(RequireKey(in_turns, keys, open_routes), leaving)


def data_app(
    pool: TaskPool,
    catalog: Catalog,
    metrics: Metrics,
    keys: Keys | KeysOfTenants,
    limits: HttpLimits,
    clocks: Clocks,
    *,
    heartbeat_seconds: float,
    leaving: Callable[[], bool] = lambda: False,
    cors_origins: tuple[str, ...] = (),
    batches: Batches | None = None,
    graphs: GraphBooks | None = None,
) -> ASGIApp:
    """What the data port serves: OpenAI, tasks, batches and the open routes.

    Once it is ``leaving`` it is unready and closes connections after their answers. A silent
    stream sends a comment every ``heartbeat_seconds``. Scripts of pages from ``cors_origins`` may
    call it.
    """
    routes = data_routes(
        pool,
        catalog,
        metrics,
        Bodies(limits),
        limits,
        clocks,
        heartbeat_seconds=heartbeat_seconds,
        leaving=leaving,
        batches=batches,
        graphs=graphs,
    )
    app = assemble(routes, keys, OPEN_ROUTES, leaving)
    return Cors(app, cors_origins) if cors_origins else app


def data_routes(
    pool: TaskPool,
    catalog: Catalog,
    metrics: Metrics,
    bodies: Bodies,
    limits: HttpLimits,
    clocks: Clocks,
    *,
    heartbeat_seconds: float,
    leaving: Callable[[], bool] = lambda: False,
    batches: Batches | None = None,
    graphs: GraphBooks | None = None,
) -> list[Route]:
    """All routes of the data port."""
    openai = OpenAIRoutes(
        pool, catalog, bodies, heartbeat_seconds=heartbeat_seconds, wall_clock=clocks.wall
    )
    tasks = TaskRoutes(
        pool,
        catalog,
        bodies,
        heartbeat_seconds=heartbeat_seconds,
        clock=clocks.monotonic,
        wall_clock=clocks.wall,
    )
    routes = Health(pool, metrics, leaving).routes() + openai.routes() + tasks.routes()
    routes += TaskListRoutes(pool, tasks).routes()
    books = graphs or GraphBooks.in_memory(clocks.monotonic, ids())
    routes += GraphRoutes(pool, tasks, bodies, books, heartbeat_seconds=heartbeat_seconds).routes()
    if batches is not None:
        routes += FileRoutes(batches.books, piece_seconds=limits.body_seconds).routes()
        routes += BatchRoutes(batches, pool, bodies).routes()
    return [*routes, description_route(routes)]


def control_app(pool: TaskPool, tokens: Keys, limits: HttpLimits) -> ASGIApp:
    """What the control port serves; no route of it is open."""
    few = replace(limits, body_bytes=min(limits.body_bytes, CONTROL_BODY_BYTES))
    return assemble(ControlRoutes(pool, Bodies(few)).routes(), tokens, frozenset())


class _Server(uvicorn.Server):
    """uvicorn without its signal handling (the worker has its own), and told when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


class HttpServer:
    """One port. ``start`` returns when it listens, ``stop`` when its last connection is closed."""

    def __init__(
        self, app: ASGIApp, host: str, port: int, limits: HttpLimits, keep_alive_seconds: float
    ) -> None:
        self._host = host
        self._port = port
        self._server = _Server(
            uvicorn.Config(
                app,
                http=guarded_protocol(limits, keep_alive_seconds),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=CLOSE_SECONDS,
            )
        )
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """The port it listens on. Raises OSError when the address can't be had."""
        listener = _listen(self._host, self._port)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        listening = asyncio.create_task(self._server.listening.wait())
        await asyncio.wait((self._serving, listening), return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if self._serving.done():
            await self._serving
            raise OSError(f"the server on {self._host} did not start")
        port: int = listener.getsockname()[1]
        return port

    async def stop(self) -> None:
        """Close idle connections, let answers that are being written end; idempotent."""
        self._server.should_exit = True
        if self._serving is not None:
            await asyncio.gather(self._serving, return_exceptions=True)


def _listen(host: str, port: int) -> socket.socket:
    """``::`` is every address, IPv6 and IPv4, whichever of them the machine has."""
    if host == "::" and not socket.has_dualstack_ipv6():
        host = "0.0.0.0"  # noqa: S104  as was asked for
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(
            error.errno, f"{host}:{port} can't be listened on ({error.strerror}): use another port"
        ) from None
    listener.setblocking(False)
    return listener
