"""How answers are sent: JSON, server-sent events, and work given up when its client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from time import monotonic
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llmtaskpool_worker.http_api.turns import Turn

T = TypeVar("T")

COMMENT = b": still here\n\n"

PIECE_BYTES = 64 * 1024
"""Shorter parts of an answer are sent together."""

TURN_SECONDS = 0.01
"""A stream that has frames ready gives others a turn this often."""


class ClientLeft(Exception):
    """The client disconnected before its answer was complete: there is nobody to answer."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``; when the client leaves first, ``work`` is cancelled.

    Raises:
        ClientLeft: the client disconnected.
    """
    watch = _Watch(receive)
    watching = asyncio.ensure_future(watch.look())
    try:
        return await work
    except asyncio.CancelledError:
        if watch.is_ours():
            raise ClientLeft from None
        raise
    finally:
        watching.cancel()
        watch.end()


class _Watch:
    """Cancels the task that made it, once, when a client has left; as asyncio.timeout does it."""

    def __init__(self, receive: Receive) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - only a coroutine of a task can wait
        self._receive, self._task = receive, task
        self._before, self._left = task.cancelling(), False

    async def look(self) -> None:
        """Until it has left."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left = True
        self._task.cancel()

    def is_ours(self) -> bool:
        """Whether the task is cancelled for the client's leaving, and for nothing else."""
        return self._left and self._task.cancelling() <= self._before + 1

    def end(self) -> None:
        """The task goes on, and is not cancelled by us any more."""
        if self._left:
            self._task.uncancel()


def encode(value: Any) -> bytes:
    """JSON in UTF-8, in one line."""
    return msgspec.json.encode(value)


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(encode(value), status, headers, media_type="application/json")


_LINE_ENDS = (
    ("\u0085".encode(), rb"\u0085"),
    ("\u2028".encode(), rb"\u2028"),
    ("\u2029".encode(), rb"\u2029"),
)
"""Letters that many clients' readers (httpx, str.splitlines) take for the end of a line."""


Frame = bytes | Sequence[bytes]
"""What is sent in one go, or piece by piece with nothing between."""


def event(data: bytes, *, name: str | None = None, number: int | None = None) -> bytes:
    """One server-sent event; ``data`` is JSON in one line, and one by all who count lines."""
    return _head(name, number) + _in_one_line(data) + b"\n\n"


def long_event(data: Sequence[bytes], *, name: str, number: int) -> Frame:
    """The same of JSON in pieces, none of which begins or ends within a letter."""
    return [_head(name, number), *map(_in_one_line, data), b"\n\n"]


def _head(name: str | None, number: int | None) -> bytes:
    head = b"" if number is None else b"id: %d\n" % number
    if name is not None:
        head += b"event: %s\n" % name.encode("ascii")
    return head + b"data: "


def _in_one_line(data: bytes) -> bytes:
    for letter, escape in _LINE_ENDS:
        data = data.replace(letter, escape)
    return data


class EventStream(Response):
    """Sends frames as they come, a comment when none came for ``heartbeat_seconds``.

    ``on_close`` is called once in the end, however it ends; when the client leaves, at once.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncIterator[Frame],
        *,
        heartbeat_seconds: float,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        # No buffering in proxies: nginx honours x-accel-buffering.
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._frames = frames
        self._heartbeat_seconds = heartbeat_seconds
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send it all."""
        try:
            await while_connected(receive, self._send_all(send))
        finally:
            self._on_close()

    async def _send_all(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        sent_at, within = monotonic(), False

        async def beat() -> None:
            while True:
                await asyncio.sleep(max(0.01, sent_at + self._heartbeat_seconds - monotonic()))
                if not within and monotonic() - sent_at >= self._heartbeat_seconds:
                    await send({"type": "http.response.body", "body": COMMENT, "more_body": True})
                    note()

        def note() -> None:
            nonlocal sent_at
            sent_at = monotonic()

        beating = asyncio.ensure_future(beat())
        try:
            turn = Turn(TURN_SECONDS)
            async for frame in self._frames:
                pieces = (frame,) if isinstance(frame, bytes) else frame
                within = len(pieces) > 1
                for number, piece in enumerate(pieces):
                    if number:
                        await asyncio.sleep(0)
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                within = False
                note()
                # A client that reads fast never makes ``send`` wait, nor do frames that are
                # there already: without this a long replay would keep the loop to itself.
                await turn.pass_on()
        finally:
            beating.cancel()
            aclose = getattr(self._frames, "aclose", None)
            if aclose is not None:
                await aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def with_list(around: dict[str, Any], name: str, items: Sequence[bytes]) -> Response:
    """A JSON object with one long list, as it is encoded item by item: others have their turns.

    ``around`` is the object without the list, which is added as its last field ``name``.
    """
    parts = [encode(around)[:-1] + b"," + encode(name) + b":["]
    for number, item in enumerate(items):
        parts.append(b"," + item if number else item)
    parts.append(b"]}")
    return Pieces(parts)


class Pieces(Response):
    """A JSON answer that is sent piece by piece."""

    media_type = "application/json"

    def __init__(self, parts: Sequence[bytes]) -> None:
        super().__init__()
        self._parts = parts
        self.headers["content-length"] = str(sum(map(len, self._parts)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send it part by part, as fast as the client takes them."""
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        *parts, last = _gathered(self._parts)
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
            await asyncio.sleep(0)  # a client that reads fast never makes ``send`` wait
        await send({"type": "http.response.body", "body": last, "more_body": False})


def _gathered(parts: Sequence[bytes]) -> Iterator[bytes]:
    """The same bytes in fewer parts: each is a call to the kernel, and wakes the client."""
    short: list[bytes] = []
    size = 0
    for part in parts:
        short.append(part)
        size += len(part)
        if size >= PIECE_BYTES:
            yield b"".join(short)
            short, size = [], 0
    yield b"".join(short)


DONE = event(b"[DONE]")
"""What ends a stream of OpenAI's."""


async def streamed(
    receive: Receive,
    frames: AsyncIterator[bytes],
    heartbeat_seconds: float,
    *,
    on_close: Callable[[], None],
) -> EventStream:
    """A stream of ``frames``, once the first is there.

    Until then a failure can still be told by a status code: what ``frames`` raises is raised.
    """

    async def first() -> bytes:
        return await anext(frames)

    head = await while_connected(receive, first())

    async def all_of_them() -> AsyncIterator[bytes]:
        yield head
        async for frame in frames:
            yield frame

    return EventStream(all_of_them(), heartbeat_seconds=heartbeat_seconds, on_close=on_close)
