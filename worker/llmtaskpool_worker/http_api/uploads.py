"""Reading uploads (multipart/form-data) piece by piece: a file is never whole in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from llmtaskpool_worker.http_api.errors import ApiError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD_BYTES = 1024
"""Of a field beside the file; there are few of them, and they are short."""
FIELDS = 16
AROUND_BYTES = 64 * 1024
"""What may be around a file in its upload."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field that is no file."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Begin:
    """A file begins."""

    name: str
    filename: str


@dataclass(frozen=True, slots=True)
class Data:
    """Some more of the file that has begun."""

    data: bytes


Part = Field | Begin | Data


class _Reader:
    """Takes the parser's callbacks, and makes parts of them."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.whole = False
        self._name, self._header = bytearray(), bytearray()
        self._disposition = b""
        self._field: str | None = None
        self._value = bytearray()
        self._seen = 0

    def on_part_begin(self) -> None:
        self._seen += 1
        if self._seen > FIELDS:
            raise _bad(f"the form has more than {FIELDS} fields: send purpose and file")
        self._disposition, self._field = b"", None
        self._value.clear()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        if len(self._header) > FIELD_BYTES:
            raise _bad("a header of the form is too long")

    def on_header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = bytes(self._header)
        self._name.clear()
        self._header.clear()

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode(errors="replace")
        filename = options.get(b"filename")
        if filename is None:
            self._field = name
        else:
            self.parts.append(Begin(name, filename.decode(errors="replace")))

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self.parts.append(Data(bytes(data[start:end])))
            return
        self._value += data[start:end]
        if len(self._value) > FIELD_BYTES:
            raise _bad(f"the form's field {self._field[:64]!r} has more than {FIELD_BYTES} bytes")

    def on_part_end(self) -> None:
        if self._field is not None:
            self.parts.append(Field(self._field, self._value.decode(errors="replace")))

    def on_end(self) -> None:
        self.whole = True


async def parts_of(request: Request, most_bytes: int, piece_seconds: float) -> AsyncIterator[Part]:
    """The parts of an upload as they come; each piece of it within ``piece_seconds``.

    Raises ApiError; ClientDisconnect when the client left before it was complete.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise ApiError(
            415,
            "The body is no multipart/form-data: send the file as a form with purpose and file.",
            param="content-type",
            code="unsupported_media_type",
        )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > most_bytes + AROUND_BYTES:
        raise too_large(most_bytes)
    reader = _Reader()
    callbacks = {name: getattr(reader, name) for name in dir(reader) if name.startswith("on_")}
    try:
        parser = MultipartParser(boundary, cast("MultipartCallbacks", callbacks))
        pieces = request.stream().__aiter__()
        while True:
            try:
                async with asyncio.timeout(piece_seconds):
                    piece = await anext(pieces)
            except StopAsyncIteration:
                break
            except TimeoutError:
                raise ApiError(
                    408,
                    f"Nothing of the upload came for {piece_seconds:g} s: send it faster.",
                    param="body",
                    code="body_timeout",
                    close=True,
                ) from None
            parser.write(piece)
            for part in reader.parts:
                yield part
            reader.parts.clear()
        parser.finalize()
    except FormParserError:
        raise _bad("the form can't be read") from None
    if not reader.whole:
        raise _bad("the form is cut off")


def too_large(most_bytes: int) -> ApiError:
    """413."""
    return ApiError(
        413,
        f"file has more than {most_bytes} bytes: split it into several batches, or raise "
        "LLMTASKPOOL_FILE_BYTES.",
        param="file",
        code="file_too_large",
        close=True,  # the rest of it was not read
    )


def _bad(told: str) -> ApiError:
    return ApiError(
        400, f"{told[:1].upper()}{told[1:]}.", param="body", code="invalid_form", close=True
    )
