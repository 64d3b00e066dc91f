"""What the front answers by itself, in OpenAI's shape, and which headers it passes on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from uuid import uuid4

from aiohttp import HttpVersion, HttpVersion10, HttpVersion11, web
from llmtaskpool_worker.contract import GOOD_REQUEST_ID, REQUEST_ID
from multidict import CIMultiDict, CIMultiDictProxy

HOP_BY_HOP = frozenset(
    {
        "connection",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Fields about one connection (RFC 9110, section 7.6.1). Expect is answered by each hop."""


_HOST = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
"""RFC 9110, section 7.2: uri-host with an optional port, of RFC 3986; empty is allowed."""


def understood(version: HttpVersion, headers: CIMultiDictProxy[str]) -> bool:
    """Whether every reader must take this head for the same: what the parser lets pass.

    RFC 9112, sections 2.3 (versions), 3.2 (one valid Host, but for HTTP/1.0), 6.1 (chunked is the
    only coding, and not for HTTP/1.0).
    """
    if version not in (HttpVersion10, HttpVersion11):
        return False
    codings = headers.getall("transfer-encoding", [])
    if codings and (version == HttpVersion10 or [c.lower() for c in codings] != ["chunked"]):
        return False
    hosts = headers.getall("host", [])
    if not hosts and version == HttpVersion10:
        return True
    return len(hosts) == 1 and _HOST.fullmatch(hosts[0]) is not None


def invalid_http() -> web.Response:
    """The refusal of what is no HTTP; its connection is to be closed."""
    return refusal(400, "invalid_http", "This is not a valid HTTP/1.1 request.")


def refusal(
    status: int, code: str, message: str, retry_after_seconds: int | None = None
) -> web.Response:
    """An error of the front's own."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": None, "code": code}
    headers = {"content-type": "application/json"}
    if retry_after_seconds is not None:
        headers["retry-after"] = str(retry_after_seconds)
    return _Unsigned(status=status, body=json.dumps({"error": error}).encode(), headers=headers)


def passed_on(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """The fields that are for the other end: without those of this hop, and those it names."""
    hop = HOP_BY_HOP
    if "connection" in headers:
        named = headers["connection"].lower().split(",")
        hop = hop | {name.strip() for name in named}
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in hop)


class _Unsigned(web.Response):
    """With a request id, without aiohttp's Server field: a client need not know what answers."""

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.popall("Server", None)
        given = "" if self._req is None else self._req.headers.get(REQUEST_ID, "")
        if not GOOD_REQUEST_ID.fullmatch(given):
            given = f"req_{uuid4().hex}"
        self.headers[REQUEST_ID] = given


class PassedAnswer(web.StreamResponse):
    """A worker's answer as it is: no field is added that it doesn't have.

    ``at_once``: send the head now, and not with the first bytes of the body.
    """

    def __init__(
        self, status: int, reason: str | None, headers: CIMultiDict[str], *, at_once: bool
    ) -> None:
        self._typed = "content-type" in headers
        headers.popall("server", None)
        super().__init__(status=status, reason=reason, headers=headers)
        self._send_headers_immediately = at_once

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.popall("Server", None)
        if not self._typed:
            self.headers.popall("Content-Type", None)
