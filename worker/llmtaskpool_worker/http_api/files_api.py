"""The file routes, as OpenAI has them: what batches read and write."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from llmtaskpool_worker.disclosure import shown
from llmtaskpool_worker.execution.batch_books import BatchBooks
from llmtaskpool_worker.execution.files import FileRecord, FileTooLarge, NoSpace
from llmtaskpool_worker.http_api.auth import sees, sight_of, tenant_of
from llmtaskpool_worker.http_api.errors import ApiError, invalid
from llmtaskpool_worker.http_api.sse import answer
from llmtaskpool_worker.http_api.uploads import Begin, Data, Field, parts_of

LIMIT_MAX = 10_000
KEEP_SECONDS = (3600, 2_592_000)
"""OpenAI's bounds of expires_after."""
FILENAME_LETTERS = 255
PURPOSES = ("batch", "batch_output")


class FileRoutes:
    """Handlers over the files of ``books``; ``routes`` lists them.

    An upload's pieces come within ``piece_seconds`` of each other.
    """

    def __init__(self, books: BatchBooks, *, piece_seconds: float) -> None:
        self._books, self._files = books, books.files
        self._piece_seconds = piece_seconds

    def routes(self) -> list[Route]:
        """For starlette."""
        return [
            Route("/v1/files", self.upload, methods=["POST"]),
            Route("/v1/files", self.list, methods=["GET"]),
            Route("/v1/files/{id}", self.look, methods=["GET"]),
            Route("/v1/files/{id}", self.delete, methods=["DELETE"]),
            Route("/v1/files/{id}/content", self.content, methods=["GET"]),
        ]

    async def upload(self, request: Request) -> Response:
        """POST /v1/files: a form with purpose and file."""
        limits = self._files.limits
        upload = self._files.begin(tenant_of(request))
        fields: dict[str, str] = {}
        filename = None
        done = False
        try:
            async for part in parts_of(request, limits.file_bytes, self._piece_seconds):
                match part:
                    case Field(name, value):
                        fields[name] = value
                        self._check(fields)
                    case Begin("file", given) if filename is None:
                        filename = given[:FILENAME_LETTERS] or "file"
                    case Begin(name, _):
                        raise invalid(
                            name[:64] or "file", "The form has another file: send one, as file."
                        )
                    case Data(data):
                        await upload.write(data)
            if filename is None:
                raise invalid("file", "file is missing: send it in the form.", code="missing")
            keep = self._check(fields, whole=True)
            record = await upload.finish(filename, fields["purpose"], keep)
            done = True
        except FileTooLarge as large:
            raise ApiError(
                413, f"{large}.", param="file", code="file_too_large", close=True
            ) from None
        except NoSpace as full:
            raise no_space(full) from None
        finally:
            if not done:
                await upload.abandon()
        return answer(file_json(record))

    def _check(self, fields: dict[str, str], *, whole: bool = False) -> float:
        """How long to keep it, in seconds. Raises ApiError as early as a field is wrong."""
        purpose = fields.get("purpose")
        if purpose is None and whole:
            raise invalid("purpose", 'purpose is missing: send "batch".', code="missing")
        if purpose not in (None, "batch"):
            told = f'purpose is {shown(purpose)}: files here are for batches, send "batch".'
            raise _closing(invalid("purpose", told))
        anchor = fields.get("expires_after[anchor]", "created_at")
        if anchor != "created_at":
            told = f"expires_after[anchor] is {shown(anchor)}: send created_at."
            raise _closing(invalid("expires_after[anchor]", told))
        given = fields.get("expires_after[seconds]")
        if given is None:
            return self._files.limits.keep_seconds
        low, high = KEEP_SECONDS
        if not given.isdecimal() or not low <= int(given[:12]) <= high:
            told = f"expires_after[seconds] is {shown(given)}: send a number from {low} to {high}."
            raise _closing(invalid("expires_after[seconds]", told))
        return float(given)

    async def list(self, request: Request) -> Response:
        """GET /v1/files: the newest first; purpose, order, limit, after."""
        asked = request.query_params
        purpose = asked.get("purpose")
        if purpose not in (None, *PURPOSES):
            raise invalid("purpose", f"purpose is {shown(purpose)}: use {' or '.join(PURPOSES)}.")
        order = asked.get("order", "desc")
        if order not in ("asc", "desc"):
            raise invalid("order", f"order is {shown(order)}: use asc or desc.")
        limit = limit_of(request, LIMIT_MAX, LIMIT_MAX)
        found = await self._files.listed(
            purpose,
            after=asked.get("after"),
            most=limit + 1,
            newest=order == "desc",
            tenant=sight_of(request),
        )
        return answer(page([file_json(one) for one in found[:limit]], len(found) > limit))

    async def look(self, request: Request) -> Response:
        """GET /v1/files/{id}: what is known of it."""
        return answer(file_json(await self._record(request)))

    async def content(self, request: Request) -> Response:
        """GET /v1/files/{id}/content: its bytes."""
        record = await self._record(request)
        pieces = self._files.read(record)
        first = await anext(pieces, b"")

        async def body() -> AsyncIterator[bytes]:
            yield first
            async for piece in pieces:
                yield piece

        headers = {"content-length": str(record.bytes)}
        return StreamingResponse(body(), headers=headers, media_type="application/octet-stream")

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/files/{id}: it is gone, unless a batch reads it."""
        record = await self._record(request)
        using = await self._books.uses(record.id)
        if using is not None:
            raise ApiError(
                409,
                f"The batch {using.id} reads this file: cancel it first, or wait for its end.",
                param="id",
                code="file_in_use",
            )
        await self._files.delete(record)
        return answer({"id": record.id, "object": "file", "deleted": True})

    async def _record(self, request: Request) -> FileRecord:
        name = request.path_params["id"]
        record = await self._files.get(name)
        if record is None or not sees(request, record.tenant):
            raise unknown_file(name, "id", shared=self._books.shared)
        return record


def unknown_file(name: str, param: str, *, shared: bool) -> ApiError:
    """404."""
    where = "" if shared else " Without a shared queue each worker has its own files."
    return ApiError(
        404,
        f"There is no file {shown(name)} here: it never was, was deleted, or its expires_at has "
        f"passed.{where}",
        param=param,
        code="file_not_found",
    )


def no_space(full: NoSpace) -> ApiError:
    """507."""
    return ApiError(
        507,
        f"There is no space, {full}: delete some, or raise LLMTASKPOOL_FILE_STORE_BYTES.",
        param="file",
        code="files_full",
        close=True,
    )


def limit_of(request: Request, usual: int, most: int) -> int:
    """How many a page of a list has. Raises ApiError."""
    given = request.query_params.get("limit", str(usual))
    if not given.isdecimal() or not 1 <= int(given[:9]) <= most:
        raise invalid("limit", f"limit is {shown(given)}: send a number from 1 to {most}.")
    return int(given)


def page(data: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A page of a list."""
    return {
        "object": "list",
        "data": data,
        "has_more": has_more,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


def file_json(record: FileRecord) -> dict[str, Any]:
    """As OpenAI shows a file."""
    return {
        "id": record.id,
        "object": "file",
        "bytes": record.bytes,
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "filename": record.filename,
        "purpose": record.purpose,
        "status": "processed",
        "status_details": None,
    }


def _closing(error: ApiError) -> ApiError:
    """The rest of the upload is not read."""
    error.close = True
    return error
