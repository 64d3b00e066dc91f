"""The front over stand-in workers: spreading, streaming, and never losing a request."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time

import httpx
import openai
import pytest
from fakes.local_rig import DEADLINE_SECONDS, eventually, local_rig, until
from llmtaskpool_operator.local.front import Front, FrontLimits


async def stream_numbers(client: httpx.AsyncClient, seconds: float, parts: int) -> list[int]:
    body = {"seconds": seconds, "stream": True, "parts": parts}
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        lines = [line async for line in answer.aiter_lines()]
    return [json.loads(line.removeprefix("data: "))["n"] for line in lines if line]


def test_requests_spread_evenly_even_over_kept_connections():
    async def go():
        async with local_rig(2) as rig, rig.client() as client:
            await asyncio.gather(*(rig.work(client, 0.05) for _ in range(4)))  # connections made
            answers = await asyncio.gather(*(rig.work(client, 0.2) for _ in range(8)))
            by = [answer.json()["worker_id"] for answer in answers]
            assert {by.count(one) for one in set(by)} == {4}

    asyncio.run(go())


def test_a_new_worker_gets_requests_of_clients_that_were_there_before_it():
    async def go():
        async with local_rig(1) as rig, rig.client() as client:
            await asyncio.gather(*(rig.work(client, 0.05) for _ in range(4)))
            await rig.scale(2)
            answers = await asyncio.gather(*(rig.work(client, 0.2) for _ in range(4)))
            assert {answer.json()["worker_id"] for answer in answers} == {"worker-1", "worker-2"}

    asyncio.run(go())


def test_streams_and_back_to_back_requests_survive_scaling_down_whole():
    async def go():
        async with local_rig(3) as rig, rig.client() as client:
            streams = [asyncio.create_task(stream_numbers(client, 1.0, 20)) for _ in range(6)]
            statuses: list[int] = []

            async def keep_asking():
                async with rig.client() as own:
                    while not all(stream.done() for stream in streams):
                        statuses.append((await rig.work(own, 0.01)).status_code)

            asking = [asyncio.create_task(keep_asking()) for _ in range(4)]
            await until(lambda: len(statuses) > 8, "requests are answered")
            await rig.fleet.scale(1)
            assert await asyncio.gather(*streams) == [list(range(20))] * 6
            await asyncio.gather(*asking)
            assert set(statuses) == {200}
            await rig.settled(1)

    asyncio.run(go())


def test_a_killed_worker_fails_only_its_own_requests_and_is_replaced():
    async def go():
        async with local_rig(2) as rig, rig.client() as client:
            running = [asyncio.create_task(rig.work(client, 1.0)) for _ in range(4)]
            workers = rig.fleet.members()
            await until(
                lambda: all(rig.front.open_connections(w.id) == 2 for w in workers), "all run"
            )
            os.kill(workers[0].pid, signal.SIGKILL)
            await until(lambda: len(rig.front.routed()) == 1, "the killed one is noticed")
            meanwhile = await asyncio.gather(*(rig.work(client, 0.01) for _ in range(8)))
            assert {answer.status_code for answer in meanwhile} == {200}
            answers = await asyncio.gather(*running)
            assert sorted(answer.status_code for answer in answers) == [200, 200, 502, 502]
            lost = next(answer for answer in answers if answer.status_code == 502)
            assert lost.json()["error"]["code"] == "worker_lost"
            await rig.settled(2)
            assert "worker-3" in rig.front.routed()

    asyncio.run(go())


def test_a_stream_whose_worker_is_killed_is_cut_and_not_ended():
    async def go():
        async with local_rig(1) as rig, rig.client() as client:
            stream = asyncio.create_task(stream_numbers(client, 5.0, 50))
            await until(lambda: rig.front.open_connections("worker-1") == 1, "the stream runs")
            await asyncio.sleep(0.2)
            os.kill(rig.fleet.members()[0].pid, signal.SIGKILL)
            with pytest.raises(httpx.TransportError):
                await stream

    asyncio.run(go())


def test_a_worker_that_can_not_be_connected_to_is_passed_over():
    async def go():
        async with local_rig(1) as rig, rig.client() as client:
            rig.front.route("worker-gone", "127.0.0.1", 9)  # discard: nobody listens
            answers = await asyncio.gather(*(rig.work(client) for _ in range(6)))
            assert {answer.status_code for answer in answers} == {200}
            assert rig.front.refused == 0

    asyncio.run(go())


def test_a_request_waits_for_a_worker_that_is_starting():
    async def go():
        async with local_rig(0, ready_seconds=0.5) as rig, rig.client() as client:
            await rig.fleet.scale(1)
            assert (await rig.work(client)).status_code == 200

    asyncio.run(go())


def test_without_workers_openai_clients_read_a_503_with_retry_after():
    async def go():
        async with local_rig(0) as rig:
            client = openai.AsyncOpenAI(base_url=rig.url + "/v1", api_key="none", max_retries=0)
            with pytest.raises(openai.InternalServerError) as caught:
                await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "x" * 300_000}]
                )
            assert caught.value.status_code == 503
            assert caught.value.response.headers["retry-after"] == "5"
            assert caught.value.code == "no_worker_ready"

    asyncio.run(go())


def test_a_request_is_held_no_longer_than_the_bound():
    async def go():
        limits = FrontLimits(hold_seconds=0.2)
        async with local_rig(0, front_limits=limits, ready_seconds=60) as rig:
            await rig.fleet.scale(1)
            async with rig.client() as client:
                assert (await rig.work(client)).status_code == 503

    asyncio.run(go())


def test_a_client_that_leaves_frees_its_place_in_the_worker():
    async def go():
        async with local_rig(1) as rig:
            worker = rig.fleet.members()[0]
            with pytest.raises(httpx.ReadTimeout):
                async with rig.client() as client:
                    await client.post("/v1/chat/completions", json={"seconds": 60}, timeout=0.3)

            async def cancelled():
                return (await worker.client().state()).totals.cancelled == 1

            await eventually(cancelled, "the worker sees that the client left")
            assert (await worker.client().state()).lanes["compute"].active == 0

            async def closed():
                return rig.front.open_connections("worker-1") == 0

            await eventually(closed, "the front gives up the connection")

    asyncio.run(go())


def test_a_half_closed_client_still_gets_its_answer():
    async def echo(reader, writer):
        await reader.read()  # to the end: the half-close has come through
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()
        writer.close()

    async def go():
        worker = await asyncio.start_server(echo, "127.0.0.1", 0)
        front = Front()
        port = await front.start("127.0.0.1", 0)
        front.route("w", "127.0.0.1", worker.sockets[0].getsockname()[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        writer.write_eof()
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert (await reader.read()).endswith(b"ok")
        writer.close()
        await front.stop()
        worker.close()

    asyncio.run(go())


def test_a_client_that_does_not_read_slows_its_worker_and_not_the_memory():
    sent = 0

    async def pour(reader, writer):
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        block = b"x" * 65536
        while True:
            writer.write(block)
            await writer.drain()
            sent += len(block)

    async def go():
        worker = await asyncio.start_server(pour, "127.0.0.1", 0)
        front = Front()
        port = await front.start("127.0.0.1", 0)
        front.route("w", "127.0.0.1", worker.sockets[0].getsockname()[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await until(lambda: sent > 0, "bytes flow")
        still = time.monotonic()
        before = -1
        while time.monotonic() - still < 0.3:  # nothing has moved for that long
            if sent != before:
                before, still = sent, time.monotonic()
            await asyncio.sleep(0.01)
        assert sent < 50_000_000
        await reader.readexactly(20_000_000)
        await until(lambda: sent > before, "the flow goes on when the client reads")
        writer.transport.abort()
        await front.stop()
        worker.close()

    asyncio.run(go())


def test_many_connections_that_come_and_go_leave_nothing_behind():
    async def go():
        async with local_rig(1) as rig:
            for _ in range(20):
                made = [asyncio.open_connection("127.0.0.1", rig.port) for _ in range(50)]
                for _reader, writer in await asyncio.gather(*made):
                    writer.write(b"GET /who HT")
                    writer.transport.abort()
            await until(lambda: not rig.front._clients, "the front forgets them")
            await until(lambda: rig.front.open_connections("worker-1") == 0, "the links are gone")
            async with rig.client() as client:
                assert (await client.get("/who")).status_code == 200

    asyncio.run(go())


def test_questions_about_a_task_go_to_the_worker_that_holds_it_even_while_it_leaves():
    async def go():
        async with local_rig(2) as rig, rig.client() as client:

            async def holder(worker: str) -> str:
                answer = await client.get(f"/v1/tasks/{worker}-{'0af' * 10}00?wait=1")
                return answer.json()["worker_id"]

            asked = ["worker-1", "worker-2", "worker-2", "worker-1"]
            assert [await holder(worker) for worker in asked] == asked
            held = asyncio.create_task(rig.work(client, 0.5))
            await until(lambda: any(map(rig.front.open_connections, rig.front.routed())), "it runs")
            busy = next(w for w in rig.fleet.members() if rig.front.open_connections(w.id))
            rig.fleet.retire(busy)
            assert busy.id not in rig.front.routed()
            assert await holder(busy.id) == busy.id
            assert (await held).status_code == 200
            await until(lambda: busy.id not in rig.fleet.workers, "it is gone")
            assert await holder(busy.id) != busy.id

    asyncio.run(go())
