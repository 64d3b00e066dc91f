"""``llmtaskpool local`` as a process over stand-in workers, and the JSON lines that it prints."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
from fakes.local_rig import DEADLINE_SECONDS, STAND_IN
from llmtaskpool_operator.api.names import API_VERSION, KIND

CLI = "import typer; from llmtaskpool_operator.commands.local import local; typer.run(local)"
DRIVER = """
import asyncio, json, pathlib, sys
from llmtaskpool_operator.local.pool import LocalOptions
from llmtaskpool_operator.local.run import run
from llmtaskpool_operator.api.manifest_file import parse_pool
from llmtaskpool_operator.local.worker_process import WorkerCommand
pool, program, environment, drain, record = json.loads(sys.argv[1])
command = WorkerCommand(tuple(program), (), environment)
record = pathlib.Path(record) if record else None
options = LocalOptions(port=0, drain_seconds=drain, command=command, record=record)
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
def local(*, drain: float = 10.0, spec=None, record: Path | None = None, **stand_in):
    environment = {f"STAND_IN_{name.upper()}": str(value) for name, value in stand_in.items()}
    pool, path = pool_object(**(spec or QUICK)), str(record) if record else None
    arguments = json.dumps([pool, STAND_IN, environment, drain, path])
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


def cli(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", CLI, *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
        env=os.environ | {"NO_COLOR": "1"},
    )
