"""A gate's answers: a request waits until a worker is there, and is then the worker's.

The routes are a worker's. What asks for work waits; what only asks (which models, how a task
does) is answered here while no worker is there, so that a page that is polled wakes no pool. Of a
queue that workers share, a file, a batch and a task that needs no model's tokenizer are accepted
here, at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message as AsgiMessage

from llmtaskpool_worker.contract import (
    CONTROL_STATE,
    CONTROL_WORKERS,
    OPEN_ROUTES,
    WorkersRequest,
    WorkerState,
)
from llmtaskpool_worker.http_api.access import OWN_ID
from llmtaskpool_worker.http_api.bodies import Bodies
from llmtaskpool_worker.http_api.control import compact, parsed
from llmtaskpool_worker.http_api.errors import ApiError, request_id
from llmtaskpool_worker.http_api.holding import Holding, NobodyCame
from llmtaskpool_worker.http_api.passing import (
    Broken,
    Message,
    Passing,
    Refused,
    Unreachable,
    message_of,
)
from llmtaskpool_worker.http_api.sse import while_connected
from llmtaskpool_worker.http_api.tasks_api import IDEMPOTENCY_HEADER
from llmtaskpool_worker.kinds.registry import ENGINE_KINDS

TASKS, FILES, BATCHES = "/v1/tasks", "/v1/files", "/v1/batches"
_ABOUT_ONE = (f"{TASKS}/", f"{BATCHES}/", f"{FILES}/")
"""Below these is what somebody asks of a thing that is there, whatever the method."""
_ONCE = frozenset({"/v1/graphs"})
"""Not sent a second time once it may have been taken."""
MOST_BROKEN = 3
"""A request that took so many workers along is not given to a fourth."""
LONGEST_PAUSE_SECONDS = 5.0

Endpoint = Callable[[Request], Awaitable[Response]]


class Gate:
    """Holds requests for the workers of ``holding`` and passes them on by ``passing``.

    ``shared``: its own queue is that of the workers, who run what is accepted here.
    ``patience_seconds``: how long a request is held.
    """

    def __init__(
        self,
        holding: Holding,
        passing: Passing,
        bodies: Bodies,
        *,
        shared: bool,
        patience_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._holding, self._passing = holding, passing
        self._bodies, self._shared, self._clock = bodies, shared, clock
        self._patience_seconds = patience_seconds

    def routes(self, own: Sequence[Route]) -> list[Route]:
        """A worker's routes as a gate serves them: ``own`` are those over its own pool."""
        return [
            Route(one.path, self._served(one), methods=sorted(one.methods or ())) for one in own
        ]

    def _served(self, route: Route) -> Endpoint:
        here: Endpoint = route.endpoint
        if route.path in OPEN_ROUTES:
            return here
        if "POST" not in (route.methods or ()) or route.path.startswith(_ABOUT_ONE):
            return self._told(here)
        if route.path in (FILES, BATCHES) and self._shared:
            return here
        return self._submitted(here) if route.path == TASKS else self._worked

    def _told(self, here: Endpoint) -> Endpoint:
        async def told(request: Request) -> Response:
            """By a worker while one is there, else from what is known here; it waits for none."""
            answer = await self._at_once(request) if self._holding.has_workers else None
            return answer or await here(request)

        return told

    async def _at_once(self, request: Request) -> Response | None:
        """What a worker that is there says; None when it is there no more."""
        message = message_of(request, None, _id_of(request))
        try:
            worker = await self._holding.worker(self._clock())
            passing = self._from(worker, message, held=False)
            return await while_connected(request.receive, passing)
        except Refused as busy:
            return busy.answer
        except NobodyCame:
            return None
        except (Unreachable, Broken):
            self._holding.lost(worker)
            return None

    def _submitted(self, here: Endpoint) -> Endpoint:
        async def submitted(request: Request) -> Response:
            """A task: taken into the shared queue, if it can be read here."""
            if not self._shared or self._holding.has_workers:
                return await self._worked(request)
            body, kind = await self._bodies.read_bytes(request, _with_kind)
            self._holding.arrived()
            if kind in ENGINE_KINDS:  # its text is for a model's tokenizer
                return await self._answered(request, body)
            self._bodies.give_back(request)
            unpacked = (b"content-encoding", b"content-length")
            headers = [(n, v) for n, v in request.scope["headers"] if n.lower() not in unpacked]
            headers.append((b"content-length", str(len(body)).encode()))
            again = Request({**request.scope, "headers": headers}, _once(body, request.receive))
            return await here(again)

        return submitted

    async def _worked(self, request: Request) -> Response:
        """What a worker is to do."""
        if request.headers.get("content-type", "").lower().startswith("multipart/"):
            return await self._streamed(request)  # a file: longer than what is kept here
        body = None
        if request.method == "POST":
            body = await self._bodies.read_bytes(request, lambda given, _: given)
        self._holding.arrived()
        return await self._answered(request, body)

    async def _streamed(self, request: Request) -> Response:
        """An upload: too long to be kept here, so it is read once there is somebody to read it."""
        self._holding.arrived()
        return await self._by_a_worker(message_of(request, request.stream(), _id_of(request)), 1)

    async def _answered(self, request: Request, body: bytes | None) -> Response:
        path = request.scope["path"]
        extra = []
        if path == TASKS and IDEMPOTENCY_HEADER not in request.headers:
            # Said twice, after a lost answer, it is one task all the same.
            extra = [(IDEMPOTENCY_HEADER, f"gate-{uuid4().hex}")]
        message = message_of(request, body, _id_of(request), extra)
        lives = 1 if path in _ONCE else MOST_BROKEN
        answer = await while_connected(request.receive, self._by_a_worker(message, lives))
        self._bodies.give_back(request)
        return answer

    async def _by_a_worker(self, message: Message, lives: int) -> Response:
        """Its answer, once a worker gives one. Raises ApiError."""
        until = self._clock() + self._patience_seconds
        held = not self._holding.has_workers
        refused: Response | None = None
        while True:
            try:
                with self._holding.held():
                    worker = await self._holding.worker(until)
            except NobodyCame as nobody:
                if refused is not None and not nobody.closing:
                    return refused
                raise _nobody(self._patience_seconds, closing=nobody.closing) from None
            try:
                return await self._from(worker, message, held=held)
            except Unreachable:
                self._holding.lost(worker)
                held = True
            except Broken:
                self._holding.lost(worker)
                held, lives = True, lives - 1
                if not lives:
                    raise _LOST from None
            except Refused as busy:
                if (busy.full and not held) or not message.again:
                    return busy.answer  # the pool is awake: its client is to come back
                refused, held = busy.answer, True
                pause = min(busy.after_seconds, LONGEST_PAUSE_SECONDS, until - self._clock())
                if pause <= 0:
                    return refused
            if refused is not None:
                with self._holding.held():
                    await asyncio.sleep(pause)

    async def _from(self, worker: str, message: Message, *, held: bool) -> Response:
        done = partial(self._holding.done, worker)
        try:
            return await self._passing.answer(worker, message, held=held, done=done)
        except BaseException:
            done()
            raise


class GateControl:
    """The control routes of a gate: what it holds, and which workers are ready."""

    def __init__(self, state: Callable[[], WorkerState], holding: Holding, bodies: Bodies) -> None:
        self._state, self._holding, self._bodies = state, holding, bodies

    def routes(self) -> list[Route]:
        """For starlette."""
        return [
            Route(CONTROL_STATE, self.state, methods=["GET"]),
            Route(CONTROL_WORKERS, self.workers, methods=["PUT"]),
        ]

    async def state(self, _request: Request) -> Response:
        """GET /control/v1/state: a worker's, with what is held."""
        return compact(self._state())

    async def workers(self, request: Request) -> Response:
        """PUT /control/v1/workers: the ready workers, all of them."""
        told = await self._bodies.read(request, lambda body: parsed(WorkersRequest, body))
        self._holding.know(told.workers)
        return compact(self._holding.state())


def _id_of(request: Request) -> str:
    """The one under which its line stands in our log."""
    return request.scope.get(OWN_ID) or request_id()


def _with_kind(body: bytes, parse: Callable[[bytes], Mapping[str, Any]]) -> tuple[bytes, str]:
    return body, str(parse(body).get("kind"))


def _once(body: bytes, receive: Callable[[], Awaitable[AsgiMessage]]) -> Any:
    """A body that was read, for who reads it again."""
    given = False

    async def again() -> AsgiMessage:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _nobody(seconds: float, *, closing: bool) -> ApiError:
    if closing:
        return ApiError(
            503, "This gate is stopping: send the request again.", code="draining",
            retry_after_seconds=1.0, close=True,
        )  # fmt: skip
    return ApiError(
        503,
        f"The pool sleeps, and no worker was ready within {seconds:g} s: send the request again "
        "later. Whoever runs the pool finds the reason in its conditions.",
        code="no_worker_ready",
        retry_after_seconds=LONGEST_PAUSE_SECONDS,
    )


_LOST = ApiError(
    502,
    "The workers of this request ended before they answered: send the request again.",
    code="worker_lost",
)
