"""Files that batches read and write: in pieces on the broker's shelf, compressed, with an end."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import msgspec

from llmtaskpool_worker.brokers.protocol import Unavailable
from llmtaskpool_worker.brokers.shelf import Change, Shelf, Stale
from llmtaskpool_worker.brokers.shelf import NoSpace as NoSpace
from llmtaskpool_worker.execution.pool import Rejected

PIECE_BYTES = 256 * 1024
"""Of a file, before it is compressed: so much is in memory of one that is read or written."""
UPLOAD_SECONDS = 3600.0
"""Pieces of an upload that nobody finished go after this time."""
_LEVEL = 1
"""Of zlib: lines of JSON become a fifth, at 100 MB/s."""


@dataclass(frozen=True, slots=True)
class FileLimits:
    """``file_bytes`` and ``lines`` bound a file, ``keep_seconds`` is how long one is kept.

    ``window_lines``: of all batches that one worker feeds, so many are in the line at one time,
    and ``window_bytes`` of their text in its memory.
    """

    file_bytes: int = 200_000_000
    lines: int = 50_000
    keep_seconds: float = 30 * 86_400.0
    window_lines: int = 256
    window_bytes: int = 32 * 1024 * 1024
    line_bytes: int = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What is known of a file; times are seconds since the epoch."""

    id: str
    filename: str
    purpose: str
    bytes: int
    lines: int
    created_at: int
    expires_at: int
    pieces: int
    tenant: str = ""
    """Whose it is."""


class FileTooLarge(Exception):
    """An upload is beyond a limit; the message says which, and what to do."""


class Files:
    """The files on a shelf. ``new_id`` makes ids that rise with time. Raises Rejected when away."""

    def __init__(
        self,
        shelf: Shelf,
        limits: FileLimits,
        wall_clock: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self.shelf, self.limits = shelf, limits
        self._wall_clock, self._new_id = wall_clock, new_id

    def begin(self, tenant: str = "") -> Upload:
        """A file of ``tenant`` that comes in."""
        return Upload(self, f"file-{self._new_id()}", tenant)

    async def get(self, file_id: str) -> FileRecord | None:
        """None: there is none, or its time is over."""
        with reached():
            return record_of(await self.shelf.get(f"file/{file_id}"))

    async def listed(
        self,
        purpose: str | None,
        *,
        after: str | None,
        most: int,
        newest: bool,
        tenant: str | None = None,
    ) -> list[FileRecord]:
        """At most so many after that one, in the order of their making.

        ``purpose`` and ``tenant``: None: of any.
        """
        found: list[FileRecord] = []
        beyond = None if after is None else f"file/{after}"
        while len(found) < most:
            with reached():
                names = await self.shelf.names("file/", most=most, beyond=beyond, newest=newest)
                records = [record_of(await self.shelf.get(name)) for name in names]
            found += [
                one
                for one in records
                if one and purpose in (None, one.purpose) and tenant in (None, one.tenant)
            ]
            if len(names) < most:
                break
            beyond = names[-1]
        return found[:most]

    async def delete(self, record: FileRecord) -> None:
        """Nothing is left of it."""
        with reached():
            names = [f"file/{record.id}", *piece_names(record.id, record.pieces)]
            await self.shelf.change(Change(deletes=names))

    async def keep_until(self, record: FileRecord, expires_at: int) -> FileRecord:
        """The file is kept at least so long."""
        if record.expires_at >= expires_at:
            return record
        longer = replace(record, expires_at=expires_at)
        with reached():
            await self.shelf.change(
                Change(
                    {f"file/{record.id}": msgspec.json.encode(longer)},
                    keeps=piece_names(record.id, record.pieces),
                    keep_seconds=expires_at - self._wall_clock(),
                    bounded=False,
                )
            )
        return longer

    async def read(self, record: FileRecord) -> AsyncIterator[bytes]:
        """Its bytes, in pieces."""
        for name in piece_names(record.id, record.pieces):
            with reached():
                packed = await self.shelf.get(name)
            if packed is None:
                raise Rejected("file_not_found", "the file was deleted while it was read")
            yield await asyncio.to_thread(zlib.decompress, packed)

    async def lines(self, record: FileRecord) -> AsyncIterator[list[tuple[int, bytes]]]:
        """Its lines that are not blank, with their numbers from 1, some at a time.

        Of a line beyond ``line_bytes`` one byte more than that is there: enough to refuse it.
        """
        number, rest, most = 1, bytearray(), self.limits.line_bytes + 1
        async for piece in self.read(record):
            first, *others = piece.split(b"\n")
            rest += first[: most - len(rest)] if len(rest) < most else b""
            if not others:
                continue
            whole = [bytes(rest), *others[:-1]]
            yield [(number + at, line) for at, line in enumerate(whole) if line.strip()]
            number += len(whole)
            rest = bytearray(others[-1])
        if rest.strip():
            yield [(number, bytes(rest))]


class Upload:
    """A file while it comes in: write its bytes, then ``finish`` it or ``abandon`` it."""

    def __init__(self, files: Files, file_id: str, tenant: str) -> None:
        self._files, self._id, self._tenant = files, file_id, tenant
        self._buffer = bytearray()
        self._pieces = self._lines = self.size = 0

    async def write(self, data: bytes) -> None:
        """Some more of it. Raises FileTooLarge, NoSpace, Rejected."""
        limits = self._files.limits
        self.size += len(data)
        self._lines += data.count(b"\n")
        if self.size > limits.file_bytes:
            raise FileTooLarge(
                f"file has more than {limits.file_bytes} bytes: split it into several batches, or "
                "raise LLMTASKPOOL_FILE_BYTES"
            )
        if self._lines > limits.lines:
            raise FileTooLarge(
                f"file has more than {limits.lines} lines: split it into several batches, or raise "
                "LLMTASKPOOL_BATCH_LINES"
            )
        self._buffer += data
        while len(self._buffer) >= PIECE_BYTES:
            await self._put(bytes(self._buffer[:PIECE_BYTES]))
            del self._buffer[:PIECE_BYTES]

    async def _put(self, data: bytes) -> None:
        packed = await asyncio.to_thread(packed_piece, data)
        (name,) = piece_names(self._id, 1, first=self._pieces)
        with reached():
            await self._files.shelf.change(Change({name: packed}, keep_seconds=UPLOAD_SECONDS))
        self._pieces += 1

    async def finish(self, filename: str, purpose: str, keep_seconds: float) -> FileRecord:
        """All of it is there. Raises NoSpace, Rejected."""
        if self._buffer:
            await self._put(bytes(self._buffer))
        now = int(self._files._wall_clock())
        record = FileRecord(
            self._id,
            filename,
            purpose,
            self.size,
            self._lines,
            now,
            now + int(keep_seconds),
            self._pieces,
            self._tenant,
        )
        with reached():
            await self._files.shelf.change(
                Change(
                    {f"file/{self._id}": msgspec.json.encode(record)},
                    keeps=piece_names(self._id, self._pieces),
                    keep_seconds=keep_seconds,
                )
            )
        return record

    async def abandon(self) -> None:
        """Nothing of it is wanted."""
        if self._pieces:
            with suppress(Unavailable):
                names = piece_names(self._id, self._pieces)
                await self._files.shelf.change(Change(deletes=names))


class reached:  # noqa: N801  used as a statement
    """A shelf that is away is told as Rejected."""

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Unavailable):
            raise Rejected(
                "queue_unavailable",
                f"{error.reason}; files and batches lie there: come back",
                retry_after_seconds=error.retry_after_seconds,
            ) from None
        if isinstance(error, Stale):
            raise Rejected(
                "conflict", "somebody else has just changed it: ask again", retry_after_seconds=1.0
            ) from None


def packed_piece(data: bytes) -> bytes:
    """As it lies on the shelf."""
    return zlib.compress(data, _LEVEL)


def piece_names(file_id: str, pieces: int, *, first: int = 0) -> Sequence[str]:
    """Under which the pieces of a file lie."""
    return [f"piece/{file_id}/{number:06d}" for number in range(first, first + pieces)]


def record_of(data: bytes | None) -> FileRecord | None:
    """A file's record as it lies on the shelf; None: nothing that can be read."""
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=FileRecord)
    except msgspec.DecodeError:
        return None
