"""Batches of real workers that are killed, stopped and started again: no line is answered twice."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fakes.http_rig import wait_until
from fakes.queue_servers import QueueServer
from fakes.vllm_stub import VllmStub, stub_serving
from fakes.worker_process import WorkerProcess, worker_process

QUICK, SLOW, WINDOW = 15, 25, 10


class Gated(VllmStub):
    """A server that ends prompts with a z once its gate is open."""

    open = False

    def step(self) -> None:
        held = [one for one in self.running if "z" in one.letters and not self.open]
        for one in held:
            self.running.remove(one)
        super().step()
        self.running += held

    def asked(self) -> Counter[str]:
        return Counter(one["prompt"] for one in self.seen)


@pytest.fixture
def server() -> Iterator[Gated]:
    with stub_serving(Gated()) as stub:
        yield stub


@pytest.fixture(params=["sqlite", "valkey"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path}/queue.db"
        return
    with QueueServer(tmp_path / "server", request.param) as started:
        yield started.url


@contextmanager
def working(name: str, queue: str, server: Gated, **more: str) -> Iterator[WorkerProcess]:
    settings = {"queue": queue, "worker_id": name, "batch_window": str(WINDOW)} | more
    with worker_process("--model", f"echo=openai:{server.url}", **settings) as worker:
        worker.wait_for("ready")
        yield worker


def begun(http: httpx.Client) -> str:
    """A batch whose first lines are answered at once, and the others when the gate is open."""
    prompts = [f"a{n}" for n in range(QUICK)] + [f"z{n}" for n in range(SLOW)]
    lines = [
        {"custom_id": p, "method": "POST", "url": "/v1/completions", "body": {"prompt": p}}
        for p in prompts
    ]
    for line in lines:
        line["body"] |= {"model": "echo", "temperature": 0}  # type: ignore[operator]
    text = "\n".join(map(json.dumps, lines))
    file = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("f", text)}).json()
    body = {"input_file_id": file["id"], "endpoint": "/v1/completions"}
    batch = http.post("/v1/batches", json=body).json()
    assert batch["durable"] is True
    wait_until(
        lambda: look(http, batch["id"])["request_counts"]["completed"] == QUICK,
        "the first lines are answered, and that is written",
    )
    return batch["id"]


def look(http: httpx.Client, batch_id: str) -> dict:
    return http.get(f"/v1/batches/{batch_id}").raise_for_status().json()


def all_answered_once(http: httpx.Client, batch_id: str) -> None:
    wait_until(lambda: look(http, batch_id)["status"] == "completed", "it is completed")
    batch = look(http, batch_id)
    assert batch["request_counts"] == {
        "total": QUICK + SLOW,
        "completed": QUICK + SLOW,
        "failed": 0,
    }
    text = http.get(f"/v1/files/{batch['output_file_id']}/content").text
    answers = [json.loads(line) for line in text.splitlines()]
    assert len(answers) == QUICK + SLOW
    for one in answers:
        assert one["response"]["body"]["choices"][0]["text"] == one["custom_id"]
    assert len({one["custom_id"] for one in answers}) == QUICK + SLOW


def test_a_batch_goes_on_after_kill_9_of_its_worker_and_asks_no_answered_line_again(
    queue: str, server: Gated
) -> None:
    with working("first", queue, server) as worker, worker.client() as http:
        batch_id = begun(http)
        worker.process.kill()
        worker.process.wait(20)
    server.open = True
    with working("second", queue, server) as worker, worker.client() as http:
        all_answered_once(http, batch_id)
    asked = server.asked()
    assert {asked[f"a{n}"] for n in range(QUICK)} == {1}
    again = sum(asked[f"z{n}"] - 1 for n in range(SLOW))
    # Of a shared line the next worker may run them once for the lost one, and once for the batch.
    assert again <= 2 * WINDOW, "what was under way, and nothing else"


@pytest.mark.parametrize("queue", ["valkey"], indirect=True)
def test_a_worker_that_is_stopped_leaves_its_batch_to_the_next_one(
    queue: str, server: Gated
) -> None:
    with working("first", queue, server, grace_seconds="0.5") as worker, worker.client() as http:
        batch_id = begun(http)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.exit_code() == 0
    server.open = True
    with working("second", queue, server) as worker, worker.client() as http:
        all_answered_once(http, batch_id)
