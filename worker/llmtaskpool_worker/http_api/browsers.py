"""Pages in browsers: which origins' scripts may call this worker; none, unless a setting says."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from llmtaskpool_worker.contract import REQUEST_ID
from llmtaskpool_worker.http_api.errors import ApiError, request_id

EXPOSED = (REQUEST_ID, "retry-after", "location")
"""Headers of an answer that scripts may read."""

PREFLIGHT_SECONDS = 600
"""A browser asks again after so long whether it may."""


class Cors(CORSMiddleware):
    """ASGI: answers preflights before any key is asked for, and marks answers for their origin.

    Keys are sent in a header that the page sets itself. Cookies and other credentials that a
    browser adds on its own are never allowed, so ``*`` gives no page the rights of its visitor.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        super().__init__(
            app,
            allow_origins=tuple(origins),
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),  # the OpenAI package for JavaScript sends a dozen of its own
            allow_credentials=False,
            expose_headers=EXPOSED,
            max_age=PREFLIGHT_SECONDS,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """As starlette's; what is refused has our shape, and all have an id."""
        response = super().preflight_response(request_headers)
        if response.status_code >= 400:
            vary = response.headers["vary"]
            response = ApiError(
                400,
                "This origin, or this method, is not allowed here: LLMTASKPOOL_CORS_ORIGINS "
                "(auth.corsOrigins of a pool) lists the origins that are.",
                code="origin_not_allowed",
            ).response()
            response.headers["vary"] = vary
        response.headers[REQUEST_ID] = request_id(request_headers.get(REQUEST_ID, ""))
        return response
