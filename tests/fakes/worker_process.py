"""A real ``llmtaskpool-worker serve`` process on free ports, stopped with certainty."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import Any

import httpx
from fakes.plain_http import NO_TLS

DEADLINE_SECONDS = 60.0


class WorkerProcess:
    """The process, its ports, and the JSON lines it prints."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process
        self.pid = process.pid
        self.lines: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self._new: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read_output, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_output(self) -> None:
        for line in self.process.stdout:
            self._new.put(json.loads(line))
        self._new.put(None)

    def _read_errors(self) -> None:
        self.errors.extend(self.process.stderr)

    def wait_for(self, event: str, seconds: float = DEADLINE_SECONDS) -> dict[str, Any]:
        """The first line of that event, once it was printed."""
        deadline = time.monotonic() + seconds
        while True:
            for line in self.lines:
                if line["event"] == event:
                    return line
            line = self._new.get(timeout=max(0.01, deadline - time.monotonic()))
            assert line is not None, f"ended before {event!r}: {''.join(self.errors[-20:])}"
            self.lines.append(line)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.wait_for('listening')['data_port']}"

    @property
    def control_url(self) -> str:
        return f"http://127.0.0.1:{self.wait_for('listening')['control_port']}"

    def client(self, **options) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=DEADLINE_SECONDS, verify=NO_TLS, **options)

    def exit_code(self, seconds: float = DEADLINE_SECONDS) -> int:
        """The exit code, once it has ended; what it printed is in ``lines`` and ``errors``."""
        code = self.process.wait(seconds)
        for reader in self._readers:
            reader.join(seconds)
        while not self._new.empty():
            line = self._new.get()
            if line is not None:
                self.lines.append(line)
        return code


@contextmanager
def worker_process(*arguments: str, program: tuple[str, ...] = (), **environment: str):
    """Start a worker; ``environment`` are LLMTASKPOOL_ settings without the prefix."""
    command = program or (sys.executable, "-m", "llmtaskpool_worker", "serve")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LLMTASKPOOL_")}
    process = subprocess.Popen(
        [*command, "--port", "0", "--control-port", "0", "--die-with-parent", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean | {f"LLMTASKPOOL_{k.upper()}": v for k, v in environment.items()},
    )
    try:
        yield WorkerProcess(process)
    finally:
        process.kill()
        process.wait()
