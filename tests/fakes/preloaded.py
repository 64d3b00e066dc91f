"""Our programs as processes that are forked from one which has imported them.

To start the operator takes two seconds of processor time, nearly all of it for imports. A story
that kills it at every write starts it a hundred times; a table of what a command says, once a row.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "llmtaskpool_operator.commands.operate",
        "llmtaskpool_operator.cluster.operator",
        "llmtaskpool_operator.commands.decide",
        "llmtaskpool_operator.commands.explain",
        "llmtaskpool_operator.commands.replay",
        "llmtaskpool_operator.commands.simulate",
        "llmtaskpool_operator.commands.top",
    ]
)


class Forked:
    """``llmtaskpool`` with ``arguments`` as a process; both its outputs are added to ``log``.

    What it says on standard error goes to ``errors`` when that is given.
    """

    def __init__(
        self,
        *arguments: str,
        environment: Mapping[str, str],
        log: Path,
        errors: Path | None = None,
        given: Path = Path(os.devnull),
    ) -> None:
        files = str(given), str(log), str(errors or log)
        self._process = _FORKS.Process(
            target=_run, args=(arguments, dict(environment), files), daemon=True
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


def llmtaskpool(
    *arguments: str | Path,
    environment: Mapping[str, str],
    given: str = "",
    timeout: float = 120.0,
) -> subprocess.CompletedProcess[str]:
    """What the command says to ``given`` on its standard input, as subprocess.run tells it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        said, errors, stdin = folder / "out", folder / "err", folder / "in"
        stdin.write_text(given)
        texts = [str(argument) for argument in arguments]
        run = Forked(*texts, environment=environment, log=said, errors=errors, given=stdin)
        code = run.wait(timeout)
        return subprocess.CompletedProcess(texts, code, said.read_text(), errors.read_text())


def _run(arguments: tuple[str, ...], environment: dict[str, str], files: tuple[str, ...]) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # dies with the test's process
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(files[0], os.O_RDONLY), 0)
    for output, file in zip((1, 2), files[1:], strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), output)
    sys.stdin = os.fdopen(0, closefd=False)  # multiprocessing has shut its own
    sys.argv = ["llmtaskpool", *arguments]
    from llmtaskpool_operator.__main__ import main

    main()
