"""A real ``llmtaskpool operate`` process, to be killed, frozen and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from fakes.plain_http import NO_TLS
from fakes.preloaded import Forked
from rig import ports

DIES_WITH_ITS_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
"""Before a command: a test process that is killed (pytest-timeout does) leaves none behind."""


class OperatorProcess:
    """``log`` is a file that all its lives write to.

    ``forked`` from a process that has imported all of the CLI it starts at once; else it is a
    process as in a pod, whose memory and time can be measured.
    """

    def __init__(
        self, kubeconfig: Path, log: Path, *, forked: bool = True, **settings: str
    ) -> None:
        self._kubeconfig, self._forked = kubeconfig, forked
        self.log = log
        self._settings = settings
        (self.port,) = ports.choose("127.0.0.1", 1)  # it stays its own through all its lives
        self.process: Forked | subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("LLMTASKPOOL_")}
        given = {"host": "127.0.0.1", "port": str(self.port)} | self._settings
        settings = {f"LLMTASKPOOL_OPERATOR_{k.upper()}": v for k, v in given.items()}
        environment = clean | settings | {"KUBECONFIG": str(self._kubeconfig)}
        if self._forked:
            self.process = Forked("operate", environment=environment, log=self.log)
            return
        command = [sys.executable, "-m", "llmtaskpool_operator", "operate"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*DIES_WITH_ITS_PARENT, *command], env=environment, stdout=log, stderr=log
            )

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def terminate(self) -> int:
        self._signal(signal.SIGTERM)
        return self.process.wait(30)

    def freeze(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=5, verify=NO_TLS)

    def wait_ready(self, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.text()[-3000:]
            try:
                if self.get("/readyz").status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"not ready: {self.text()[-3000:]}")

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def _signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, number)
            if number == signal.SIGKILL:
                self.process.wait()


@contextmanager
def operator_process(kubeconfig: Path, folder: Path, **settings: str) -> Iterator[OperatorProcess]:
    operator = OperatorProcess(kubeconfig, folder / "operator.log", **settings)
    operator.start()
    try:
        yield operator
    finally:
        operator.kill()
