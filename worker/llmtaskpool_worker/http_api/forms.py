"""Forms with files (multipart/form-data), as OpenAI's audio routes take them: read from memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from llmtaskpool_worker.http_api.errors import ApiError, invalid

PARTS_MAX = 64
TEXT_BYTES = 64 * 1024
"""Of a field that is no file."""
_HEADER_BYTES = 4096


@dataclass(slots=True)
class Form:
    """Fields by name, each as often as it came, and the bytes of each file."""

    fields: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


class _Reading:
    """Takes in what the parser finds."""

    def __init__(self) -> None:
        self.form = Form()
        self.parts = 0
        self.ended = False
        self._name = self._header = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._data: list[bytes] = []

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._field,
            "on_header_value": self._more,
            "on_header_end": self._header_end,
            "on_part_data": self._part_data,
            "on_part_end": self._end,
            "on_end": self._whole,
        }

    def _begin(self) -> None:
        self.parts += 1
        if self.parts > PARTS_MAX:
            raise invalid("body", f"The form has more than {PARTS_MAX} fields: send fewer.")
        self._headers, self._data, self._header, self._value = {}, [], b"", b""

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._bounded()

    def _more(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._bounded()

    def _bounded(self) -> None:
        if len(self._header) + len(self._value) > _HEADER_BYTES:
            raise invalid("body", "A field of the form has a header that is too long: shorten it.")

    def _header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def _end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        data = b"".join(self._data)
        self._data = []
        if b"filename" in options:
            if name in self.form.files:
                raise invalid("file", "The form holds several files of one name: send one.")
            self.form.files[name] = data
            return
        if len(data) > TEXT_BYTES:
            raise invalid(name[:64], f"{name[:64]} is longer than {TEXT_BYTES} bytes: shorten it.")
        self.form.fields.setdefault(name, []).append(data.decode("utf-8", "replace"))

    def _whole(self) -> None:
        self.ended = True


def parse_form(body: bytes, content_type: str) -> Form:
    """The form in a body. Raises ApiError 400, or 415 for another kind of body."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise ApiError(
            415,
            "The body is no form: send multipart/form-data with the sound as its field file.",
            param="body",
            code="unsupported_media_type",
        )
    reading = _Reading()
    try:
        parser = MultipartParser(boundary, reading.callbacks())  # type: ignore[arg-type]  # by name
        parser.write(body)
        parser.finalize()
    except FormParserError:
        reading.ended = False
    if not reading.ended:
        raise ApiError(
            400,
            "The body is no whole form: send multipart/form-data up to its last boundary.",
            param="body",
            code="invalid_form",
        )
    return reading.form
