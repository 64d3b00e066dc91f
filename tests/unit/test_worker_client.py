"""The client of the control port, over a scripted transport and over the worker's own server."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fakes.http_rig import TOKEN, serving
from llmtaskpool_operator.worker_client import (
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
        transport = httpx.MockTransport(handler)
        async with httpx.AsyncClient(transport=transport) as http:
            return await call(WorkerClient(http, "http://worker", "token", limits))

    return asyncio.run(go())


def answers(text: str, status: int = 200):
    return lambda _request: httpx.Response(status, text=text)


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


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1", '"many"', "null", "2.5"])
def test_numbers_that_can_not_be_are_errors_that_name_their_place(number):
    with pytest.raises(WorkerUnreachable, match=r"answered oddly"):
        ask(answers(GOOD % number))


@pytest.mark.parametrize("text", ["", "no json", "[]", "{}", "\x00" * 100])
def test_what_is_no_state_is_an_error(text):
    with pytest.raises(WorkerUnreachable, match="answered oddly"):
        ask(answers(text))


@pytest.mark.parametrize("status", [204, 302, 401, 404, 500, 503])
def test_other_statuses_are_errors_that_name_them(status):
    with pytest.raises(WorkerUnreachable, match=f"answered {status}"):
        ask(answers("{}", status))


def test_an_answer_without_end_is_given_up_after_the_bound():
    async def parts():
        while True:
            yield b" " * 65536

    with pytest.raises(WorkerUnreachable, match="answered more than 1000000 bytes"):
        ask(
            lambda _request: httpx.Response(200, content=parts()),
            limits=ClientLimits(answer_bytes=1_000_000),
        )


def test_a_worker_that_trickles_is_given_up_after_the_time_bound():
    async def parts():
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    with pytest.raises(WorkerUnreachable, match=r"no answer within 0\.2 s"):
        ask(
            lambda _request: httpx.Response(200, content=parts()),
            limits=ClientLimits(seconds=0.2),
        )


def test_nobody_listening_is_an_error_in_one_line():
    def refuse(request):
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(WorkerUnreachable, match=r"^ConnectError on /control/v1/state$"):
        ask(refuse)


def test_a_threads_request_is_absolute_and_carries_its_generation():
    sent = []

    def handler(request):
        sent.append(request)
        return httpx.Response(200, text='{"generation":3,"threads":{"compute":5}}')

    ask(handler, lambda client: client.set_threads(3, {LaneName.COMPUTE: 5}))
    assert sent[0].content == b'{"generation":3,"threads":{"compute":5}}'
    assert sent[0].headers["authorization"] == "Bearer token"
