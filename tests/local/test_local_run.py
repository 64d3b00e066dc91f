"""``llmtaskpool local`` as a process over stand-in workers: start, load, signals, exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from fakes.local_rig import DEADLINE_SECONDS, STAND_IN
from llmtaskpool_operator.api import API_VERSION, KIND

CLI = "import typer; from llmtaskpool_operator.local_cli import local; typer.run(local)"
DRIVER = """
import asyncio, json, sys
from llmtaskpool_operator.local_pool import LocalOptions
from llmtaskpool_operator.local_run import run
from llmtaskpool_operator.pool_file import parse_pool
from llmtaskpool_operator.local_worker import WorkerCommand
pool, program, environment, drain = json.loads(sys.argv[1])
command = WorkerCommand(tuple(program), (), environment)
options = LocalOptions(port=0, drain_seconds=drain, command=command)
sys.exit(asyncio.run(run(parse_pool(pool), options, output="json", demo=False)))
"""


def pool_object(**spec):
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": "test"},
        "spec": {"models": [{"name": "stand-in", "source": "none"}], **spec},
    }


QUICK = {
    "scaling": {
        "minReplicas": 1,
        "maxReplicas": 3,
        "averagingSeconds": 5,
        "backlogDrainSeconds": 2,
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 2}},
        "drainSeconds": 20,
    },
    "threads": {"compute": {"initial": 2, "min": 2, "max": 4}},
}


class Local:
    """A running ``llmtaskpool local`` and the JSON lines that it prints."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process
        self.lines: list[dict] = []
        self._new: queue.Queue = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._new.put(json.loads(line))
        self._new.put(None)

    def wait_for(self, wanted, what: str, seconds: float = DEADLINE_SECONDS) -> dict:
        """The next line that ``wanted`` accepts."""
        deadline = time.monotonic() + seconds
        while True:
            line = self._new.get(timeout=max(0.01, deadline - time.monotonic()))
            assert line is not None, f"ended before: {what}: {self.process.stderr.read()}"
            self.lines.append(line)
            if wanted(line):
                return line

    def ready(self, count: int, seconds: float = DEADLINE_SECONDS) -> dict:
        return self.wait_for(
            lambda line: line["event"] == "state" and line["ready"] == count,
            f"{count} ready",
            seconds,
        )

    @property
    def url(self) -> str:
        return next(line["url"] for line in self.lines if line["event"] == "listening")

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def local(*, drain: float = 10.0, spec=None, **stand_in):
    environment = {f"STAND_IN_{name.upper()}": str(value) for name, value in stand_in.items()}
    arguments = json.dumps([pool_object(**(spec or QUICK)), STAND_IN, environment, drain])
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    family = []
    try:
        running = Local(process)
        yield running
    finally:
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        psutil.wait_procs(family, timeout=DEADLINE_SECONDS)


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
            httpx.stream("POST", path, json=body, timeout=DEADLINE_SECONDS) as answer,
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
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:

            async def one() -> None:
                answer = await client.post("/v1/chat/completions", json={"seconds": 0.5})
                statuses.append(answer.status_code)

            await asyncio.gather(*(one() for _ in range(80)))

    async def trickle(url: str, until: threading.Event) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
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


def cli(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", CLI, *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
        env=os.environ | {"NO_COLOR": "1"},
    )


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


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--output", "xml"], "--output 'xml'"),
        (["--model", "nonsense"], "--model 'nonsense'"),
        (["--min-replicas", "3", "--max-replicas", "2"], "--min-replicas 3"),
        (["--api-key-file", "/nowhere/keys"], "--api-key-file /nowhere/keys"),
        (["--pool", "/nowhere/pool.yaml"], "--pool /nowhere/pool.yaml"),
        (["--pool", "x.yaml", "--max-replicas", "2"], "--pool"),
    ],
)
def test_bad_options_are_one_line_that_names_them(arguments, named):
    told = cli(*arguments)
    assert told.returncode == 2
    assert told.stderr.startswith(f"llmtaskpool local: {named}")
    assert told.stderr.count("\n") == 1
