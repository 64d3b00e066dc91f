"""``llmtaskpool local`` as a process over stand-in workers: start, load, signals, exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import threading
from pathlib import Path

import httpx
import psutil
import pytest
from fakes.local_process import cli, local, pool_object
from fakes.local_rig import DEADLINE_SECONDS
from fakes.plain_http import NO_TLS


def ended(processes) -> bool:
    _gone, left = psutil.wait_procs(processes, timeout=DEADLINE_SECONDS)
    return not [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


class Stream:
    """A stream that is under way once this is made; ``parts`` is what came of it in the end."""

    def __init__(self, url: str, seconds: float) -> None:
        self.parts: list[str] = []
        self.whole = False
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(url, seconds), daemon=True)
        self._thread.start()
        assert self._begun.wait(DEADLINE_SECONDS)

    def _read(self, url: str, seconds: float) -> None:
        body = {"seconds": seconds, "stream": True, "parts": 10}
        path = f"{url}/v1/chat/completions"
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.stream(
                "POST", path, json=body, timeout=DEADLINE_SECONDS, verify=NO_TLS
            ) as answer,
        ):
            for line in answer.iter_lines():
                if line:
                    self.parts.append(line)
                    self._begun.set()
            self.whole = True

    def ended(self) -> Stream:
        self._thread.join(DEADLINE_SECONDS)
        assert not self._thread.is_alive()
        return self


def test_ctrl_c_lets_running_work_end_and_leaves_nothing():
    with local() as pool:
        pool.ready(1)
        family = pool.family()
        stream = Stream(pool.url, 1.0)
        pool.process.send_signal(signal.SIGINT)
        assert pool.process.wait(DEADLINE_SECONDS) == 0
        assert stream.ended().whole
        assert len(stream.parts) == 10
        assert ended(family)


def test_a_second_ctrl_c_ends_at_once():
    with local(drain=600.0) as pool:
        pool.ready(1)
        family = pool.family()
        stream = Stream(pool.url, 60)
        pool.process.send_signal(signal.SIGINT)
        pool.wait_for(lambda line: "running tasks have" in line.get("message", ""), "it drains")
        assert pool.process.poll() is None
        pool.process.send_signal(signal.SIGINT)
        assert pool.process.wait(DEADLINE_SECONDS) == 0
        assert ended(family)
        assert not stream.ended().whole


def test_kill_9_leaves_no_worker_and_no_engine():
    with local() as pool:
        pool.ready(1)
        family = pool.family()
        assert len(family) == 2
        pool.process.kill()
        assert ended(family)


def test_workers_rise_with_the_load_and_fall_after_it_and_no_request_is_lost():
    statuses: list[int] = []

    async def burst(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60, verify=NO_TLS) as client:

            async def one() -> None:
                answer = await client.post("/v1/chat/completions", json={"seconds": 0.5})
                statuses.append(answer.status_code)

            await asyncio.gather(*(one() for _ in range(80)))

    async def trickle(url: str, until: threading.Event) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60, verify=NO_TLS) as client:
            while not until.is_set():
                answer = await client.post("/v1/chat/completions", json={"seconds": 0.01})
                statuses.append(answer.status_code)

    with local() as pool:
        pool.ready(1)
        over = threading.Event()
        loads = [
            threading.Thread(target=asyncio.run, args=(burst(pool.url),)),
            threading.Thread(target=asyncio.run, args=(trickle(pool.url, over),)),
        ]
        for load in loads:
            load.start()
        rise = pool.wait_for(lambda line: line["event"] == "decision" and "replicas" in
                             line["message"], "a decision to rise")  # fmt: skip
        assert "over target" in rise["message"]
        pool.ready(3)
        loads[0].join()
        pool.wait_for(
            lambda line: line["event"] == "state" and line["ready"] == 1
            and len(line["workers"]) == 1, "back at the minimum", 60.0)  # fmt: skip
        over.set()
        loads[1].join()
        assert set(statuses) == {200}
        threads = [line for line in pool.lines
                   if line["event"] == "decision" and "threads" in line["message"]]  # fmt: skip
        assert threads


def test_a_worker_that_refuses_its_settings_is_bad_input():
    with local(exit_at_once=2) as pool:
        assert pool.process.wait(DEADLINE_SECONDS) == 2
        assert pool.process.stderr.read() == "llmtaskpool local: stand-in: told to fail\n"


def test_a_port_in_use_is_bad_input_that_names_the_option():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = cli("--port", str(port))
    assert told.returncode == 2
    assert told.stderr.startswith(f"llmtaskpool local: --port {port}: ")
    assert told.stderr.count("\n") == 1


def test_a_bad_pool_file_is_one_line_per_fault(tmp_path: Path):
    path = tmp_path / "pool.yaml"
    path.write_text(json.dumps(pool_object(scaling={"minReplicas": -1}, queue={"limit": 0})))
    told = cli("--pool", str(path))
    assert told.returncode == 2
    assert sorted(line.split(": ")[1] for line in told.stderr.splitlines()) == [
        "spec.queue.limit",
        "spec.scaling.minReplicas",
    ]


def test_a_pool_file_that_shares_a_queue_is_not_run_without_it(tmp_path: Path):
    path = tmp_path / "pool.yaml"
    redis = {"secretRef": {"name": "queue", "key": "url"}}
    path.write_text(json.dumps(pool_object(queue={"redis": redis})))
    told = cli("--pool", str(path))
    assert told.returncode == 2
    assert told.stderr.startswith("llmtaskpool local: spec.queue.redis.secretRef: queue/url: ")
    assert "--queue-url-file" in told.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--queue-url-file", "/nowhere/url"], "--queue-url-file /nowhere/url"),
        (["--output", "xml"], "--output 'xml'"),
        (["--model", "nonsense"], "--model 'nonsense'"),
        (["--min-replicas", "3", "--max-replicas", "2"], "--min-replicas 3"),
        (["--api-key-file", "/nowhere/keys"], "--api-key-file /nowhere/keys"),
        (["--api-key-file", "/dev/null"], "--api-key-file /dev/null: it holds no key"),
        (["--pool", "/nowhere/pool.yaml"], "--pool /nowhere/pool.yaml"),
        (["--pool", "x.yaml", "--max-replicas", "2"], "--pool"),
        (
            ["--queue", "q.db", "--max-replicas", "2"],
            "--queue q.db: one worker owns the file, and the pool may have 2: use --max-replicas 1",
        ),
    ],
)
def test_bad_options_are_one_line_that_names_them(arguments, named):
    told = cli(*arguments)
    assert told.returncode == 2
    assert told.stderr.startswith(f"llmtaskpool local: {named}")
    assert told.stderr.count("\n") == 1
