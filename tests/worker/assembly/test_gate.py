"""A real gate process: what it holds is answered once a worker is there, never with an error."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes.http_rig import serving_engines, wait_until
from fakes.letters_engine import LettersEngine
from fakes.queue_servers import KINDS, QueueServer
from fakes.raw_server import END, GOOD, HEAD, plain, raw_serving, says
from fakes.worker_process import WorkerProcess, worker_process
from llmtaskpool_operator.autoscaler.observation import GateObservation, PodObservation
from llmtaskpool_worker.contract import WorkerState

KEY = {"authorization": "Bearer data-key"}
TOKEN = {"authorization": "Bearer control-token"}
CHAT = {"model": "letters", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


class Gate:
    """A gate process, asked as clients and the operator do."""

    def __init__(self, process: WorkerProcess) -> None:
        self.process = process
        self.http = process.client(headers=KEY, limits=httpx.Limits(max_connections=200))
        self.clients = ThreadPoolExecutor(128)

    def know(self, *workers: str) -> None:
        body = {"workers": list(workers)}
        url = f"{self.process.control_url}/control/v1/workers"
        assert httpx.put(url, json=body, headers=TOKEN).status_code == 200

    def state(self) -> dict[str, Any]:
        found = httpx.get(f"{self.process.control_url}/control/v1/state", headers=TOKEN).json()
        return found["gate"] | {"queue": found["queue"], "lanes": found["lanes"]}

    def asks(self) -> bool:
        """Whether the operator, which reads this, wants a worker."""
        found = httpx.get(f"{self.process.control_url}/control/v1/state", headers=TOKEN).json()
        pod = PodObservation("g", ready=True, state=WorkerState.model_validate(found))
        return GateObservation((pod,)).asks

    def later(self, path: str, body: Any, **options: Any) -> Future[httpx.Response]:
        """A client that waits for its answer."""
        return self.clients.submit(self.http.post, path, json=body, **options)

    def holds(self, count: int) -> None:
        wait_until(lambda: self.state()["held"] == count, f"the gate holds {count}")


@contextmanager
def gate_process(**settings: str) -> Iterator[Gate]:
    keys = {"api_keys": "data-key", "control_tokens": "control-token"}
    with worker_process("--gate", **(keys | settings)) as process:
        process.wait_for("ready", 240)
        yield Gate(process)


@pytest.fixture(scope="module")
def one_gate() -> Iterator[Gate]:
    models = "letters=/nowhere;vectors=/nowhere,task=embed"
    with gate_process(models=models, queue_timeout_seconds="600") as gate:
        yield gate


@pytest.fixture
def gate(one_gate: Gate) -> Iterator[Gate]:
    """It knows no worker."""
    one_gate.know()
    yield one_gate
    one_gate.know()


def test_chats_and_tasks_that_come_while_no_worker_is_there_are_all_answered(gate: Gate) -> None:
    before = gate.state()["arrived_total"]
    chats = [gate.later("/v1/chat/completions", CHAT | {"stream": n % 2 == 0}) for n in range(16)]
    task = {"kind": "chat", "model": "letters", "input": CHAT["messages"]}
    tasks = [gate.later("/v1/tasks", task) for _ in range(100)]
    line = b'{"custom_id": "%s"}\n' % (b"a" * 1000)
    # Longer than a body may be that is kept: it is read once there is somebody to read it.
    file = {"file": ("lines.jsonl", line * 10_000)}
    upload = gate.clients.submit(
        gate.http.post, "/v1/files", files=file, data={"purpose": "batch"}, timeout=120
    )
    gate.holds(117)
    assert not any(one.done() for one in chats + tasks)
    with serving_engines(LettersEngine(), api_keys="data-key") as worker:
        gate.know(f"127.0.0.1:{worker.port}")
        answers = [one.result(120) for one in chats + tasks]
        assert [one.status_code for one in answers] == [200] * 16 + [202] * 100, answers[0].text
        assert {one.headers["x-llmtaskpool-cold-start"] for one in answers} == {"true"}
        # The next one needs no gate, and its client is told so.
        assert {one.headers["connection"] for one in answers} == {"close"}
        for whole, streamed in ((answers[1], answers[0]),):
            assert whole.json()["choices"][0]["message"]["content"]
            assert streamed.text.endswith("data: [DONE]\n\n")
        stored = upload.result(120)
        assert stored.status_code == 200, stored.text
        assert stored.json()["bytes"] == len(line) * 10_000
        ids = [one.json()["id"] for one in answers[16:]]
        assert len(set(ids)) == 100, "each is a task of its own"
        views = [gate.http.get(f"/v1/tasks/{one}", params={"wait": 60}).json() for one in ids]
        assert {view["state"] for view in views} == {"succeeded"}
        passing_by = gate.http.post("/v1/chat/completions", json=CHAT)
        assert passing_by.status_code == 200
        assert "x-llmtaskpool-cold-start" not in passing_by.headers
    told = gate.state()
    assert told["arrived_total"] - before >= 116
    assert (told["held"], told["forwarding"]) == (0, 0)


def test_a_stream_passes_as_it_comes_and_a_client_that_leaves_takes_it_along(gate: Gate) -> None:
    read = threading.Event()

    async def in_two_parts(_server: Any, _: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + says("first"))
        await writer.drain()
        await asyncio.to_thread(read.wait, 60)
        writer.write(says("second", "stop") + END)

    body = CHAT | {"stream": True}
    with raw_serving(in_two_parts) as worker:
        gate.know(f"127.0.0.1:{worker.port}")
        with gate.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            pieces = answer.iter_text()
            assert "first" in next(pieces), "nothing of the rest exists yet"
            read.set()
            assert "second" in "".join(pieces)

    async def for_ever(_server: Any, reader: asyncio.StreamReader, writer: Any) -> None:
        writer.write(HEAD + says("first"))
        await writer.drain()
        await reader.read()  # until the gate has gone

    with raw_serving(for_ever) as worker:
        gate.know(f"127.0.0.1:{worker.port}")
        with gate.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert "first" in next(answer.iter_text())
            assert worker.open == 1
        wait_until(lambda: worker.open == 0, "the worker is told that nobody waits")
    assert gate.state()["forwarding"] == 0


def test_a_client_that_leaves_while_it_is_held_is_let_go_and_was_seen(gate: Gate) -> None:
    with gate.process.client(headers=KEY) as leaving, pytest.raises(httpx.ReadTimeout):
        leaving.post("/v1/chat/completions", json=CHAT, timeout=httpx.Timeout(30, read=0.5))
    gate.holds(0)
    assert gate.state()["recent"] >= 1, "a pool that sleeps hears of who could not wait"


DRAINING = b'{"error": {"code": "draining", "message": "this worker is stopping"}}'


def refusing(status: str, body: bytes) -> Any:
    async def script(_server: Any, _: Any, writer: asyncio.StreamWriter) -> None:
        answer = plain(status, "application/json", body)
        writer.write(answer.replace(b"\r\n", b"\r\nretry-after: 1\r\n", 1))

    return script


async def _breaks(_server: Any, _: Any, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def _answers(_server: Any, _: Any, writer: asyncio.StreamWriter) -> None:
    writer.write(GOOD)


@pytest.mark.parametrize(
    "first", [_breaks, refusing("503 Unavailable", DRAINING), refusing("429 Busy", b"{}"), None]
)
def test_a_worker_that_goes_in_the_moment_it_is_asked_costs_the_client_nothing(
    gate: Gate, first: Any
) -> None:
    """It breaks off, it is draining, the held ones fill it, or it can't be reached at all."""
    held = gate.later("/v1/chat/completions", CHAT)
    gate.holds(1)
    with raw_serving(first or _answers) as going:
        port = going.port if first else 9  # nobody listens there
        gate.know(f"127.0.0.1:{port}")
        if first:
            wait_until(lambda: going.posts > 0, "the first was asked")
        else:
            wait_until(lambda: not gate.state()["workers"], "the gate has found that out")
        assert not held.done()
        with raw_serving(_answers) as next_one:
            gate.know(f"127.0.0.1:{next_one.port}")
            answer = held.result(60)
    assert answer.status_code == 200
    assert "good" in answer.text


def test_what_wakes_nobody_is_answered_at_once(gate: Gate) -> None:
    """A stranger, a wrong route, and who only looks: none of them is a reason to start a GPU."""
    before = gate.state()["arrived_total"]
    with gate.process.client() as stranger:
        assert stranger.post("/v1/chat/completions", json=CHAT).status_code == 401
        assert stranger.get("/readyz").status_code == 200
        assert stranger.get("/livez").status_code == 200
        page = stranger.get("/metrics").text
    assert "llmtaskpool_gate_held_requests 0.0" in page
    assert gate.http.post("/v1/responses", json={}).status_code == 404
    assert gate.http.get("/v1/chat/completions").status_code == 405
    assert [one["id"] for one in gate.http.get("/v1/models").json()["data"]] == [
        "letters",
        "vectors",
    ]
    assert gate.http.get("/v1/tasks/none").status_code == 404
    with raw_serving(_answers) as worker:
        gate.know(f"127.0.0.1:{worker.port}")
        models = gate.http.get("/v1/models").json()["data"]
        assert [one["id"] for one in models] == ["raw"], "a worker knows better"
    assert gate.http.get("/v1/tasks/none").status_code == 404, "that worker is gone"
    assert gate.state()["held"] == 0
    too_long = gate.http.post("/v1/chat/completions", content=b"[" * 9_000_000)
    assert too_long.status_code == 413
    assert gate.state()["arrived_total"] == before
    url = f"{gate.process.control_url}/control/v1/workers"
    assert httpx.put(url, json={"workers": []}).status_code == 401
    assert httpx.put(url, json={"workers": ["http://x/y"]}, headers=TOKEN).status_code == 400


def test_a_gate_that_is_to_end_first_sees_to_what_it_holds() -> None:
    with gate_process(grace_seconds="60", queue_timeout_seconds="60") as gate:
        held = gate.later("/v1/chat/completions", CHAT)
        gate.holds(1)
        gate.process.process.send_signal(signal.SIGTERM)
        gate.process.wait_for("draining")
        assert gate.http.get("/readyz").status_code == 200, "it may be the only one there is"
        with raw_serving(_answers) as worker:
            gate.know(f"127.0.0.1:{worker.port}")
            assert held.result(60).status_code == 200
        assert gate.process.exit_code() == 0
    with gate_process(queue_timeout_seconds="0.2") as impatient:
        answer = impatient.http.post("/v1/chat/completions", json=CHAT)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_worker_ready")
        assert int(answer.headers["retry-after"]) > 0


def test_a_task_of_the_shared_queue_is_accepted_at_once_and_a_sleeping_pool_answers_for_it(
    tmp_path: Path,
) -> None:
    """What needs no tokenizer: the gate has none. A chat waits for a worker as ever."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "here").write_text("found")
    read = {"kind": "io.read", "arguments": {"name": "here"}}
    with (
        QueueServer(tmp_path / "server") as server,
        gate_process(queue=server.url, queue_pool="team/chat", data_dir=str(data)) as gate,
    ):
        accepted = [gate.later("/v1/tasks", read) for _ in range(20)]
        views = [one.result(60).json() for one in accepted]
        assert {view.get("state") for view in views} == {"queued"}, views[0]
        assert {view["durable"] for view in views} == {True}
        lines = {"file": ("lines.jsonl", b"{}\n")}
        stored = gate.http.post("/v1/files", files=lines, data={"purpose": "batch"})
        assert stored.status_code == 200, "files are where the queue is"
        assert gate.http.get(f"/v1/files/{stored.json()['id']}").status_code == 200
        chat = gate.later("/v1/tasks", {"kind": "chat", "model": "letters", "input": "hello"})
        gate.holds(1)
        wait_until(
            lambda: gate.state()["lanes"]["io"]["queued"] == 20, "the operator sees what waits"
        )
        shared = {"queue": server.url, "queue_pool": "team/chat", "data_dir": str(data)}
        with worker_process(**shared, api_keys="data-key", worker_id="w") as worker:
            worker.wait_for("ready")
            ended = [
                gate.http.get(f"/v1/tasks/{view['id']}", params={"wait": 60}).json()
                for view in views
            ]
            gate.know(worker.url.removeprefix("http://"))
            # It was passed on: that worker has no such model.
            assert chat.result(60).status_code == 404
            gate.know()
        assert {view["state"] for view in ended} == {"succeeded"}
        again = gate.http.get(f"/v1/tasks/{views[0]['id']}").json()
        assert again["state"] == "succeeded", "and no worker is there"
        wait_until(lambda: gate.state()["queue"]["running"] == 0, "nothing is left to wake for")


def batch_over(http: httpx.Client, lines: int) -> dict[str, Any]:
    """A batch of so many lines: its file, and itself, as it was answered at once."""
    body = {"model": "letters", "prompt": "abc"}
    line = {"method": "POST", "url": "/v1/completions", "body": body}
    text = "\n".join(json.dumps(line | {"custom_id": f"r{n}"}) for n in range(lines))
    stored = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("f", text)})
    assert stored.status_code == 200, stored.text
    asked = {"input_file_id": stored.json()["id"], "endpoint": "/v1/completions"}
    made = http.post("/v1/batches", json=asked)
    assert made.status_code == 200, made.text
    found: dict[str, Any] = made.json()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_an_open_batch_of_a_sleeping_pool_is_work_until_it_has_ended(
    tmp_path: Path, kind: str
) -> None:
    """It has nothing in line, as nobody feeds it: without a worker it would never go on."""
    (tmp_path / "team").write_text("team-key\n")
    with (
        QueueServer(tmp_path / "server", kind) as server,
        gate_process(
            queue=server.url,
            queue_pool="team/chat",
            models="letters=/nowhere",
            tenants="team",
            tenant_keys_dir=str(tmp_path),
        ) as gate,
    ):

        def status(batch: dict[str, Any]) -> dict[str, Any]:
            found: dict[str, Any] = gate.http.get(f"/v1/batches/{batch['id']}").json()
            return found

        assert not gate.asks()
        batch = batch_over(gate.http, 5)
        wait_until(gate.asks, "the operator is to wake a worker")
        told = gate.state()
        assert told["queue"]["batches"] == 1
        assert (told["held"], told["recent"]) == (0, 0), "no client has to wait for that"
        assert {lane["queued"] for lane in told["lanes"].values()} == {0}
        assert "llmtaskpool_batches_open 1.0" in gate.http.get("/metrics").text
        engine = LettersEngine()
        engine.hangs = True
        worker = {"api_keys": "data-key", "queue": server.url, "queue_pool": "team/chat"}
        with serving_engines(engine, **worker) as awake:
            wait_until(lambda: awake.held() == 5, "a worker feeds it")
        # That one went. What it left is in no line again.
        wait_until(lambda: gate.state()["lanes"]["compute"]["queued"] == 0, "its lines went along")
        assert status(batch)["status"] == "in_progress"
        assert gate.state()["queue"]["batches"] == 1, "and wakes the pool once more"
        with serving_engines(LettersEngine(), **worker):
            wait_until(lambda: status(batch)["status"] == "completed", "another one ends it")
        assert status(batch)["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
        wait_until(lambda: not gate.asks(), "and the pool may sleep")
        unwanted = batch_over(gate.http, 3)
        cancelled = gate.http.post(f"/v1/batches/{unwanted['id']}/cancel")
        assert cancelled.status_code == 200, cancelled.text
        wait_until(lambda: status(unwanted)["status"] == "cancelled", "no worker is woken for that")
        wait_until(lambda: not gate.asks(), "nothing is left to wake for")
        with gate.process.client(headers={"authorization": "Bearer team-key"}) as another:
            assert another.get(f"/v1/batches/{batch['id']}").status_code == 404
            assert another.get("/v1/batches").json()["data"] == []
        assert gate.http.delete(f"/v1/files/{unwanted['input_file_id']}").status_code == 200
