"""What a client is told when a request can't be served, in OpenAI's shape.

Every message names the field, the value (shortened) and the remedy; none carries a path of this
machine, a traceback or a prompt.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from secrets import token_hex
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llmtaskpool_worker.contract import GOOD_REQUEST_ID, REQUEST_ID
from llmtaskpool_worker.disclosure import shown
from llmtaskpool_worker.execution.pool import Rejected, Unsuccessful
from llmtaskpool_worker.scheduling.task import TaskError, TaskState, TaskView

PROSE_FIELDS = frozenset(
    {"messages", "prompt", "input", "content", "arguments", "stop", "query", "queries"}
    | {"documents", "text_1", "text_2", "question", "context", "image", "q", "file"}
)
"""Fields whose values are the client's own text: never repeated in an answer or a log line."""

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
_REJECTED_STATUS = {
    "queue_full": 429,
    "tenant_full": 429,
    "weight_too_large": 400,
    "results_full": 429,
    "queue_unavailable": 503,
    "lost": 500,
    "draining": 503,
    "starting": 503,
    "unknown_model": 404,
    "unknown_kind": 404,
    "unknown_task": 400,
    "model_failed": 503,
    "idempotency_conflict": 409,
}
_COMES_BACK = frozenset({"queue_full", "tenant_full", "results_full", "draining", "starting"})
_FAILED_STATUS = {
    "invalid": 400,
    "context_length_exceeded": 400,
    "bad_sound": 400,
    "too_large": 400,
    "timeout": 504,
    "shed": 429,
    "engine_crashed": 503,
    "engine_died": 503,
    "engine_failed": 503,
    "result_lost": 507,
    "draining": 503,
    "upstream_rejected": 400,
    "upstream_unauthorized": 502,
    "upstream_failed": 502,
}


SHED_RETRY_SECONDS = 5.0
"""Who had to leave a full line for others comes back after so long."""


def request_id(given: str = "") -> str:
    """The client's own id when it is a good one, else a new one."""
    return given if GOOD_REQUEST_ID.fullmatch(given) else f"req_{token_hex(16)}"


class ApiError(Exception):
    """An answer other than success: ``status`` and OpenAI's error fields."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: float | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_seconds = retry_after_seconds
        self.close = close

    def body(self) -> dict[str, Any]:
        """``{"error": {message, type, param, code}}``."""
        fallback = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, fallback),
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """``Retry-After`` in whole seconds and never 0; ``Connection``; ``WWW-Authenticate``."""
        headers = {}
        if self.retry_after_seconds is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_seconds)))
        if self.close:
            headers["connection"] = "close"
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers())

    def as_http(self) -> bytes:
        """The whole answer as HTTP/1.1, for a connection that is refused before it is routed.

        Its request id is a new one: what the client sent may be unreadable.
        """
        response = self.response()
        response.headers[REQUEST_ID] = request_id()
        phrase = HTTPStatus(self.status).phrase
        lines = [f"HTTP/1.1 {self.status} {phrase}".encode("ascii")]
        lines += [name + b": " + value for name, value in response.raw_headers]
        return b"\r\n".join(lines) + b"\r\n\r\n" + bytes(response.body)


def invalid(param: str, message: str, *, code: str = "invalid_value") -> ApiError:
    """A 400 that blames one field."""
    return ApiError(400, message, param=param, code=code)


def field_path(location: Sequence[int | str]) -> str:
    """``("messages", 0, "content")`` as ``messages[0].content``."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            name = part if len(part) <= 64 else part[:61] + "..."
            path += f".{name}" if path else name
    return path


def from_validation(error: ValidationError, schema: type[BaseModel]) -> ApiError:
    """The first thing wrong in a body: the field, its value, and what the schema asks for."""
    first = min(error.errors(include_url=False), key=lambda e: (_rank(e["type"]), -len(e["loc"])))
    location = [part for part in first["loc"] if _is_field(part)]
    path = field_path(location) or "body"
    top = str(location[0]) if location else ""
    known = schema.model_fields.get(top)
    wanted = known.description if known is not None and known.description else ""
    if first["type"] == "missing":
        message = f"{path} is missing."
    elif top in PROSE_FIELDS:
        message = f"{path} can't be used: {_sentence(first['msg'])}"
    else:
        message = f"{path} is {shown(first['input'])}: {_sentence(first['msg'])}"
    if wanted:
        message += f" Send {wanted}."
    return invalid(path, message, code=f"invalid_{first['type']}")


def _rank(kind: str) -> int:
    """Of a union's members that failed, a wrong value says more than a wrong type."""
    return 1 if kind.endswith("_type") else 0


def _is_field(part: int | str) -> bool:
    """Pydantic's location also holds the names of union members: those are not fields."""
    return isinstance(part, int) or (part.isidentifier() and part not in _UNION_MEMBERS)


_UNION_MEMBERS = frozenset({"str", "int", "float", "bool", "TextDocument"})


def _sentence(text: str) -> str:
    text = text.removeprefix("Value error, ").strip()
    return text[:1].lower() + text[1:].rstrip(".") + "."


def from_rejected(rejected: Rejected) -> ApiError:
    """A task that the pool did not accept."""
    status = _REJECTED_STATUS.get(rejected.code, 400)
    code = "model_not_found" if rejected.code == "unknown_model" else rejected.code
    retry = rejected.retry_after_seconds
    if rejected.code in _COMES_BACK and retry is None:
        retry = 1.0
    return ApiError(
        status,
        rejected.message,
        param=rejected.field or ("model" if rejected.code == "unknown_model" else None),
        code=code,
        retry_after_seconds=retry,
        close=rejected.code == "draining",
    )


def from_ended(view: TaskView) -> ApiError:
    """A task that was accepted and ended without a result."""
    if view.state is TaskState.EXPIRED:
        error = view.error or TaskError("queue_timeout", "It waited too long and wasn't started.")
        return ApiError(503, error.message, code=error.code, retry_after_seconds=1.0)
    if view.state is TaskState.CANCELLED:
        error = view.error or TaskError("cancelled", "It was cancelled before it ended.")
        return ApiError(503, error.message, code=error.code, retry_after_seconds=1.0)
    error = view.error or TaskError("failed", "It failed.")
    status = _FAILED_STATUS.get(error.code, 500)
    retry = {503: 1.0, 429: SHED_RETRY_SECONDS}.get(status)
    return ApiError(status, error.message, code=error.code, retry_after_seconds=retry)


@contextmanager
def blaming(prefix: str, names: Mapping[str, str]) -> Iterator[None]:
    """Fields in errors as the client knows them: by ``names``, else with ``prefix`` before them."""
    try:
        yield
    except ApiError as error:
        if error.param is not None:
            top = re.split(r"[.\[]", error.param, maxsplit=1)[0]
            name = names.get(top, prefix + top) + error.param[len(top) :]
            error.message = error.message.replace(error.param, name, 1)
            error.param = name
        raise


ANSWERED = (ApiError, Rejected, Unsuccessful)
"""What may be raised while a request is served: each has an answer."""


def as_answer(error: Exception) -> ApiError:
    """The answer for one of ANSWERED."""
    match error:
        case Rejected():
            return from_rejected(error)
        case Unsuccessful():
            return from_ended(error.view)
        case ApiError():
            return error
    raise error


async def answer_error(_request: Request, error: Exception) -> Response:
    """Starlette's handler for all of ANSWERED."""
    return as_answer(error).response()
