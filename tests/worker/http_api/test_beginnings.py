"""A flood of requests leaves the loop to others between few of them."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import Counter
from contextlib import ExitStack, closing

import pytest
from fakes.http_rig import read_answer, request_bytes, serving, wait_until
from llmtaskpool_worker.http_api.beginnings import MOST, Beginnings
from llmtaskpool_worker.http_api.tasks_api import TaskRoutes

CLIENTS = 24
POST = request_bytes("/v1/tasks", {"kind": "sum", "arguments": {"numbers": [1, 2, 3]}})
GET = b"GET /v1/tasks/nobody HTTP/1.1\r\nhost: x\r\n\r\n"
PROBE = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"


def test_few_begin_in_one_turn_and_all_in_the_order_they_came() -> None:
    async def story() -> list[list[int]]:
        beginnings, turns = Beginnings(most=2), list[list[int]]()
        begun: list[int] = []

        async def one(number: int) -> None:
            await beginnings.turn()
            begun.append(number)

        tasks = [asyncio.create_task(one(number)) for number in range(7)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            if begun:
                turns.append(begun[:])
                begun.clear()
        return turns

    turns = asyncio.run(story())
    assert [number for turn in turns for number in turn] == list(range(7))
    assert max(map(len, turns)) == 2


def test_one_that_gives_up_takes_nobody_s_turn() -> None:
    async def story() -> list[str]:
        beginnings, begun = Beginnings(most=1), list[str]()

        async def one(name: str) -> None:
            await beginnings.turn()
            begun.append(name)

        tasks = {name: asyncio.create_task(one(name)) for name in ("first", "gone", "second")}
        await asyncio.sleep(0)
        assert begun == ["first"]
        tasks["gone"].cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        return begun

    assert asyncio.run(asyncio.wait_for(story(), 10)) == ["first", "second"]


@pytest.mark.parametrize("asked", [POST, GET])
def test_requests_that_came_while_the_loop_was_busy_begin_a_few_in_a_turn(
    asked: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: Counter[int] = Counter()
    turn = 0
    for name in ("request_of", "view_of"):
        begins = getattr(TaskRoutes, name)

        async def counted(self, *given, begins=begins):
            begun[turn] += 1
            return await begins(self, *given)

        monkeypatch.setattr(TaskRoutes, name, counted)
    with serving() as rig, ExitStack() as stack:
        clients = [stack.enter_context(closing(rig.connect())) for _ in range(CLIENTS)]
        for client in clients:  # it is accepted, and its first answer is out
            client.sendall(PROBE)
            read_answer(client)

        def tick() -> None:
            nonlocal turn
            turn += 1
            rig.loop.call_soon(tick)

        rig.loop.call_soon_threadsafe(tick)
        rig.loop.call_soon_threadsafe(time.sleep, 0.5)
        for client in clients:
            client.sendall(asked)
        answers = [read_answer(client) for client in clients]
    assert len({status for status, _, _ in answers}) == 1
    assert sum(begun.values()) == CLIENTS
    # A turn of theirs and one of the ticker's can overlap.
    assert max(begun.values()) <= 2 * MOST


def test_who_sends_a_task_and_resets_the_connection_has_asked_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, waiting = asyncio.Event(), list[Beginnings]()

    async def turn(beginnings: Beginnings) -> None:
        waiting.append(beginnings)
        await gate.wait()

    monkeypatch.setattr(Beginnings, "turn", turn)
    with serving() as rig:
        client = rig.connect()
        client.sendall(POST)
        wait_until(lambda: len(waiting) == 1, "it waits for its turn")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        time.sleep(0.2)  # the server hears of it
        assert not rig.pool.requests
        rig.loop.call_soon_threadsafe(gate.set)
        wait_until(lambda: len(rig.pool.requests) == 1, "the task is there")


def test_probes_wait_for_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_: Beginnings) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Beginnings, "turn", never)
    with serving() as rig:
        assert [rig.get(path).status_code for path in ("/livez", "/readyz", "/metrics")] == [
            200
        ] * 3
