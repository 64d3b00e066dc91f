"""``llmtaskpool local`` in front of a server: one that it starts itself, and bad commands."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from fakes.http_rig import wait_until
from fakes.local_process import Local
from fakes.plain_http import NO_TLS

TESTS = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(TESTS)}
CLI = (sys.executable, "-m", "llmtaskpool_operator", "local", "--output", "json", "--port", "0")
BODY = {"model": "chat", "messages": [{"role": "user", "content": "hello"}]}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_is_started_beside_the_worker_again_when_it_dies_and_ended_with_the_pool():
    port = free_port()
    served = f"{sys.executable} -m fakes.vllm_stub --port {port}"
    pool = Local(
        subprocess.Popen(
            [*CLI, "--model", f"chat=openai:http://127.0.0.1:{port}/v1", "--upstream", served],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    )
    try:
        url = pool.wait_for(lambda line: line["event"] == "listening", "it listens")["url"]

        def answer() -> str | None:
            got = httpx.post(f"{url}/v1/chat/completions", json=BODY, timeout=60, verify=NO_TLS)
            return got.json()["choices"][0]["message"]["content"] if got.is_success else None

        wait_until(lambda: answer() == "hello", "the server behind it answers")
        family = psutil.Process(pool.process.pid).children(recursive=True)
        (server,) = [one for one in family if "fakes.vllm_stub" in one.cmdline()]
        server.kill()
        ended = pool.wait_for(
            lambda line: "upstream ended" in line.get("message", ""), "it is told"
        )
        assert "by SIGKILL" in ended["message"]
        wait_until(lambda: answer() == "hello", "it is started again")
        family = psutil.Process(pool.process.pid).children(recursive=True)
        pool.process.send_signal(signal.SIGINT)
        assert pool.process.wait(60) == 0
        _, left = psutil.wait_procs(family, timeout=30)
        assert left == []
    finally:
        pool.process.kill()
        pool.process.wait()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--upstream", "no-such-program --port 1"], "is no program that is found here"),
        (["--upstream", ""], "is empty"),
        (["--upstream", "python 'serve"], "close its quotes"),
        (["--model", "chat=openai:ftp://127.0.0.1/v1"], "no http:// address"),
        (["--model", "chat=openai:http://api.example.org/v1"], "LLMTASKPOOL_UPSTREAM_HOSTS"),
    ],
)
def test_what_can_not_be_is_told_at_once(options, words):
    model = [] if "--model" in options else ["--model", "chat=openai:http://127.0.0.1:1/v1"]
    ended = subprocess.run(
        [*CLI, *model, *options], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2
    assert words in ended.stderr + ended.stdout


def test_a_command_without_a_model_that_asks_it_is_refused():
    ended = subprocess.run(
        [*CLI, "--upstream", "python"], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2
    assert "no model is asked of it" in ended.stderr
