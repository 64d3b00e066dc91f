"""The server that stands behind a local pool's models: started before it and ended after it.

It is what a native sidecar is on a cluster: it ends after the workers, so that their drain ends
first, and one that ends by itself is started again. What it writes is kept to tell why it ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shlex
import shutil
import signal
from collections import deque
from collections.abc import Callable

from llmtaskpool_operator.workers.backoff import Backoff

BACKOFF = Backoff(first=1.0, most=30.0)
HEALTHY_SECONDS = 60.0
"""One that ran so long is started again after the first back-off."""
GRACE_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1
_LINE_BYTES = 64 * 1024


class BadCommand(Exception):
    """The command can't be run; the message has the remedy."""


def command_of(text: str) -> tuple[str, ...]:
    """The words of a command line, as a shell cuts them; no shell runs it. Raises BadCommand."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise BadCommand(f"--upstream {text[:80]!r}: {error}: close its quotes") from None
    if not words:
        raise BadCommand("--upstream is empty: write a command, such as 'vllm serve MODEL'")
    if shutil.which(words[0]) is None:
        raise BadCommand(
            f"--upstream: {words[0]!r} is no program that is found here: write its path (no shell "
            "runs the command, so VAR=value and | mean nothing in it)"
        )
    return words


class UpstreamServer:
    """Runs ``command`` until ``stop``. ``notice`` is told when it ends by itself."""

    def __init__(
        self, command: tuple[str, ...], notice: Callable[[str], None], clock: Callable[[], float]
    ) -> None:
        self._command, self._notice, self._clock = command, notice, clock
        self._said: deque[str] = deque(maxlen=20)
        self._process: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Its process id, while it runs."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    def start(self) -> None:
        """Start it, and again whenever it ends."""
        self._keeping = asyncio.create_task(self._keep())

    async def stop(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """SIGTERM to it and its children, SIGKILL after the grace; returns when it is gone."""
        if self._keeping is None:
            return
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_seconds):
                    await process.wait()
        self._signal(signal.SIGKILL)  # what it left running too
        await process.wait()

    async def _keep(self) -> None:
        failures = 0
        while True:
            began = self._clock()
            try:
                why = await self._run()
            except OSError as error:
                why = f"it can't be started: {error.strerror}"
            failures = 1 if self._clock() - began >= HEALTHY_SECONDS else failures + 1
            delay = BACKOFF.after(failures)
            self._notice(f"The upstream ended ({why}); it starts again in {delay:g} s.")
            await asyncio.sleep(delay)

    async def _run(self) -> str:
        """Run it to its end; how it ended."""
        self._said.clear()
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_LINE_BYTES,
            start_new_session=True,  # Ctrl-C in the terminal is for the pool, which drains first
            preexec_fn=_end_with_parent,
        )
        assert self._process.stdout is not None  # noqa: S101  a pipe, as asked for
        reading = asyncio.create_task(self._read(self._process.stdout))
        try:
            code = await self._process.wait()
        finally:
            reading.cancel()
        last = next((line for line in reversed(self._said) if line), "")
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"{how}: {last[:200]}" if last else how

    async def _read(self, output: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await output.readline()
            except ValueError:
                continue  # longer than any that tells something
            if not line:
                return
            self._said.append(line.decode("utf-8", "replace").strip())

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


def _end_with_parent() -> None:
    """In the new process: the kernel is asked to end it when the pool's process ends, however."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
