"""Files of batches give their lines as they were, whatever the pieces they lie in."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from llmtaskpool_worker.brokers.shelf import MemoryShelf
from llmtaskpool_worker.execution.files import PIECE_BYTES, FileLimits, Files

LIMITS = FileLimits(line_bytes=2 * PIECE_BYTES)


async def lines_of(data: bytes) -> list[tuple[int, bytes]]:
    ids = itertools.count(1)
    files = Files(MemoryShelf(1 << 30, lambda: 0.0), LIMITS, lambda: 0.0, lambda: str(next(ids)))
    upload = files.begin()
    await upload.write(data)
    record = await upload.finish("in.jsonl", "batch", 3600.0)
    return [line async for some in files.lines(record) for line in some]


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n"])
def test_lines_that_span_pieces_are_whole_and_blank_ones_only_counted(end: bytes) -> None:
    lines = [b"a", b"b" * (PIECE_BYTES + 7), b"", b"c" * (PIECE_BYTES - 1), b"  ", b"d" * 9]
    told = asyncio.run(lines_of(b"\n".join(lines) + end))
    assert told == [(at, line) for at, line in enumerate(lines, 1) if line.strip()]


def test_of_a_line_beyond_the_limit_no_more_is_held_than_tells_so() -> None:
    told = asyncio.run(lines_of(b"x" * (9 * PIECE_BYTES) + b"\ny"))
    assert [(number, len(line)) for number, line in told] == [(1, LIMITS.line_bytes + 1), (2, 1)]
