"""Our programs as processes that are forked from one which has imported them.

To start the operator takes two seconds of processor time, nearly all of it for imports. A story
that kills it at every write starts it a hundred times.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["llmtaskpool_operator.commands.operate", "llmtaskpool_operator.cluster.operator"]
)


class Forked:
    """``llmtaskpool`` with ``arguments`` as a process; both its outputs are added to ``log``."""

    def __init__(self, *arguments: str, environment: Mapping[str, str], log: Path) -> None:
        self._process = _FORKS.Process(
            target=_run, args=(arguments, dict(environment), str(log)), daemon=True
        )
        self._process.start()
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """Its exit code once it has ended; negative for a signal."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code. Raises TimeoutError."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise TimeoutError(f"process {self.pid} runs after {timeout} s")
        return code


def _run(arguments: tuple[str, ...], environment: dict[str, str], log: str) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # dies with the test's process
    os.environ.clear()
    os.environ.update(environment)
    written = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for output in (1, 2):
        os.dup2(written, output)
    sys.argv = ["llmtaskpool", *arguments]
    from llmtaskpool_operator.__main__ import main

    main()
