"""The front over stand-in workers: spreading, streaming, and never losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import time
from contextlib import asynccontextmanager

import httpx
import openai
import pytest
from fakes.local_rig import DEADLINE_SECONDS, eventually, local_rig, until, whole_state
from llmtaskpool_operator.local.front import Front
from llmtaskpool_operator.local.front_connection import FrontLimits
from llmtaskpool_operator.local.front_places import FRESH_SECONDS


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
                return (await whole_state(worker)).totals.cancelled == 1

            await eventually(cancelled, "the worker sees that the client left")
            assert (await worker.client().state()).lanes["compute"].active == 0

            async def closed():
                return rig.front.open_connections("worker-1") == 0

            await eventually(closed, "the front gives up the connection")

    asyncio.run(go())


def test_a_half_closed_client_still_gets_its_answer():
    async def echo(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.3)  # the half-close has come to the front
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()
        writer.close()

    async def go():
        worker = await asyncio.start_server(echo, "127.0.0.1", 0)
        front = Front()
        port = await front.start("127.0.0.1", 0)
        front.route("w", "127.0.0.1", worker.sockets[0].getsockname()[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
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
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
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
            await until(lambda: not rig.front.clients(), "the front forgets them")
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


@asynccontextmanager
async def front_over(serve, limits: FrontLimits | None = None):
    """A front over one worker that answers as ``serve(reader, writer)`` does: the front's port."""
    worker = await asyncio.start_server(serve, "127.0.0.1", 0)
    front = Front(limits)
    port = await front.start("127.0.0.1", 0)
    front.route("w", "127.0.0.1", worker.sockets[0].getsockname()[1])
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            yield port
    finally:
        await front.stop()
        worker.close()


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def ask(port: int, *segments: bytes) -> bytes:
    """All that is answered until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for segment in segments:
        writer.write(segment)
        await asyncio.sleep(0.05)
    answer = await reader.read()
    writer.close()
    return answer


def test_a_request_line_in_two_segments_goes_to_the_worker_that_holds_the_task():
    async def go():
        async with local_rig(2) as rig:
            for worker in ("worker-1", "worker-2", "worker-1"):
                target = f"/v1/tasks/{worker}-{'0af' * 10}00".encode()
                rest = b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
                answer = await ask(rig.port, b"GET " + target[:15], target[15:] + rest)
                assert json.loads(answer.partition(b"\r\n\r\n")[2])["worker_id"] == worker

    asyncio.run(go())


def test_a_request_that_its_worker_refuses_early_has_that_one_answer():
    async def refuse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")  # and none of the body
        writer.write(
            b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"
        )
        await writer.drain()
        writer.write_eof()
        await reader.read()
        writer.close()

    async def go():
        async with front_over(refuse) as port:
            head = (
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n\r\n"
            )
            answer = await ask(port, head, b"x" * 1000)
            assert answer.count(b"HTTP/1.1") == 1
            assert answer.startswith(b"HTTP/1.1 401 ")
            assert answer.endswith(b"no")

    asyncio.run(go())


def test_a_request_is_sent_once_also_when_its_worker_ends_without_an_answer():
    requests: list[bytes] = []

    async def end(reader, writer):
        while True:
            requests.append(await reader.readuntil(b"\r\n\r\n"))
            if len(requests) == 2:
                break
            writer.write(OK)
        writer.close()

    async def go():
        async with front_over(end) as port:
            head = b"POST /v1/tasks HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n"
            assert (await ask(port, head + b"connection: close\r\n\r\n")).endswith(b"ok")
            answer = await ask(port, head + b"connection: close\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 502 ")
            assert b'"code": "worker_lost"' in answer
            assert len(requests) == 2

    asyncio.run(go())


def test_a_workers_connection_is_kept_for_the_next_request_of_anybody():
    connections = 0

    async def answer(reader, writer):
        nonlocal connections
        connections += 1
        while await reader.readline():
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
        writer.close()

    async def go():
        async with front_over(answer) as port:
            for _ in range(5):
                head = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
                assert (await ask(port, head)).endswith(b"ok")
            assert connections == 1

    asyncio.run(go())


def test_a_body_and_a_stream_go_on_part_by_part_as_they_come():
    async def mirror(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(3):
            part = await reader.readexactly(4)
            writer.write(b"4\r\n" + part + b"\r\n")
        writer.write(b"0\r\n\r\n")

    async def go():
        async with front_over(mirror) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 12\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            for part in (b"one.", b"two.", b"end."):
                writer.write(part)  # the next is sent when this one is back
                assert await reader.readexactly(9) == b"4\r\n" + part + b"\r\n"
            assert await reader.readexactly(5) == b"0\r\n\r\n"
            writer.close()

    asyncio.run(go())


def test_what_is_said_about_one_connection_is_not_passed_on():
    seen: list[bytes] = []

    async def answer(reader, writer):
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(
            b"HTTP/1.1 200 Fine\r\nx-kept: 1\r\nx-hop: 1\r\nconnection: x-hop\r\n"
            b"keep-alive: timeout=5\r\nset-cookie: a=1\r\ncontent-length: 2\r\n\r\nok"
        )

    async def go():
        async with front_over(answer) as port:
            got = await ask(
                port,
                b"GET /a%2Fb//../c?d=%20e HTTP/1.1\r\nHost: me:1\r\nConnection: close, X-Mine\r\n"
                b"X-Mine: 1\r\nTE: trailers\r\nUpgrade: h2c\r\nProxy-Authorization: a\r\n"
                b"Cookie: b=2\r\nX-Twice: 1\r\nX-Twice: 2\r\n\r\n",
            )
            lines = seen[0].decode().lower().split("\r\n")
            assert lines[0] == "get /a%2fb//../c?d=%20e http/1.1"
            assert sorted(filter(None, lines[1:])) == [
                "cookie: b=2", "host: me:1", "x-twice: 1", "x-twice: 2"
            ]  # fmt: skip
            head = got.partition(b"\r\n\r\n")[0].decode().lower().split("\r\n")
            assert head[0] == "http/1.1 200 fine"
            names = sorted(line.partition(":")[0] for line in head[1:])
            assert names == ["connection", "content-length", "date", "set-cookie", "x-kept"]

    asyncio.run(go())


def test_idle_connections_make_room_for_newcomers_and_for_who_was_there_before():
    async def go():
        limits = FrontLimits(connections=64, connections_kept=8)
        async with local_rig(1, front_limits=limits) as rig, rig.client() as client:
            assert (await rig.work(client)).status_code == 200
            idle = [await asyncio.open_connection("127.0.0.1", rig.port) for _ in range(40)]
            for number in range(40):
                idle.append(await asyncio.open_connection("127.0.0.1", rig.port))
                idle[-1][1].write(b"GET /who HTTP/1.1\r\nhost: x\r\nx-half:"[: 5 + number])
            await asyncio.sleep(FRESH_SECONDS)
            assert (await rig.work(client)).status_code == 200
            async with rig.client() as newcomer:
                assert (await rig.work(newcomer)).status_code == 200
            assert rig.front.clients() <= 64 + 8  # some wait to be told that it is full
            for _, writer in idle:
                writer.close()

    asyncio.run(go())


def test_when_all_places_are_busy_a_newcomer_is_told_so_and_nobody_is_hurt():
    async def go():
        limits = FrontLimits(connections=8, connections_kept=1)
        async with local_rig(1, front_limits=limits) as rig, rig.client() as client:
            busy = [asyncio.create_task(rig.work(client, 1.0)) for _ in range(8)]
            await until(lambda: rig.front.open_connections("worker-1") >= 7, "they run")
            async with rig.client() as newcomer:
                answer = await rig.work(newcomer)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "too_many_connections"
            assert answer.headers["retry-after"] == "5"
            statuses = [(await one).status_code for one in busy]
            assert statuses.count(200) >= 7

    asyncio.run(go())


def test_a_head_that_trickles_has_a_clock_also_after_another_request():
    async def go():
        limits = FrontLimits(head_seconds=0.4)
        async with local_rig(1, front_limits=limits) as rig:
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
            writer.write(b"GET /who HTTP/1.1\r\nhost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split()[0])
            await reader.readexactly(length)
            gone = asyncio.create_task(reader.read(1))
            await asyncio.sleep(0)
            for letter in b"GET /who HTTP/1.1\r\nx: " + b"a" * 10_000:
                if gone.done():
                    break
                writer.write(bytes([letter]))
                await asyncio.sleep(0.02)
            with contextlib.suppress(ConnectionResetError):
                assert await gone == b""
            writer.close()

    asyncio.run(go())


def test_clients_that_leave_at_any_moment_raise_nothing_and_leave_nothing_behind():
    async def go():
        raised: list[dict] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, about: raised.append(about))
        async with local_rig(1) as rig:
            body = json.dumps({"seconds": 0.2, "stream": True, "pad": "x" * 300_000}).encode()
            whole = (
                f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
                f"content-length: {len(body)}\r\n\r\n".encode()
                + body
            )
            for cut in (10, 60, 100, 1000, 100_000, len(whole) - 1, len(whole), len(whole)):
                for abruptly in (True, False):
                    _, writer = await asyncio.open_connection("127.0.0.1", rig.port)
                    writer.write(whole[:cut])
                    await asyncio.sleep(0.05)
                    if abruptly:
                        writer.transport.abort()
                    else:
                        writer.close()
            await until(lambda: not rig.front.clients(), "the front forgets them")
            await until(lambda: rig.front.open_connections("worker-1") == 0, "the links are gone")
        assert raised == []
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert others == []

    asyncio.run(go())


def test_the_front_needs_no_more_files_than_it_may_open():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def go():
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
        front = Front(FrontLimits(connections=400))
        await front.start("127.0.0.1", 0)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(hard, 800)
        await front.stop()

    try:
        asyncio.run(go())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
