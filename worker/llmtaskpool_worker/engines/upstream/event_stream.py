"""Server-sent events as they come in pieces of bytes: the data of each. Pure, and bounded."""

from __future__ import annotations

EVENT_BYTES = 4 * 1024 * 1024
"""The longest event that is read: a chunk of an answer has some hundred bytes."""


class TooLong(Exception):
    """An event has more than EVENT_BYTES."""


class EventReader:
    """``feed`` gives the data of the events that are whole; comments and other fields are none."""

    def __init__(self, most: int = EVENT_BYTES) -> None:
        self._most = most
        self._rest = bytearray()
        self._searched = 0
        self._data: list[bytes] = []
        self._held = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """Take in bytes. Raises TooLong."""
        self._rest += piece
        found: list[bytes] = []
        start = 0
        while (end := self._rest.find(b"\n", max(start, self._searched))) >= 0:
            self._line(bytes(self._rest[start:end]).rstrip(b"\r"), found)
            start = end + 1
            self._searched = start
        del self._rest[:start]
        self._searched = len(self._rest)
        if len(self._rest) + self._held > self._most:
            raise TooLong
        return found

    def _line(self, line: bytes, found: list[bytes]) -> None:
        if not line:
            if self._data:
                found.append(b"\n".join(self._data))
                self._data, self._held = [], 0
        elif line.startswith(b"data:"):
            data = line[5:].removeprefix(b" ")
            self._held += len(data)
            if self._held > self._most:
                raise TooLong
            self._data.append(data)
