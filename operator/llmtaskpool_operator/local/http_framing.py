"""Where the messages on one HTTP/1.1 connection begin and end, seen from the bytes alone.

The front (front.py) passes bytes on and understands nothing of them but this: it must know when
a connection rests between two exchanges, because only then may the next request go to another
worker. What can't be followed is called opaque: it stays where it is until it is closed.
Source: RFC 9112, sections 6 (message body length) and 7 (chunked coding). Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum, auto

HEAD_BYTES_MAX = 256 * 1024
LINE_BYTES_MAX = 8 * 1024
_WITHOUT_BODY = frozenset({204, 304})


class _At(Enum):
    HEAD = auto()
    LENGTH = auto()
    CHUNK_SIZE = auto()
    CHUNK = auto()
    TRAILERS = auto()
    OPAQUE = auto()


class _Opaque(Exception):
    """The end of a message can't be told."""


class Messages:
    """Follows the messages of one direction.

    ``body_of(head)`` tells a message's body: its length, None for chunked; it raises for one
    that ends with the connection. ``ended`` is called at the end of each message.
    """

    def __init__(self, body_of: Callable[[bytes], int | None], ended: Callable[[], None]) -> None:
        self._body_of = body_of
        self._ended = ended
        self._at = _At.HEAD
        self._held = b""
        self._left = 0

    @property
    def between(self) -> bool:
        """Whether the next byte would begin a message."""
        return self._at is _At.HEAD and not self._held

    @property
    def opaque(self) -> bool:
        """Whether this direction can't be followed any more."""
        return self._at is _At.OPAQUE

    def feed(self, data: bytes) -> None:
        """The next bytes."""
        try:
            self._feed(data)
        except _Opaque:
            self._at, self._held = _At.OPAQUE, b""

    def _feed(self, data: bytes) -> None:
        data, self._held = self._held + data, b""
        here = 0
        while here < len(data) and self._at is not _At.OPAQUE:
            if self._left:
                step = min(self._left, len(data) - here)
                self._left -= step
                here += step
                if not self._left:
                    self._at_end_of_part()
                continue
            mark = b"\r\n\r\n" if self._at is _At.HEAD else b"\r\n"
            end = data.find(mark, here)
            if end < 0:
                self._held = data[here:]
                most = HEAD_BYTES_MAX if self._at is _At.HEAD else LINE_BYTES_MAX
                if len(self._held) > most:
                    raise _Opaque
                return
            line, here = data[here:end], end + len(mark)
            self._take(line)

    def _take(self, line: bytes) -> None:
        if self._at is _At.HEAD:
            length = self._body_of(line)
            if length is None:
                self._at = _At.CHUNK_SIZE
            elif length:
                self._at, self._left = _At.LENGTH, length
            else:
                self._ended()
        elif self._at is _At.CHUNK_SIZE:
            size = _hexadecimal(line.partition(b";")[0].strip())
            self._at = _At.CHUNK if size else _At.TRAILERS
            self._left = size + 2 if size else 0
        elif not line:  # an empty line ends the trailers
            self._at = _At.HEAD
            self._ended()

    def _at_end_of_part(self) -> None:
        if self._at is _At.CHUNK:
            self._at = _At.CHUNK_SIZE
        else:
            self._at = _At.HEAD
            self._ended()


class Exchanges:
    """Follows both directions of a connection; ``request`` and ``answer`` take every byte."""

    def __init__(self) -> None:
        self._requests = Messages(self._request_body, lambda: None)
        self._answers = Messages(self._answer_body, self._answered)
        self._without_body: deque[bool] = deque()
        self._interim = False
        self._answer_seen = False

    @property
    def idle(self) -> bool:
        """Whether every request is answered and nothing is under way."""
        return (
            not self._without_body
            and self._requests.between
            and self._answers.between
        )  # fmt: skip

    @property
    def unanswered(self) -> bool:
        """Whether a request is under way of whose answer no byte has come."""
        return not self.idle and not self._answer_seen

    def request(self, data: bytes) -> None:
        """Bytes from the client."""
        self._requests.feed(data)

    def answer(self, data: bytes) -> None:
        """Bytes from the worker."""
        self._answer_seen = True
        self._answers.feed(data)

    def _request_body(self, head: bytes) -> int | None:
        self._without_body.append(head.startswith(b"HEAD "))
        if head.startswith(b"CONNECT "):
            raise _Opaque
        return _length(head, otherwise=0)

    def _answer_body(self, head: bytes) -> int | None:
        parts = head.split(b" ", 2)
        status = int(parts[1][:3]) if len(parts) > 1 and parts[1][:3].isdigit() else 0
        if status < 100 or status == 101:
            raise _Opaque
        self._interim = status < 200
        to_head = bool(self._without_body) and self._without_body[0]
        if self._interim or status in _WITHOUT_BODY or to_head:
            return 0
        return _length(head, otherwise=None)

    def _answered(self) -> None:
        if self._interim:
            return
        if self._without_body:
            self._without_body.popleft()
        self._answer_seen = False


def _length(head: bytes, *, otherwise: int | None) -> int | None:
    """The body's length, None for chunked; without either, ``otherwise`` or opaque."""
    lengths: set[bytes] = set()
    chunked = False
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        field = name.strip().lower()
        if field == b"content-length":
            lengths.add(value.strip())
        elif field == b"transfer-encoding":
            chunked = chunked or value.strip().lower().endswith(b"chunked")
    if chunked:
        return None
    if not lengths and otherwise is not None:
        return otherwise
    if len(lengths) != 1 or not (text := lengths.pop()).isdigit() or len(text) > 18:
        raise _Opaque
    return int(text)


def _hexadecimal(text: bytes) -> int:
    if not 0 < len(text) <= 15 or not all(c in b"0123456789abcdefABCDEF" for c in text):
        raise _Opaque
    return int(text, 16)
