"""Reading bodies: bounded each and all together, unpacked, parsed off the event loop when big.

What is beyond a limit is refused before it is kept, so memory stays flat under any input.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import pydantic_core
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from llmtaskpool_worker.http_api.beginnings import its_turn
from llmtaskpool_worker.http_api.errors import ApiError
from llmtaskpool_worker.http_api.limits import HttpLimits
from llmtaskpool_worker.http_api.unpacking import unpacker_of

T = TypeVar("T")

BIG_BODY_BYTES = 64 * 1024
"""Bodies from here on are scanned, parsed and checked off the event loop."""

SMALL_SHARE = 0.125
"""Of the budget, so much is kept for bodies below BIG_BODY_BYTES: big ones can't shut them out."""

VALUE_BYTES = 128
"""What a parsed value holds in Python, about the most: a small object, by each of its values."""

RETRY_SECONDS = 2.0

_LEASE = "llmtaskpool.body"


class BodyBudget:
    """Bytes that the bodies of all requests hold at one time."""

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self.held = 0

    def has_room(self, count: int, *, small: bool) -> bool:
        """Whether ``count`` more bytes could be taken now. A lone body always may."""
        limit = self._total if small else self._total * (1 - SMALL_SHARE)
        return not self.held or self.held + count <= limit

    def take(self, count: int, *, small: bool) -> bool:
        """Whether ``count`` more bytes may be held; they are, then."""
        if not self.has_room(count, small=small):
            return False
        self.held += count
        return True

    def give_back(self, count: int) -> None:
        """They are held no longer."""
        self.held -= count


class _Lease:
    """What one body holds of the budget."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._held = 0

    def grow(self, count: int) -> None:
        """Raises ApiError 503 when the budget doesn't have it; all is given back then."""
        small = self._held + count < BIG_BODY_BYTES
        # What this body holds itself is no reason to refuse it.
        self._budget.give_back(self._held)
        fits = self._budget.take(self._held + count, small=small)
        if not fits:
            self._held = 0
            raise _no_room()
        self._held += count

    def end(self) -> None:
        """Give all of it back; idempotent."""
        self._budget.give_back(self._held)
        self._held = 0


class _Pieces:
    """A body as it comes. One long bytearray that grows took the loop 34 ms for 8 MB."""

    def __init__(self) -> None:
        self.size = 0
        self._pieces: list[bytes] = []
        self._short = bytearray()

    def add(self, piece: bytes) -> None:
        """Short pieces are put together: by itself each would hold many times its bytes."""
        self.size += len(piece)
        if not self._short and len(piece) >= _SLICE:
            self._pieces.append(piece)
            return
        self._short += piece
        if len(self._short) >= _SLICE:
            self._pieces.append(bytes(self._short))
            self._short.clear()

    def whole(self) -> bytes:
        """All of it; the pieces are let go."""
        body = b"".join([*self._pieces, self._short])
        self._pieces.clear()
        return body


class Bodies:
    """Reads the bodies of one port's requests."""

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self.budget = BodyBudget(limits.bodies_bytes)
        self._parsing = ThreadPoolExecutor(2, "parse-body")

    async def read(self, request: Request, convert: Callable[[dict[str, Any]], T]) -> T:
        """The body of a request, a JSON object within the limits, converted.

        It counts in the budget until ``give_back``, or else until the request has ended.

        Raises:
            ApiError: 413 beyond ``body_bytes``, 408 beyond ``body_seconds``, 415 when it is
                packed in a way that isn't read, 503 when the bodies of all requests hold too
                much, else 400 when it is no JSON object, is nested deeper than ``json_depth`` or
                holds more than ``json_values``. And what ``convert`` raises.
            ClientDisconnect: the client left before its body was complete.
        """
        limits = self._limits
        lease = _Lease(self.budget)
        request.scope[_LEASE] = lease
        read = await self._read(request, lease)
        if read.size < BIG_BODY_BYTES:
            return convert(parse_json(read.whole(), limits))
        loop = asyncio.get_running_loop()
        body = await loop.run_in_executor(self._parsing, read.whole)
        marks = await loop.run_in_executor(self._parsing, count_marks, body)
        lease.grow(VALUE_BYTES * min(marks.opening + marks.commas, limits.json_values))
        return await loop.run_in_executor(
            self._parsing, lambda: convert(parse_json(body, limits, marks))
        )

    async def read_bytes(
        self, request: Request, convert: Callable[[bytes, Callable[[bytes], dict[str, Any]]], T]
    ) -> T:
        """The body of a request as it came, converted; limits and errors are those of ``read``.

        ``convert`` is given a function that parses a part of it as a JSON object.
        """
        lease = _Lease(self.budget)
        request.scope[_LEASE] = lease
        read = await self._read(request, lease)
        if read.size < BIG_BODY_BYTES:
            return convert(read.whole(), self.parse)
        lease.grow(VALUE_BYTES * min(read.size // 2, self._limits.json_values))
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._parsing, lambda: convert(read.whole(), self.parse))

    def parse(self, body: bytes) -> dict[str, Any]:
        """A part of a body as a JSON object, within the limits. Raises ApiError 400."""
        return parse_json(body, self._limits)

    async def _read(self, request: Request, lease: _Lease) -> _Pieces:
        limits = self._limits
        unpacker = unpacker_of(request.headers.get("content-encoding", ""))
        announced = request.headers.get("content-length", "")
        if announced.isdecimal():
            expected = int(announced[:20])
            if expected > limits.body_bytes:
                raise _too_long(limits)
            if not self.budget.has_room(expected, small=expected < BIG_BODY_BYTES):
                raise _no_room()
        read = _Pieces()
        try:
            async with asyncio.timeout(limits.body_seconds):
                async for chunk in request.stream():
                    for piece in unpacker.feed(chunk):
                        if read.size + len(piece) > limits.body_bytes:
                            raise _too_long(limits)
                        lease.grow(len(piece))
                        read.add(piece)
                        if len(piece) > len(chunk):
                            await asyncio.sleep(0)  # a small chunk may unpack to many pieces
        except TimeoutError:
            raise ApiError(
                408,
                f"The body did not arrive within {limits.body_seconds:g} s: send it faster.",
                param="body",
                code="body_timeout",
                close=True,
            ) from None
        unpacker.end()
        await its_turn(request.scope)
        return read

    def give_back(self, request: Request) -> None:
        """The body of this request is held no longer: what it asks for was taken over."""
        _give_back(request.scope)


class GiveBack:
    """ASGI: whatever happens to a request, in the end its body counts no longer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        try:
            await self._app(scope, receive, send)
        finally:
            _give_back(scope)


def _give_back(scope: Scope) -> None:
    lease: _Lease | None = scope.pop(_LEASE, None)
    if lease is not None:
        lease.end()


def _no_room() -> ApiError:
    return ApiError(
        503,
        "The bodies of other requests take all the room for them: send it again later.",
        param="body",
        code="bodies_full",
        retry_after_seconds=RETRY_SECONDS,
        close=True,  # the rest of it was not read
    )


def _too_long(limits: HttpLimits) -> ApiError:
    return ApiError(
        413,
        f"The body is longer than {limits.body_bytes} bytes: send less in one request.",
        param="body",
        code="body_too_large",
        close=True,  # the rest of it was not read
    )


@dataclass(frozen=True, slots=True)
class Marks:
    """Opening brackets and commas of a body, those within its texts too."""

    opening: int
    commas: int


def count_marks(body: bytes) -> Marks:
    """In slices, so that other threads get their turn between them: 8 MB take 6 ms a mark."""
    opening = commas = 0
    for start in range(0, len(body), _SLICE):
        end = start + _SLICE
        opening += body.count(b"[", start, end) + body.count(b"{", start, end)
        commas += body.count(b",", start, end)
    return Marks(opening, commas)


def parse_json(body: bytes, limits: HttpLimits, marks: Marks | None = None) -> dict[str, Any]:
    """``body`` as a JSON object; raises ApiError 400 naming what is wrong and where.

    ``marks`` are those of the body, when they have been counted.
    """
    check_nesting(body, limits, marks)
    try:
        # Without a cache: it doubled the time of an object with 95,000 names, 33 ms.
        parsed = pydantic_core.from_json(body, allow_inf_nan=False, cache_strings="none")
    except ValueError as error:
        raise ApiError(
            400,
            f"The body is not valid JSON: {error}. Send one JSON object in UTF-8, without NaN.",
            param="body",
            code="invalid_json",
        ) from None
    if not isinstance(parsed, dict):
        raise ApiError(
            400,
            "The body is not a JSON object: send {...}.",
            param="body",
            code="invalid_json",
        )
    return parsed


_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_NOT_STRUCTURE = bytes(set(range(256)) - set(b"[]{},"))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1, ord(","): 0}
_CLOSING = b"]}"
_SLICE = 64 * 1024
"""Scanned in slices, so that other threads get their turn between them."""


def check_nesting(body: bytes, limits: HttpLimits, marks: Marks | None = None) -> None:
    """Refuse JSON that is too deep or has too many values, without recursion and before parsing.

    A value has a comma or an opening bracket before it, or is the first. Bodies with few of these
    pass at once. Else strings are taken out, and the depth is the running sum of +1 for an
    opening bracket and -1 for a closing one.
    """
    marks = marks or count_marks(body)
    if marks.opening <= limits.json_depth and marks.opening + marks.commas <= limits.json_values:
        return
    depth = values = start = 0
    in_string = False
    while start < len(body):
        piece = body[start : start + _SLICE]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:
            piece = body[start : start + _SLICE + 1]  # an escape is not cut
        start += len(piece)
        unescaped = _ESCAPE.sub(b"", piece)
        texts = unescaped.split(b'"')
        outside = b"".join(texts[1::2] if in_string else texts[::2])
        in_string ^= len(texts) % 2 == 0
        structure = outside.translate(None, _NOT_STRUCTURE)
        if not structure:
            continue
        values += len(structure.translate(None, _CLOSING))
        if values > limits.json_values:
            raise ApiError(
                400,
                f"The body holds more than {limits.json_values} values: send fewer in one request.",
                param="body",
                code="json_too_large",
            )
        depths = list(accumulate(map(_STEP.__getitem__, structure)))
        if depth + max(depths) > limits.json_depth:
            raise ApiError(
                400,
                f"The body is nested deeper than {limits.json_depth}: send it flatter.",
                param="body",
                code="json_too_deep",
            )
        depth += depths[-1]


__all__ = ["Bodies", "BodyBudget", "GiveBack", "check_nesting", "parse_json"]
