"""How answers reach a client: in few writes, in order, and whole however the connection ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from fakes.http_rig import serving
from llmtaskpool_worker.http_api.flow import LingeringTransport
from llmtaskpool_worker.http_api.sse import PIECE_BYTES, ClientLeft, Pieces, while_connected
from llmtaskpool_worker.http_api.turns import Turn

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class Wire:
    """A socket's transport that keeps what is written, and the protocol above it."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.moves = 0
        self.over = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def is_closing(self) -> bool:
        return False

    def is_over(self) -> bool:
        return self.over

    def finish(self) -> None:
        self.over = True

    def moved(self) -> None:
        self.moves += 1


def written(story: Callable[[LingeringTransport], Coroutine[Any, Any, None]]) -> Wire:
    wire = Wire()

    async def run() -> None:
        await story(LingeringTransport(wire, wire))  # type: ignore[arg-type]

    asyncio.run(run())
    return wire


def test_a_head_and_the_body_after_it_are_one_write() -> None:
    async def story(transport: LingeringTransport) -> None:
        transport.write(HEAD)
        transport.write(b"body")
        transport.write(b"more")
        await asyncio.sleep(0)

    wire = written(story)
    assert (wire.writes, wire.moves) == ([HEAD + b"body", b"more"], 2)


def test_a_head_whose_body_comes_later_leaves_by_itself() -> None:
    async def story(transport: LingeringTransport) -> None:
        transport.write(HEAD)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        transport.write(b"late")

    assert written(story).writes == [HEAD, b"late"]


def test_a_head_without_a_body_is_not_lost() -> None:
    async def story(transport: LingeringTransport) -> None:
        transport.write(HEAD)
        transport.flush()
        transport.close()
        await asyncio.sleep(0)

    assert written(story).writes == [HEAD]


def test_nothing_is_written_to_a_connection_that_is_over() -> None:
    async def story(transport: LingeringTransport) -> None:
        transport.write(HEAD)
        transport.close()
        await asyncio.sleep(0)
        transport.write(b"body")

    assert written(story).writes == []


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /livez HTTP/1.0\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
    ids=["http/1.0", "close", "refused"],
)
def test_an_answer_is_whole_when_its_connection_ends_with_it(request_line: bytes) -> None:
    with serving() as rig:
        status, headers, _ = rig.raw(request_line)
    assert status in (200, 400, 405)
    assert headers


def sent(parts: list[bytes]) -> list[bytes]:
    bodies: list[bytes] = []

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            bodies.append(message["body"])

    asyncio.run(Pieces(parts)({}, None, send))  # type: ignore[arg-type]
    return bodies


def test_short_parts_are_sent_together_and_long_ones_by_themselves() -> None:
    assert sent([b"[", b"1", b",2", b"]"]) == [b"[1,2]"]
    long = b"x" * PIECE_BYTES
    assert sent([b"[", long, b",", long, b"]"]) == [b"[" + long, b"," + long, b"]"]
    assert b"".join(sent([long])) == long


async def _never() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


def test_work_is_cancelled_and_cleaned_up_when_its_client_leaves() -> None:
    cleaned: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            cleaned.append("yes")

    async def leaves() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def run() -> int:
        with pytest.raises(ClientLeft):
            await while_connected(leaves, work())
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(0)  # nothing is left that would cancel who goes on
        return task.cancelling()

    assert asyncio.run(run()) == 0
    assert cleaned == ["yes"]


def test_who_is_cancelled_otherwise_is_not_told_that_a_client_has_left() -> None:
    async def run() -> None:
        waiting = asyncio.ensure_future(while_connected(_never, asyncio.sleep(30)))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(run())


def test_a_timeout_within_the_work_is_its_own() -> None:
    async def work() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(30)
        except TimeoutError:
            return "too late"
        return "in time"

    assert asyncio.run(while_connected(_never, work())) == "too late"


def test_what_the_work_returns_or_raises_is_what_comes_of_it() -> None:
    async def fails() -> None:
        raise KeyError("x")

    async def works() -> int:
        return 3

    assert asyncio.run(while_connected(_never, works())) == 3
    with pytest.raises(KeyError):
        asyncio.run(while_connected(_never, fails()))


def test_work_that_ends_as_its_client_leaves_cancels_nobody_later() -> None:
    async def run() -> str:
        gone = asyncio.Event()

        async def leaves() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def work() -> str:
            try:
                gone.set()
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                return "done all the same"
            raise AssertionError

        try:
            said = await while_connected(leaves, work())
        except ClientLeft:
            said = "left"
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0.01)
        return said

    assert asyncio.run(run()) in ("done all the same", "left")


def test_long_work_in_steps_lets_others_go_between_them() -> None:
    async def run() -> list[str]:
        done: list[str] = []

        async def steps() -> None:
            turn = Turn(seconds=0.0)
            for _ in range(3):
                done.append("step")
                await turn.pass_on()

        async def other() -> None:
            done.append("other")

        await asyncio.gather(steps(), other())
        return done

    assert asyncio.run(run())[:2] == ["step", "other"]
