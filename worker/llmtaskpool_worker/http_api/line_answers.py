"""The lines of batches as requests of the routes: each is answered as it would be over HTTP.

Their tasks are of the lowest class and may wait as long as their batch may. They end with the
worker that feeds the batch: another one asks the lines again that had no answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, cast

import msgspec
from msgspec.structs import replace
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import Message

from llmtaskpool_worker.disclosure import where_raised
from llmtaskpool_worker.execution.batch import WEIGHT
from llmtaskpool_worker.execution.batch_lines import LineAnswer
from llmtaskpool_worker.execution.pool import Rejected, TaskPool
from llmtaskpool_worker.http_api.auth import TENANT
from llmtaskpool_worker.http_api.bodies import Bodies, GiveBack
from llmtaskpool_worker.http_api.catalog import Catalog
from llmtaskpool_worker.http_api.errors import ANSWERED, ApiError, answer_error, request_id
from llmtaskpool_worker.http_api.limits import HttpLimits
from llmtaskpool_worker.http_api.openai_api import OpenAIRoutes
from llmtaskpool_worker.scheduling.task import TaskRequest, TaskState, TaskView
from llmtaskpool_worker.scheduling.tenants import Tenants

log = logging.getLogger("llmtaskpool.worker")

ENDPOINTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/score",
    "/v1/classify",
    "/v1/detect",
    "/v1/tag",
    "/v1/answer",
)
"""What a batch may ask: the routes of the body's kinds that are answered whole."""

_patience: ContextVar[float] = ContextVar("_patience")
"""How long the tasks of the line that is being asked may wait, in seconds."""
_begun: ContextVar[bool] = ContextVar("_begun")
"""Whether one of its tasks, of which a line with several choices has several, was taken in."""
AGAIN_SECONDS = 0.25

_UNFORESEEN = ApiError(
    500, "The server could not do this; it is not the line's fault.", code="internal_error"
)


class _Lowest:
    """A pool to which all comes at the lowest class, and with its batch's patience."""

    def __init__(self, pool: TaskPool) -> None:
        self._pool = pool
        self._held: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        """All else is the pool's."""
        return getattr(self._pool, name)

    async def submit(self, request: TaskRequest) -> TaskView:
        """See TaskPool. Where its tenant has no place left one waits for the line's others.

        They leave theirs as they start, and the line may have more tasks than there are places.
        """
        patience = _patience.get()
        lowest = replace(request, weight=WEIGHT, queue_timeout_seconds=patience, of_a_batch=True)
        while True:
            try:
                view = await self._pool.submit(lowest)
            except Rejected as full:
                if full.code != "tenant_full" or not _begun.get():
                    raise
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            _begun.set(True)
            self._held.add(view.id)
            return view

    def let_go(self, task_id: str) -> None:
        """See TaskPool."""
        self._held.discard(task_id)
        self._pool.let_go(task_id)

    async def give_up_waiting(self) -> None:
        """What has not begun is cancelled: somebody else asks for it."""
        for task_id in list(self._held):
            try:
                view = await self._pool.get(task_id)
            except Rejected:
                return  # the queue is away
            if view is not None and view.state is TaskState.QUEUED:
                self._pool.abandon(task_id)


class LineAnswers:
    """Asks lines of ``pool`` and its models, within what ``tenants`` may have. See Asks."""

    def __init__(
        self,
        pool: TaskPool,
        catalog: Catalog,
        limits: HttpLimits,
        wall_clock: Callable[[], float],
        tenants: Tenants,
    ) -> None:
        self._tenants = tenants
        self._lowest = _Lowest(pool)
        openai = OpenAIRoutes(
            cast("TaskPool", self._lowest),
            catalog,
            # The window bounds their text: what clients send has all of the room for bodies.
            Bodies(limits),
            heartbeat_seconds=60.0,
            wall_clock=wall_clock,
        )
        routes: list[Route] = [one for one in openai.routes() if one.path in ENDPOINTS]
        handlers = dict.fromkeys(ANSWERED, answer_error)
        self._app = GiveBack(Starlette(routes=routes, exception_handlers=handlers))

    async def give_up_waiting(self) -> None:
        """The worker ends: lines that have not begun are somebody else's."""
        await self._lowest.give_up_waiting()

    def may_wait(self, tenant: str) -> int | None:
        """See Asks."""
        return self._tenants.may_wait(tenant, of_a_batch=True)

    async def ask(
        self, endpoint: str, body: bytes, patience_seconds: float, tenant: str
    ) -> LineAnswer:
        """See Asks."""
        _patience.set(patience_seconds)
        _begun.set(False)
        sent: list[Message] = []
        given = False

        async def receive() -> Message:
            nonlocal given
            if given:
                await asyncio.Event().wait()  # nobody leaves: who gives it up cancels it
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        try:
            await self._app(_scope(endpoint, body) | {TENANT: tenant}, receive, send)
        except Exception as error:
            log.error(  # noqa: TRY400  a traceback has paths
                "line of a batch not answered", extra={"error": where_raised(error)}
            )
            sent = []
        if not sent:
            status, headers, told = 500, Headers(), msgspec.json.encode(_UNFORESEEN.body())
        else:
            status, headers = sent[0]["status"], Headers(raw=sent[0]["headers"])
            told = b"".join(message.get("body", b"") for message in sent[1:])
        wait = headers.get("retry-after", "")
        return LineAnswer(
            status,
            told,
            request_id(),
            _code(told) if status >= 400 else None,
            float(wait) if wait.isdecimal() else None,
        )


class _Error(msgspec.Struct):
    code: str | None = None


class _Told(msgspec.Struct):
    error: _Error


def _code(body: bytes) -> str | None:
    try:
        return msgspec.json.decode(body, type=_Told).error.code
    except msgspec.DecodeError:
        return None


def _scope(endpoint: str, body: bytes) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": endpoint,
        "raw_path": endpoint.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ],
        "client": None,
        "server": None,
    }
