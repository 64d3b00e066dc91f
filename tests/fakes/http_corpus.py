"""What clients, careless and hostile, may send to an HTTP port, and what each must be answered.

One table for both ports: the worker's data port and the front before it give the same answers,
one for each request. Forms that two readers could understand differently are refused and the
connection is closed (RFC 9112, sections 2.2, 3.2, 5, 6.1, 6.3, 7.1, 9.3, 11.2).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass

from fakes.fake_pool import FakePool, Running, answer_prompt
from fakes.http_rig import DEADLINE_SECONDS, KEY, serving

PAUSE_SECONDS = 0.03
"""Between two segments, so that they arrive as two."""
SLOWLY = "slowly"
"""A prompt that is answered after a while."""
PROBE = b"GET /livez HTTP/1.1\r\nHost: probe\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Case:
    """Bytes in ``segments``, the ``statuses`` of all answers, and whether more may be asked then.

    ``half_closed``: the client closes its sending side after them. ``bodiless``: HEAD.
    ``interim``: statuses below 200 that come before. ``until_closed``: the last answer has
    neither a length nor chunks, and ends with the connection.
    """

    name: str
    segments: tuple[bytes, ...]
    statuses: tuple[int, ...]
    kept: bool
    half_closed: bool = False
    bodiless: bool = False
    interim: tuple[int, ...] = ()
    until_closed: bool = False


def head(first: str, *fields: str | bytes, host: str | None = "Host: x") -> bytes:
    """A head with a Host field unless told otherwise."""
    lines = [first, *([host] if host is not None else []), *fields]
    return b"\r\n".join(s.encode() if isinstance(s, str) else s for s in lines) + b"\r\n\r\n"


GET = "GET /livez HTTP/1.1"
CHAT = "POST /v1/chat/completions HTTP/1.1"
AUTH = f"Authorization: Bearer {KEY}"
BODY = json.dumps({"model": "echo", "messages": [{"role": "user", "content": "hi"}]}).encode()
STREAM = json.dumps(
    {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
).encode()
LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = "Transfer-Encoding: chunked"
CHUNKS = b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"
FAIR = head(GET)
CHAT_WHOLE = head(CHAT, AUTH, LENGTH) + BODY
SLOW = json.dumps({"model": "echo", "messages": [{"role": "user", "content": SLOWLY}]}).encode()
SLOW_WHOLE = head(CHAT, AUTH, f"Content-Length: {len(SLOW)}") + SLOW
UNKEYED = head(CHAT, LENGTH) + BODY


def fair(name: str, *segments: bytes, statuses: tuple[int, ...] = (200,), **more) -> Case:
    return Case(name, segments, statuses, kept=True, **more)


def last(name: str, *segments: bytes, statuses: tuple[int, ...] = (200,), **more) -> Case:
    return Case(name, segments, statuses, kept=False, **more)


def bad(name: str, *segments: bytes, status: int = 400, statuses: tuple[int, ...] = ()) -> Case:
    return Case(name, segments, statuses or (status,), kept=False)


def chunks(name: str, body: bytes) -> Case:
    return bad(f"chunks: {name}", head(CHAT, AUTH, CHUNKED) + body)


LENGTHS = {
    "a sign": "+5",
    "negative": "-5",
    "hexadecimal": "0x5",
    "an underscore": "1_0",
    "a list": "5, 5",
    "empty": "",
    "beyond 64 bits": "9" * 30,
    "a fraction": "5.0",
    "letters": "five",
    "inner space": "1 1",
}
ENCODINGS = {
    "an unknown coding": "xchunked",
    "identity": "identity",
    "chunked twice": "chunked, chunked",
    "chunked not last": "chunked, gzip",
    "gzip then chunked": "gzip, chunked",
    "a vertical tab": "\x0bchunked",
    "quoted": '"chunked"',
    "empty": "",
}

CASES: tuple[Case, ...] = (
    fair("a fair request", FAIR),
    fair("a fair chat", CHAT_WHOLE),
    fair("an empty line before a request", b"\r\n" + FAIR),
    fair("a request in single bytes", *(FAIR[i : i + 1] for i in range(len(FAIR)))),
    fair("a request line in two segments", b"GET /li", FAIR[7:]),
    fair("a body in two segments", CHAT_WHOLE[:-9], CHAT_WHOLE[-9:]),
    fair(
        "a length with spaces around", head(CHAT, AUTH, f"Content-Length: \t {len(BODY)} ") + BODY
    ),
    fair("a body that nobody asked for", head(GET, "Content-Length: 5") + b"hello"),
    # -- Content-Length
    bad("two equal lengths", head(CHAT, AUTH, LENGTH, LENGTH) + BODY),
    bad("two lengths that differ", head(CHAT, AUTH, LENGTH, "Content-Length: 1") + BODY),
    *(
        bad(f"a length that is none: {what}", head(CHAT, AUTH, f"Content-Length: {text}") + BODY)
        for what, text in LENGTHS.items()
    ),
    # -- Transfer-Encoding
    fair("chunks", head(CHAT, AUTH, CHUNKED) + CHUNKS),
    fair("chunks and a capital", head(CHAT, AUTH, "Transfer-Encoding: Chunked") + CHUNKS),
    fair(
        "chunks with an extension", head(CHAT, AUTH, CHUNKED) + CHUNKS.replace(b"\r", b";a=b\r", 1)
    ),
    fair("chunks with a trailer", head(CHAT, AUTH, CHUNKED) + CHUNKS[:-2] + b"X-T: 1\r\n\r\n"),
    fair("chunks in small pieces", head(CHAT, AUTH, CHUNKED), CHUNKS[:1], CHUNKS[1:9], CHUNKS[9:]),
    bad("a length and chunks", head(CHAT, AUTH, LENGTH, CHUNKED) + CHUNKS),
    bad("chunks and a length", head(CHAT, AUTH, CHUNKED, "Content-Length: 4") + CHUNKS),
    bad("two transfer encodings", head(CHAT, AUTH, CHUNKED, CHUNKED) + CHUNKS),
    bad("chunks in HTTP/1.0", head(CHAT[:-1] + "0", AUTH, CHUNKED) + CHUNKS),
    *(
        bad(f"a coding: {what}", head(CHAT, AUTH, f"Transfer-Encoding: {text}") + CHUNKS)
        for what, text in ENCODINGS.items()
    ),
    chunks("a size of no digits", b"zz\r\nhello\r\n0\r\n\r\n"),
    chunks("a size with 0x", b"0x5\r\nhello\r\n0\r\n\r\n"),
    chunks("a size with a sign", b"+5\r\nhello\r\n0\r\n\r\n"),
    chunks("a size beyond 64 bits", b"f" * 17 + b"\r\nhello\r\n0\r\n\r\n"),
    chunks("more data than the size", b"3\r\nhello\r\n0\r\n\r\n"),
    chunks("a bare LF after the size", b"5\nhello\r\n0\r\n\r\n"),
    chunks("a bare LF after the data", b"5\r\nhello\n0\r\n\r\n"),
    chunks("a bare CR in an extension", b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
    chunks("a trailer with a space in its name", b"0\r\nX Y: 1\r\n\r\n"),
    # -- fields
    bad("a folded field", head(GET, "X-A: one\r\n two")),
    bad("bare LF for line ends", FAIR.replace(b"\r\n", b"\n")),
    bad("one bare LF", head(GET, "X-A: 1\nX-B: 2")),
    bad("a lone CR in a value", head(GET, "X-A: 1\rX-B: 2")),
    bad("a NUL in a value", head(GET, b"X-A: \x00")),
    bad("a control character in a value", head(GET, b"X-A: a\x01b")),
    bad("a NUL in a name", head(GET, b"X-\x00: a")),
    bad("a space in a name", head(GET, "X A: 1")),
    bad("a space before the colon", head(GET, "X-A : 1")),
    bad("a space before the first field", head(GET, host=" Host: x")),
    bad("no colon", head(GET, "nonsense")),
    bad("an empty name", head(GET, ": 1")),
    fair("Latin-1 in a value", head(GET, b"X-A: caf\xe9")),
    fair("UTF-8 in a value", head(GET, "X-A: café")),
    bad("a letter beyond ASCII in a name", head(GET, "X-é: 1")),
    bad("a head of 1 MB", head(GET, "X-A: " + "a" * 2**20), status=431),
    bad("a head of 1 MB in many fields", head(GET, *["X-A: " + "a" * 2**10] * 2**10), status=431),
    bad("a head of 80 kB in few fields", head(GET, *["X-A: " + "a" * 2**13] * 10), status=431),
    bad("200 fields", head(GET, *["X-A: 1"] * 200), status=431),
    # -- Host
    bad("no Host", head(GET, host=None)),
    bad("two Hosts", head(GET, "Host: y")),
    bad("a Host with a space", head(GET, host="Host: a b")),
    bad("a Host with a path", head(GET, host="Host: a/b")),
    bad("a Host with a user", head(GET, host="Host: a@b")),
    fair("an empty Host", head(GET, host="Host:")),
    fair("a Host with a port", head(GET, host="Host: [::1]:8080")),
    last("HTTP/1.0 without a Host", head("GET /livez HTTP/1.0", host=None)),
    # -- targets
    fair("a target with its host", head("GET http://x/livez HTTP/1.1")),
    fair("a target with another host", head("GET http://elsewhere:9/livez?a=b HTTP/1.1")),
    fair("a path that is not there", head("GET /nowhere HTTP/1.1", AUTH), statuses=(404,)),
    fair("a target of 20 kB", head(f"GET /{'a' * 20_000} HTTP/1.1", AUTH), statuses=(404,)),
    fair("a query of 20 kB", head(f"GET /livez?{'a' * 20_000} HTTP/1.1")),
    fair("dots and percent signs", head("GET /a/../%2e%2e//livez HTTP/1.1", AUTH), statuses=(404,)),
    bad("a target of 200 kB", head(f"GET /{'a' * 200_000} HTTP/1.1"), status=431),
    bad("a target with a NUL", head("GET /\x00 HTTP/1.1")),
    bad("a target beyond ASCII", head("GET /é HTTP/1.1")),
    bad("a target with a space", head("GET /a b HTTP/1.1")),
    bad("a target without a slash", head("GET livez HTTP/1.1")),
    bad("no target", head("GET HTTP/1.1")),
    bad("a target with half a host", head("GET http://[::1/livez HTTP/1.1")),
    bad(
        "the same behind another", FAIR, head("GET http://[::1/livez HTTP/1.1"), statuses=(200, 400)
    ),
    bad("CONNECT", head("CONNECT x:80 HTTP/1.1")),
    # -- versions and methods
    bad("HTTP/0.9", b"GET /livez\r\n\r\n"),
    bad("HTTP/2.0 in words", head("GET /livez HTTP/2.0")),
    bad("HTTP/1.2", head("GET /livez HTTP/1.2")),
    bad("HTTP/2 without asking", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    bad("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64),
    bad("an unknown method", head("FETCH /livez HTTP/1.1")),
    bad("a method in small letters", head("get /livez HTTP/1.1")),
    fair("a method for another route", head("DELETE /livez HTTP/1.1"), statuses=(405,)),
    fair("HEAD", head("HEAD /livez HTTP/1.1"), bodiless=True),
    # -- connections
    last("Connection: close", head(GET, "Connection: close")),
    last("Connection: close in a list", head(GET, "Connection: x-a, Close")),
    last("a chat and Connection: close", head(CHAT, AUTH, LENGTH, "Connection: close") + BODY),
    last("HTTP/1.0", head("GET /livez HTTP/1.0")),
    last("HTTP/1.0 that would stay", head("GET /livez HTTP/1.0", "Connection: keep-alive")),
    last("a chat in HTTP/1.0", head(CHAT[:-1] + "0", AUTH, LENGTH) + BODY),
    last(
        "a stream in HTTP/1.0",
        head(CHAT[:-1] + "0", AUTH, f"Content-Length: {len(STREAM)}") + STREAM,
        until_closed=True,
    ),
    fair("a stream", head(CHAT, AUTH, f"Content-Length: {len(STREAM)}") + STREAM),
    # -- pipelining
    fair("three at once", FAIR * 3, statuses=(200,) * 3),
    fair("chats and questions at once", CHAT_WHOLE + FAIR + CHAT_WHOLE, statuses=(200,) * 3),
    last("refused behind another", FAIR + UNKEYED + FAIR, statuses=(200, 401)),
    last("refused before its body came", UNKEYED[:-9], UNKEYED[-9:] + FAIR, statuses=(401,)),
    last("nothing after Connection: close", head(GET, "Connection: close") + FAIR),
    last(
        "refused for its announced size",
        head(CHAT, AUTH, f"Content-Length: {2**30}") + b"x" * 1000,
        statuses=(413,),
    ),
    last(
        "refused for its size while it comes",
        head(CHAT, AUTH, CHUNKED),
        *([b"100000\r\n" + b"x" * 2**20 + b"\r\n"] * 4),
        statuses=(413,),
    ),
    last("garbage behind a request", FAIR, b"\x00garbage\r\n\r\n", statuses=(200, 400)),
    last("a request and half a head", FAIR + b"GET /livez HTT", half_closed=True),
    # -- Expect
    fair(
        "Expect: 100-continue",
        head(CHAT, AUTH, LENGTH, "Expect: 100-continue"),
        BODY,
        interim=(100,),
    ),
    fair("Expect, and not waiting", head(CHAT, AUTH, LENGTH, "Expect: 100-continue") + BODY),
    last(
        "Expect without a key",
        head(CHAT, LENGTH, "Expect: 100-continue"),
        statuses=(401,),
    ),
    last("Expect in HTTP/1.0", head(CHAT[:-1] + "0", AUTH, LENGTH, "Expect: 100-continue"), BODY),
    # -- half-closed
    last("half-closed", FAIR, half_closed=True),
    last("half-closed after a chat", CHAT_WHOLE, half_closed=True),
    last("half-closed after two", FAIR + FAIR, statuses=(200, 200), half_closed=True),
    last("half-closed long before its answer", SLOW_WHOLE, half_closed=True),
    last(
        "half-closed and slow, and another",
        SLOW_WHOLE + FAIR,
        statuses=(200, 200),
        half_closed=True,
    ),
    last("half-closed in a second head", SLOW_WHOLE + FAIR[:9], half_closed=True),
    last("half-closed in a head", FAIR[:20], statuses=(), half_closed=True),
    last("half-closed in a body", CHAT_WHOLE[:-5], statuses=(), half_closed=True),
    last("half-closed at once", statuses=(), half_closed=True),
    # -- upgrades
    fair(
        "h2c",
        head(
            GET, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"
        ),
    ),
    fair(
        "h2c with a body",
        head(
            CHAT,
            AUTH,
            LENGTH,
            "Connection: Upgrade, HTTP2-Settings",
            "Upgrade: h2c",
            "HTTP2-Settings: AAMAAABk",
        )
        + BODY,
    ),
    fair(
        "a websocket",
        head(
            GET,
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ),
    ),
    fair(
        "an upgrade that nobody knows",
        head(GET, "Connection: Upgrade", "Upgrade: x/1") + FAIR,
        statuses=(200, 200),
    ),
)


async def answer_slowly(running: Running) -> None:
    """A script for FakePool: the answer to SLOWLY takes a while."""
    if SLOWLY in "".join(map(chr, running.request.payload.prompt)):
        await asyncio.sleep(10 * PAUSE_SECONDS)
    await answer_prompt(running)


@contextmanager
def corpus_worker():
    """A worker's servers for the corpus."""
    with serving(
        lambda clock: FakePool(clock, script=answer_slowly),
        api_keys=(KEY,),
        max_body_bytes=2**20,
    ) as rig:
        yield rig


@dataclass(frozen=True, slots=True)
class Got:
    """What came back."""

    statuses: tuple[int, ...]
    kept: bool
    interim: tuple[int, ...]
    until_closed: bool


def exchange(port: int, case: Case) -> Got:
    """Send a case over a connection of its own, ask once more, and read all that is answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_SECONDS) as made:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError):  # refused and closed while more was sent
            for number, segment in enumerate(case.segments):
                if number:
                    time.sleep(PAUSE_SECONDS)
                made.sendall(segment)
            if case.half_closed:
                time.sleep(PAUSE_SECONDS)
                made.shutdown(socket.SHUT_WR)
        answers = _Answers(made.makefile("rb"))
        for _ in case.statuses:
            answers.read(bodiless=case.bodiless)
        kept = False
        if not case.half_closed:
            with contextlib.suppress(ConnectionError):
                if case.kept:
                    made.sendall(PROBE)
                    kept = answers.read() == 200
        if kept:
            answers.statuses.pop()
            made.shutdown(socket.SHUT_WR)  # whatever else it has to say comes now
        while answers.read() is not None:
            pass
        return Got(tuple(answers.statuses), kept, tuple(answers.interim), answers.until_closed)


class _Answers:
    def __init__(self, stream) -> None:
        self.statuses: list[int] = []
        self.interim: list[int] = []
        self.until_closed = False
        self._stream = stream

    def read(self, *, bodiless: bool = False) -> int | None:
        """The next final status; None when the connection is closed."""
        try:
            return self._read(bodiless)
        except ConnectionError:
            return None

    def _read(self, bodiless: bool) -> int | None:
        while True:
            line = self._stream.readline()
            if not line:
                return None
            assert line.startswith(b"HTTP/1."), line
            status = int(line.split()[1])
            fields = {}
            while text := self._stream.readline().strip():
                name, _, value = text.partition(b":")
                fields[name.lower()] = value.strip().lower()
            if status >= 200:
                break
            self.interim.append(status)
        assert fields.get(b"x-request-id"), f"{status} without a request id"
        if not bodiless and status != 204:
            self._skip(fields)
        self.statuses.append(status)
        return status

    def _skip(self, fields: dict[bytes, bytes]) -> None:
        if fields.get(b"transfer-encoding") == b"chunked":
            while size := int(self._stream.readline(), 16):
                self._stream.read(size + 2)
            self._stream.readline()
        elif b"content-length" in fields:
            wanted = int(fields[b"content-length"])
            assert len(self._stream.read(wanted)) == wanted
        else:
            self.until_closed = bool(self._stream.read())
