"""Around every request: its id, its line in the log, and an answer for what nobody foresaw."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmtaskpool_worker.contract import CONTROL_STATE, OPEN_ROUTES, REQUEST_ID
from llmtaskpool_worker.disclosure import where_raised
from llmtaskpool_worker.http_api.errors import ApiError, request_id
from llmtaskpool_worker.http_api.sse import ClientLeft

_CLIENT_LEFT = 499
"""nginx's status for a client that left: nothing was sent, only the log has it."""

_POLLED = OPEN_ROUTES | {CONTROL_STATE}
"""Asked for every second or so by kubelets, Prometheus and the operator: no line for each."""

OWN_ID = "llmtaskpool.request_id"
"""In a scope: the id under which its request is known."""

log = logging.getLogger("llmtaskpool.access")


class Access:
    """ASGI: the outermost layer. Echoes or makes ``x-request-id``; logs route, status, seconds.

    The log has the route's pattern and not the path, and no query: those are the client's words.
    While the worker is ``leaving``, each connection is closed after its answer.
    """

    def __init__(self, app: ASGIApp, leaving: Callable[[], bool] = lambda: False) -> None:
        self._app = app
        self._leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        own_id = request_id(Headers(scope=scope).get(REQUEST_ID, ""))
        scope[OWN_ID] = own_id
        status = 0
        began = time.monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = own_id
                if self._leaving():
                    headers["connection"] = "close"  # the next request goes to another worker
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except (ClientLeft, ClientDisconnect):
            status = _CLIENT_LEFT
        except Exception as error:
            # Not log.exception: a traceback and its message may hold a client's words.
            log.error(  # noqa: TRY400
                "request failed", extra={"request_id": own_id, "error": where_raised(error)}
            )
            if status:  # half an answer is out: only cutting it off tells that it is not whole
                raise _CutOff from None
            await _UNFORESEEN.response()(scope, receive, send_with_id)
        finally:
            route = scope.get("route")
            polled = status < 400 and getattr(route, "path", "") in _POLLED
            log.log(
                logging.DEBUG if polled else logging.INFO,
                "request",
                extra={
                    "request_id": own_id,
                    "method": scope["method"],
                    "route": getattr(route, "path", "-"),
                    "status": status,
                    "seconds": round(time.monotonic() - began, 4),
                },
            )


class _CutOff(Exception):
    """Makes uvicorn close the connection of an answer that can't be completed."""


_UNFORESEEN = ApiError(
    500,
    "The server could not do this; it is not your request's fault. Its log has the details under "
    "this answer's x-request-id.",
    code="internal_error",
)
