"""Of HTTP what llhttp and uvicorn let pass, or don't do: one meaning of every request, or none.

RFC 9112; the front of `llmtaskpool local` has the same rules, and one table of tests is for both.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_VERSIONS = frozenset({"1.0", "1.1"})
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
"""RFC 9110, section 7.2: uri-host with an optional port, of RFC 3986; empty is allowed."""

_UPGRADE = re.compile(rb"(\r\n)upgrade(?=[ \t]*:)", re.IGNORECASE)


def is_understood(method: bytes, version: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether every reader must take a head for the same; names are in small letters.

    Sections 2.3 (versions), 3.2 (one valid Host, but for HTTP/1.0), 6.1 (chunked is the only
    coding, and not for HTTP/1.0). CONNECT asks a proxy for something, and this is none.
    """
    if version not in _VERSIONS or method == b"CONNECT":
        return False
    hosts, codings = [], []
    for name, value in headers:
        if name == b"host":
            hosts.append(value.strip())
        elif name == b"transfer-encoding":
            codings.append(value.strip().lower())
    if codings and (version == "1.0" or codings != [b"chunked"]):
        return False
    if not hosts and version == "1.0":
        return True
    return len(hosts) == 1 and _HOST.fullmatch(hosts[0]) is not None


def not_upgrading(head: bytes) -> bytes:
    """A head, or a piece of one, in which no other protocol is asked for.

    A server may ignore that wish (RFC 9110, section 7.8), but httptools then takes the body for
    what comes after the upgrade. Java's client asks for h2c with its first POST.
    """
    return _UPGRADE.sub(rb"\1x-asked", head) if b"pgrade" in head.lower() else head


class EndsWithConnection(RequestResponseCycle):
    """An answer to HTTP/1.0, which knows no chunks: it ends with its length or the connection."""

    async def send(self, message: ASGISendEvent) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", [])}
            if b"content-length" not in names:
                self.chunked_encoding = False
                self.expected_content_length = sys.maxsize
        elif (
            message["type"] == "http.response.body"
            and self.expected_content_length > sys.maxsize // 2
            and not message.get("more_body", False)
        ):
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)
