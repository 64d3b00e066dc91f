"""The control routes: state, threads and drain, for the operator, on a port of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llmtaskpool_worker.contract import (
    CONTROL_DRAIN,
    CONTROL_STATE,
    CONTROL_THREADS,
    DrainRequest,
    ThreadsRequest,
)
from llmtaskpool_worker.execution.pool import StaleGeneration, TaskPool
from llmtaskpool_worker.http_api.bodies import Bodies
from llmtaskpool_worker.http_api.errors import ApiError, from_validation

Message = TypeVar("Message", bound=BaseModel)


class ControlRoutes:
    """Handlers over a pool; ``routes`` lists them."""

    def __init__(self, pool: TaskPool, bodies: Bodies) -> None:
        self._pool = pool
        self._bodies = bodies

    def routes(self) -> list[Route]:
        """For starlette."""
        return [
            Route(CONTROL_STATE, self.state, methods=["GET"]),
            Route(CONTROL_THREADS, self.threads, methods=["PUT"]),
            Route(CONTROL_DRAIN, self.drain, methods=["POST"]),
        ]

    async def state(self, _request: Request) -> Response:
        """GET /control/v1/state."""
        return compact(self._pool.state())

    async def threads(self, request: Request) -> Response:
        """PUT /control/v1/threads: 409 for a generation below the one in force."""
        wanted = await self._bodies.read(request, lambda body: parsed(ThreadsRequest, body))
        try:
            return compact(self._pool.set_threads(wanted.generation, wanted.threads))
        except StaleGeneration as stale:
            raise ApiError(
                409,
                f"generation is {wanted.generation}: {stale.observed} is in force. Read the state "
                "again and send a generation of at least that.",
                param="generation",
                code="stale_generation",
            ) from None

    async def drain(self, request: Request) -> Response:
        """POST /control/v1/drain: idempotent; an empty body asks for the default budget."""
        empty = request.headers.get("content-length", "0") == "0" and (
            "transfer-encoding" not in request.headers
        )
        wanted = (
            DrainRequest()
            if empty
            else await self._bodies.read(request, lambda body: parsed(DrainRequest, body))
        )
        return compact(self._pool.drain(wanted.budget_seconds))


def parsed(schema: type[Message], body: Mapping[str, Any]) -> Message:
    """A body as what it is to be. Raises ApiError."""
    try:
        return schema.model_validate(body)
    except ValidationError as error:
        raise from_validation(error, schema) from None


def compact(message: BaseModel) -> Response:
    """A message as JSON."""
    return Response(message.model_dump_json(), media_type="application/json")
