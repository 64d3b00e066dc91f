"""The lines of a batch's files: what is read of the one, what is written to the others. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from llmtaskpool_worker.execution.batch import BatchError

CUSTOM_ID_LETTERS = 512


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """What a route says to a line. ``code`` is its error's; None when it is none.

    ``wait_seconds``: it may say something else after this time.
    """

    status: int
    body: bytes
    request_id: str
    code: str | None = None
    wait_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A request of a batch; ``body`` is JSON as it was given."""

    number: int
    custom_id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that can't be asked, and why."""

    number: int
    custom_id: str | None
    error: BatchError


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a line ended, as it is written into the output or the error file."""

    number: int
    good: bool
    written: bytes


class _Given(msgspec.Struct):
    custom_id: Any = None
    method: Any = None
    url: Any = None
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Body(msgspec.Struct):
    stream: Any = None


def parse_line(number: int, text: bytes, endpoint: str) -> Line | BadLine:
    """A line of the input file."""
    try:
        given = msgspec.json.decode(text, type=_Given)
    except (msgspec.DecodeError, RecursionError):
        told = "it is no JSON object: write one request as {...} in one line, in UTF-8"
        return _bad(number, None, "invalid_json_line", told)
    name = given.custom_id
    if not isinstance(name, str) or not 1 <= len(name) <= CUSTOM_ID_LETTERS:
        told = (
            f"custom_id must be a text of 1 to {CUSTOM_ID_LETTERS} letters: give each line its own"
        )
        return _bad(number, None, "invalid_custom_id", told, "custom_id")
    if given.method not in (None, "POST"):
        return _bad(number, name, "invalid_method", "method must be POST", "method")
    if given.url != endpoint:
        told = f"url is not the batch's endpoint: write {endpoint}, or put it into another batch"
        return _bad(number, name, "invalid_url", told, "url")
    try:
        body = msgspec.json.decode(given.body, type=_Body)
    except (msgspec.DecodeError, RecursionError):
        told = "body is no JSON object: write what the endpoint takes"
        return _bad(number, name, "invalid_body", told, "body")
    if body.stream not in (None, False):
        told = "stream can't be used in a batch: leave it out"
        return _bad(number, name, "unsupported_value", told, "body.stream")
    return Line(number, name, bytes(given.body))


def _bad(number: int, name: str | None, code: str, told: str, param: str | None = None) -> BadLine:
    return BadLine(number, name, BatchError(code, f"line {number}: {told}.", number, param))


def check_lines(
    lines: Sequence[tuple[int, bytes]], endpoint: str, seen: set[str], longest: int
) -> list[BadLine]:
    """Those that can't be asked. ``seen`` are the custom_ids of the good ones, and grows."""
    found = []
    for number, text in lines:
        if len(text) > longest:
            told = f"it has {len(text)} bytes, and a request at most {longest}: split it"
            found.append(_bad(number, None, "line_too_long", told))
            continue
        line = parse_line(number, text, endpoint)
        if isinstance(line, Line) and line.custom_id in seen:
            told = "an earlier line has the same custom_id: give each line its own"
            line = _bad(number, line.custom_id, "duplicate_custom_id", told, "custom_id")
        if isinstance(line, BadLine):
            found.append(line)
        else:
            seen.add(line.custom_id)
    return found


def answered(batch_id: str, line: Line, answer: LineAnswer) -> Outcome:
    """A line to which its route said something: good when it is 2xx."""
    good = 200 <= answer.status < 300
    response = {
        "status_code": answer.status,
        "request_id": answer.request_id,
        "body": msgspec.Raw(answer.body),
    }
    told: dict[str, Any] = {
        "id": _id(batch_id, line.number),
        "custom_id": line.custom_id,
        "response": response,
        "error": None,
    }
    if not good:
        told["line"] = line.number
    return Outcome(line.number, good, msgspec.json.encode(told) + b"\n")


def not_answered(batch_id: str, custom_id: str | None, error: BatchError) -> Outcome:
    """A line that was never asked, or whose answer never came."""
    number = error.line or 0
    told = {
        "id": _id(batch_id, number),
        "custom_id": custom_id,
        "response": None,
        "error": {"code": error.code, "message": error.message, "param": error.param},
        "line": number,
    }
    return Outcome(number, False, msgspec.json.encode(told) + b"\n")


def _id(batch_id: str, number: int) -> str:
    return f"batch_req_{batch_id.removeprefix('batch_')}_{number}"


class Bits:
    """Numbers of lines, one bit each."""

    def __init__(self, data: bytes = b"") -> None:
        self._data = bytearray(data)

    def __contains__(self, number: int) -> bool:
        """Whether it was added."""
        place = number >> 3
        return place < len(self._data) and bool(self._data[place] >> (number & 7) & 1)

    def add(self, number: int) -> None:
        """Idempotent."""
        place = number >> 3
        if place >= len(self._data):
            self._data.extend(bytes(place + 1 - len(self._data)))
        self._data[place] |= 1 << (number & 7)

    def data(self) -> bytes:
        """To be made again of."""
        return bytes(self._data)
