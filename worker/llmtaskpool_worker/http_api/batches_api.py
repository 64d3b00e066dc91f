"""The batch routes, as OpenAI has them: many requests in a file, answered when there is time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llmtaskpool_worker.disclosure import shown
from llmtaskpool_worker.execution.batch import BatchRecord, Status
from llmtaskpool_worker.execution.batch_books import BatchBooks
from llmtaskpool_worker.execution.batch_work import BatchWork
from llmtaskpool_worker.execution.files import NoSpace
from llmtaskpool_worker.execution.pool import TaskPool
from llmtaskpool_worker.http_api.auth import sees, sight_of, tenant_of
from llmtaskpool_worker.http_api.bodies import Bodies
from llmtaskpool_worker.http_api.counting import count_keys
from llmtaskpool_worker.http_api.errors import ApiError, from_validation, invalid
from llmtaskpool_worker.http_api.files_api import (
    KEEP_SECONDS,
    limit_of,
    no_space,
    page,
    unknown_file,
)
from llmtaskpool_worker.http_api.line_answers import ENDPOINTS
from llmtaskpool_worker.http_api.sse import answer

LIMIT, LIMIT_MAX = 20, 100
WINDOW_HOURS = 14 * 24
"""The longest completion_window."""
_WINDOW = re.compile(r"([1-9][0-9]{0,3})([hd])")

_Key = Annotated[str, Field(strict=True, min_length=1, max_length=64)]
_Value = Annotated[str, Field(strict=True, max_length=512)]


@dataclass(frozen=True, slots=True)
class Batches:
    """The batches of a worker: their books, and who feeds them."""

    books: BatchBooks
    work: BatchWork


class ExpiresAfter(BaseModel):
    """When the output and error files go."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    anchor: Literal["created_at"] = "created_at"
    seconds: Annotated[int, Field(strict=True, ge=KEEP_SECONDS[0], le=KEEP_SECONDS[1])]


class BatchBody(BaseModel):
    """The body of POST /v1/batches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_file_id: Annotated[str, Field(strict=True, min_length=1, max_length=256)] = Field(
        description="the id of a file that was uploaded with purpose batch"
    )
    endpoint: Annotated[str, Field(strict=True, min_length=1, max_length=64)] = Field(
        description=f"one of {', '.join(ENDPOINTS)}"
    )
    completion_window: Annotated[str, Field(strict=True, max_length=8)] = Field(
        "24h", description="how long it may take: 24h, or from 1h to 14d"
    )
    metadata: Annotated[dict[_Key, _Value], Field(max_length=16)] | None = Field(
        None, description="an object of at most 16 texts of 512 letters by names of 64"
    )
    output_expires_after: ExpiresAfter | None = Field(
        None, description='{"anchor": "created_at", "seconds": 3600 to 2592000}'
    )


class BatchRoutes:
    """Handlers over a worker's batches; ``routes`` lists them."""

    def __init__(self, batches: Batches, pool: TaskPool, bodies: Bodies) -> None:
        self._books, self._work = batches.books, batches.work
        self._pool, self._bodies = pool, bodies

    def routes(self) -> list[Route]:
        """For starlette."""
        return [
            Route("/v1/batches", self.create, methods=["POST"]),
            Route("/v1/batches", self.list, methods=["GET"]),
            Route("/v1/batches/{id}", self.look, methods=["GET"]),
            Route("/v1/batches/{id}/cancel", self.cancel, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        """POST /v1/batches: an uploaded file is worked off."""
        body = await self._bodies.read(request, _batch_of)
        seconds = _window_of(body.completion_window)
        source = await self._books.files.get(body.input_file_id)
        if source is None or not sees(request, source.tenant):
            raise unknown_file(body.input_file_id, "input_file_id", shared=self._books.shared)
        if source.purpose != "batch":
            told = (
                f"input_file_id is a file of purpose {source.purpose}: upload one of purpose batch."
            )
            raise invalid("input_file_id", told)
        after = body.output_expires_after
        keep = self._books.files.limits.keep_seconds if after is None else after.seconds
        try:
            batch = await self._books.create(
                source,
                body.endpoint,
                (body.completion_window, seconds),
                body.metadata,
                int(keep),
                tenant_of(request),
            )
        except NoSpace as full:
            raise no_space(full) from None
        self._work.changed(batch)
        return answer(self._json(batch))

    async def list(self, request: Request) -> Response:
        """GET /v1/batches: the newest first; limit, after."""
        limit = limit_of(request, LIMIT, LIMIT_MAX)
        after = request.query_params.get("after")
        found = await self._books.listed(after=after, most=limit + 1, tenant=sight_of(request))
        return answer(page([self._json(one) for one in found[:limit]], len(found) > limit))

    async def look(self, request: Request) -> Response:
        """GET /v1/batches/{id}: as it is now."""
        return answer(self._json(await self._there(request)))

    async def cancel(self, request: Request) -> Response:
        """POST /v1/batches/{id}/cancel: nothing more of it is asked; what is answered stays."""
        batch = await self._books.cancel((await self._there(request)).id)
        if batch is None:
            raise self._unknown(request)
        if batch.ended and batch.status is not Status.CANCELLED:
            raise ApiError(
                409,
                f"The batch is {batch.status.value}: there is nothing left to cancel.",
                param="id",
                code="batch_ended",
            )
        self._work.changed(batch)
        return answer(self._json(batch))

    async def _there(self, request: Request) -> BatchRecord:
        batch = await self._books.get(request.path_params["id"])
        if batch is None or not sees(request, batch.tenant):
            raise self._unknown(request)
        return batch

    def _unknown(self, request: Request) -> ApiError:
        where = "" if self._books.shared else " Without a shared queue each worker has its own."
        return ApiError(
            404,
            f"There is no batch {shown(request.path_params['id'])} here: it never was, or it ended "
            f"longer ago than batches are kept.{where}",
            param="id",
            code="batch_not_found",
        )

    def _json(self, batch: BatchRecord) -> dict[str, Any]:
        """As OpenAI shows a batch; ``durable`` as of a task."""
        ended = batch.ended
        told: dict[str, Any] = {
            "id": batch.id,
            "object": "batch",
            "endpoint": batch.endpoint,
            "errors": {
                "object": "list",
                "data": [
                    {"code": e.code, "line": e.line, "message": e.message, "param": e.param}
                    for e in batch.errors
                ],
            }
            if batch.errors
            else None,
            "input_file_id": batch.input_file_id,
            "completion_window": batch.completion_window,
            "status": batch.status.value,
            "output_file_id": batch.output.id if ended and batch.output.lines else None,
            "error_file_id": batch.error.id if ended and batch.error.lines else None,
            "created_at": batch.created_at,
            "expires_at": batch.expires_at,
        }
        for status in Status:
            if status is not Status.VALIDATING:
                told[f"{status.value}_at"] = batch.stamps.get(status.value)
        counts = {"total": batch.total, "completed": batch.completed, "failed": batch.failed}
        told |= {"request_counts": counts, "metadata": batch.metadata}
        return told | {"durable": self._pool.durability.durable}


def _batch_of(body: Mapping[str, Any]) -> BatchBody:
    count_keys(body, "body")
    count_keys(body.get("metadata"), "metadata")
    try:
        parsed = BatchBody.model_validate({k: v for k, v in body.items() if v is not None})
    except ValidationError as error:
        raise from_validation(error, BatchBody) from None
    if parsed.endpoint not in ENDPOINTS:
        told = f"endpoint is {shown(parsed.endpoint)}: use {', '.join(ENDPOINTS)}."
        raise invalid("endpoint", told)
    return parsed


def _window_of(text: str) -> int:
    """Seconds. Raises ApiError."""
    found = _WINDOW.fullmatch(text)
    hours = int(found[1]) * (24 if found[2] == "d" else 1) if found else 0
    if not 1 <= hours <= WINDOW_HOURS:
        raise invalid(
            "completion_window", f"completion_window is {shown(text)}: send 24h, or from 1h to 14d."
        )
    return hours * 3600
