"""The output and the error file of a batch, as they grow piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmtaskpool_worker.execution.batch import Written
from llmtaskpool_worker.execution.files import (
    PIECE_BYTES,
    FileRecord,
    packed_piece,
    piece_names,
)

SEALED_BYTES = 64 * 1024
"""A piece of so much is not written again; a shorter one is, when lines are added."""


@dataclass(frozen=True, slots=True)
class Growth:
    """What a file is with new lines: what is to be put, and the open end that stays in memory."""

    written: Written
    puts: Mapping[str, bytes]
    open_end: bytes


async def grow(written: Written, open_end: bytes, lines: Sequence[bytes]) -> Growth:
    """``written`` with these lines. ``open_end`` is what its last piece holds; none: sealed."""
    if not lines:
        return Growth(written, {}, open_end)
    added = b"".join(lines)
    rest = open_end + added
    pieces = written.pieces - bool(open_end)
    puts: dict[str, bytes] = {}
    while rest:
        piece = rest[:PIECE_BYTES]
        (name,) = piece_names(written.id, 1, first=pieces)
        puts[name] = await asyncio.to_thread(packed_piece, piece)
        pieces += 1
        rest = rest[PIECE_BYTES:]
        open_end = piece if len(piece) < SEALED_BYTES else b""
    grown = Written(written.id, pieces, written.bytes + len(added), written.lines + len(lines))
    return Growth(grown, puts, open_end)


def file_of(
    written: Written, name: str, now: int, keep_seconds: int, tenant: str = ""
) -> FileRecord:
    """The file that clients read."""
    return FileRecord(
        written.id,
        name,
        "batch_output",
        written.bytes,
        written.lines,
        now,
        now + keep_seconds,
        written.pieces,
        tenant,
    )
