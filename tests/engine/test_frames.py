"""Frames of an engine's connection, however they come."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from llmtaskpool_worker.engines.frames import HEADER, Frames, framed
from llmtaskpool_worker.engines.protocol import MAX_FRAME_BYTES


class Line:
    """A transport that is closed or not."""

    closed = False

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def heard(pieces: Sequence[bytes], distrusted: bytes = b"\0") -> tuple[list[bytes], bool]:
    """The bodies that are told of, and whether the connection was closed."""

    async def run() -> tuple[list[bytes], bool]:
        bodies: list[bytes] = []

        def told(body: bytes) -> None:
            if body == distrusted:
                raise ValueError("no message")
            bodies.append(body)

        frames, line = Frames(told), Line()
        frames.connection_made(line)  # type: ignore[arg-type]
        for piece in pieces:
            frames.data_received(piece)
        frames.connection_lost(None)
        await asyncio.wait_for(frames.ended, 1)
        return bodies, line.closed

    return asyncio.run(run())


WHOLE = b"".join(framed(word) for word in ("one", "", "three"))
BODIES = [framed(word)[HEADER.size :] for word in ("one", "", "three")]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, len(WHOLE)])
def test_each_frame_is_told_once_however_its_bytes_come(size: int) -> None:
    pieces = [WHOLE[at : at + size] for at in range(0, len(WHOLE), size)]
    assert heard(pieces) == (BODIES, False)


def test_what_is_cut_off_is_not_told() -> None:
    assert heard([WHOLE[:-1]]) == (BODIES[:-1], False)


def test_a_frame_that_is_too_long_ends_the_connection_and_what_follows_is_not_told() -> None:
    long = HEADER.pack(MAX_FRAME_BYTES + 1)
    assert heard([WHOLE + long + b"x", WHOLE]) == (BODIES, True)


def test_a_message_that_can_not_be_read_ends_the_connection() -> None:
    bad = HEADER.pack(1) + b"\0"
    assert heard([WHOLE + bad + WHOLE]) == (BODIES, True)
