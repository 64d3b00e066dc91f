"""A flood of requests leaves the loop to others between few of them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import ExitStack, closing

import pytest
from fakes.http_rig import read_answer, request_bytes, serving
from llmtaskpool_worker.http_api.beginnings import MOST, Beginnings
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def test_few_begin_in_one_turn_and_all_in_the_order_they_came() -> None:
    async def story() -> list[list[int]]:
        loop, beginnings = asyncio.get_running_loop(), Beginnings(most=2)
        turns: list[list[int]] = [[]]
        for number in range(7):
            beginnings.add(loop, lambda number=number: turns[-1].append(number))
        while sum(map(len, turns)) < 7:
            turns.append([])
            await asyncio.sleep(0)
        return [turn for turn in turns if turn]

    assert asyncio.run(story()) == [[0, 1], [2, 3], [4, 5], [6]]


def test_one_that_comes_alone_begins_at_once_and_overtakes_nobody() -> None:
    async def story() -> list[str]:
        loop, beginnings = asyncio.get_running_loop(), Beginnings(most=1)
        begun: list[str] = []
        beginnings.add(loop, lambda: begun.append("first"))
        assert begun == ["first"]
        beginnings.add(loop, lambda: begun.append("second"))
        beginnings.add(loop, lambda: begun.append("third"))
        assert begun == ["first"]
        await asyncio.sleep(0)
        assert begun == ["first", "second"]
        beginnings.add(loop, lambda: begun.append("fourth"))
        for _ in range(3):
            await asyncio.sleep(0)
        assert begun == ["first", "second", "third", "fourth"]
        await asyncio.sleep(0)
        beginnings.add(loop, lambda: begun.append("alone"))
        return begun

    assert asyncio.run(story())[-1] == "alone"


def test_one_that_can_not_begin_stops_no_other() -> None:
    async def story() -> list[int]:
        loop, beginnings = asyncio.get_running_loop(), Beginnings(most=1)
        loop.set_exception_handler(lambda *_: None)
        begun: list[int] = []

        def fails() -> None:
            raise RuntimeError

        beginnings.add(loop, lambda: begun.append(0))
        beginnings.add(loop, fails)
        beginnings.add(loop, lambda: begun.append(1))
        for _ in range(4):
            await asyncio.sleep(0)
        return begun

    assert asyncio.run(story()) == [0, 1]


def test_requests_that_came_while_the_loop_was_busy_begin_a_few_in_a_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: Counter[int] = Counter()
    turn = 0
    begins = HttpToolsProtocol._start_asgi_task

    def counted(self, cycle, app) -> None:
        begun[turn] += 1
        begins(self, cycle, app)

    monkeypatch.setattr(HttpToolsProtocol, "_start_asgi_task", counted)
    with serving() as rig, ExitStack() as stack:
        clients = [stack.enter_context(closing(rig.connect())) for _ in range(24)]
        for client in clients:  # it is accepted, and its first answer is out
            client.sendall(request_bytes("/v1/tasks", {"kind": "k"}))
            read_answer(client)
        begun.clear()

        def tick() -> None:
            nonlocal turn
            turn += 1
            rig.loop.call_soon(tick)

        rig.loop.call_soon_threadsafe(tick)
        rig.loop.call_soon_threadsafe(time.sleep, 0.5)
        for client in clients:
            client.sendall(request_bytes("/v1/tasks", {"kind": "k"}))
        answers = [read_answer(client) for client in clients]
    assert len({status for status, _, _ in answers}) == 1
    assert sum(begun.values()) == len(clients)
    # A turn of theirs and one of the ticker's can overlap.
    assert max(begun.values()) <= 2 * MOST
