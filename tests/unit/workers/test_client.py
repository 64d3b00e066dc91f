"""The client of the control port, over a scripted server and over the worker's own server."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from fakes.http_rig import TOKEN, serving
from llmtaskpool_operator.workers.client import (
    ClientLimits,
    ThreadsRefused,
    WorkerClient,
    WorkerUnreachable,
    open_http,
)
from llmtaskpool_worker.contract import LaneName, Phase

GOOD = (
    '{"worker_id":"w","started_at":1,"observed_at":2,"phase":"ready","lanes":'
    '{"compute":{"threads":4,"threads_cap":8,"active":%s,"queued":0,"queue_limit":9}}}'
)


def ask(handler, call=lambda client: client.state(), limits=None):
    async def go():
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        async with (
            TestServer(app) as server,
            open_http(ClientLimits()) as http,
        ):
            return await call(WorkerClient(http, str(server.make_url("")), "token", limits))

    return asyncio.run(go())


def answers(text: str, status: int = 200):
    async def handler(_request):
        return web.Response(status=status, text=text)

    return handler


def trickles(part: bytes, pause: float):
    async def handler(request):
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(part)
            await asyncio.sleep(pause)

    return handler


def test_state_threads_and_drain_work_against_the_workers_own_server():
    async def go(url: str):
        async with open_http(ClientLimits()) as http:
            client = WorkerClient(http, url, TOKEN)
            assert (await client.state()).phase is Phase.READY
            answer = await client.set_threads(7, {LaneName.COMPUTE: 3})
            assert (answer.generation, answer.threads[LaneName.COMPUTE]) == (7, 3)
            with pytest.raises(ThreadsRefused):
                await client.set_threads(6, {LaneName.COMPUTE: 9})
            assert (await client.drain(5)).phase is Phase.DRAINING
            assert (await client.state()).phase is Phase.DRAINING
            with pytest.raises(WorkerUnreachable, match="the control token is wrong"):
                await WorkerClient(http, url, "other").state()

    with serving(control_tokens=(TOKEN,)) as rig:
        asyncio.run(go(rig.control_url))


def test_a_good_state_is_read():
    assert ask(answers(GOOD % "2")).lanes[LaneName.COMPUTE].active == 2


AT = '{"worker_id":"w","started_at":1,"observed_at":%s,"phase":"ready","lanes":%s%s}'
LANES = '{"compute":{"threads":4,"threads_cap":8,"active":%s,"queued":0,"queue_limit":9}}'
QUEUE = ',"queue":{"durability":"memory","durable":false,"observed_at":%s,"running":%s}'


def read_in_turn(*texts: str):
    """What one client makes of answers that come one after the other."""
    left = list(texts)

    async def handler(_request):
        return web.Response(text=left.pop(0))

    async def call(client):
        found = []
        for _ in texts:
            try:
                found.append(await client.state())
            except WorkerUnreachable as error:
                found.append(str(error))
        return found

    return ask(handler, call)


def test_a_worker_that_says_the_same_but_for_its_clock_is_read_with_its_clock():
    texts = [AT % (at, LANES % 0, QUEUE % (at - 0.5, 0)) for at in (2, 7.25, 12.5)]
    states = read_in_turn(*texts)
    assert [state.observed_at for state in states] == [2, 7.25, 12.5]
    assert states[2].lanes == states[0].lanes
    assert states[2].queue.running == 0


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (AT % (7, LANES % 3, QUEUE % (1, 0)), lambda s: s.lanes[LaneName.COMPUTE].active == 3),
        (AT % (7, LANES % 0, QUEUE % (1, 2)), lambda s: s.queue.running == 2),
        (AT % (7, LANES % 0, ""), lambda s: s.queue is None),
        (AT % (7, "{}", QUEUE % (1, 0)), lambda s: "lanes.compute: missing" in s),
        (AT % ('"x"', LANES % 0, QUEUE % (1, 0)), lambda s: "observed_at" in s),
        (AT % (7, LANES % 0, QUEUE % (1, 0)) + "}", lambda s: "answered oddly" in s),
        ("", lambda s: "answered oddly" in s),
    ],
)
def test_whatever_else_a_worker_says_after_the_same_answers_is_seen(text, seen):
    same = [AT % (at, LANES % 0, QUEUE % (at, 0)) for at in (2, 3)]
    *_, third, fourth = read_in_turn(*same, text, AT % (9, LANES % 0, QUEUE % (9, 0)))
    assert seen(third)
    assert (fourth.observed_at, fourth.lanes[LaneName.COMPUTE].active) == (9, 0)


def test_what_only_people_read_of_an_answer_is_not_kept_and_may_be_of_a_newer_worker():
    unread = ',"kinds":{"chat":{"of a newer worker":1}},"totals":{"accepted":7}'
    (state,) = read_in_turn(AT % (2, LANES % 1, unread))
    assert state.lanes[LaneName.COMPUTE].active == 1
    assert {"kinds", "totals"}.isdisjoint(vars(state))


def test_a_clock_of_a_part_that_comes_first_is_not_taken_for_the_workers():
    queue = QUEUE % (5, 0)
    texts = ["{" + queue[1:] + "," + (AT % (at, LANES % 0, ""))[1:] for at in (2, 3)]
    assert [state.observed_at for state in read_in_turn(*texts)] == [2, 3]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1", '"many"', "null", "2.5"])
def test_numbers_that_can_not_be_are_errors_that_name_their_place(number):
    with pytest.raises(WorkerUnreachable, match=r"answered oddly"):
        ask(answers(GOOD % number))


def test_a_state_without_the_lane_that_everything_is_decided_by_is_an_error():
    with pytest.raises(WorkerUnreachable, match=r"answered oddly: lanes\.compute"):
        ask(answers((GOOD % "2").replace("compute", "io")))


@pytest.mark.parametrize("text", ["", "no json", "[]", "{}", "\x00" * 100])
def test_what_is_no_state_is_an_error(text):
    with pytest.raises(WorkerUnreachable, match="answered oddly"):
        ask(answers(text))


@pytest.mark.parametrize("status", [204, 302, 401, 404, 500, 503])
def test_other_statuses_are_errors_that_name_them(status):
    with pytest.raises(WorkerUnreachable, match=f"answered {status}"):
        ask(answers("{}", status))


def test_an_answer_without_end_is_given_up_after_the_bound():
    with pytest.raises(WorkerUnreachable, match="answered more than 1000000 bytes"):
        ask(trickles(b" " * 65536, 0), limits=ClientLimits(answer_bytes=1_000_000))


def test_a_worker_that_trickles_is_given_up_after_the_time_bound():
    with pytest.raises(WorkerUnreachable, match=r"no answer within 0\.2 s"):
        ask(trickles(b" ", 0.01), limits=ClientLimits(seconds=0.2))


def test_nobody_listening_is_an_error_in_one_line():
    async def go():
        with socket.socket() as bound:  # to be nobody else's; it does not listen
            bound.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{bound.getsockname()[1]}"
            async with open_http(ClientLimits()) as http:
                await WorkerClient(http, url, "token").state()

    with pytest.raises(WorkerUnreachable, match=r"^ClientConnectorError on /control/v1/state$"):
        asyncio.run(go())


def test_a_worker_that_answers_no_http_is_an_error_in_one_line():
    async def go():
        async def answer(_reader, writer):
            writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, open_http(ClientLimits()) as http:
            await WorkerClient(http, f"http://127.0.0.1:{port}", "token").state()

    with pytest.raises(WorkerUnreachable, match=r"^\w+ on /control/v1/state$"):
        asyncio.run(go())


def test_a_threads_request_is_absolute_and_carries_its_generation():
    sent = []

    async def handler(request):
        sent.append((await request.read(), request.headers["authorization"]))
        return web.Response(text='{"generation":3,"threads":{"compute":5}}')

    ask(handler, lambda client: client.set_threads(3, {LaneName.COMPUTE: 5}))
    assert sent == [(b'{"generation":3,"threads":{"compute":5}}', "Bearer token")]
