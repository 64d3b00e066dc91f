"""One worker process of this machine: started, listened to, observed, drained and ended.

The process speaks in JSON lines on its standard output (listening, loading, ready, ...); all
else is asked on its control port. It ends with this process, however this process ends: it asks
the kernel for that itself (``--die-with-parent``), and its engines end with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from llmtaskpool_worker.contract import WorkerReport

from llmtaskpool_operator.workers.client import (
    ClientLimits,
    WorkerClient,
    WorkerUnreachable,
    is_alive,
)

LOOPBACK = "127.0.0.1"
BAD_SETTINGS = 2
"""A worker's exit code for settings it can't use: starting it again can't help."""
_LINE_BYTES = 256 * 1024
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """How a worker is started: ``program`` then ``serve`` and its options, and its variables."""

    program: tuple[str, ...] = (sys.executable, "-m", "llmtaskpool_worker")
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Loading:
    """How far a model's loading is, 0 to 1."""

    model: str
    stage: str
    fraction: float


class LocalWorker:
    """A worker process. ``on_event`` is called with each of its lines, as they come."""

    def __init__(
        self,
        worker_id: str,
        http: aiohttp.ClientSession,
        token: str,
        on_event: Callable[[LocalWorker, dict[str, Any]], None],
    ) -> None:
        self.id = worker_id
        self.started_at = 0.0
        self.ready_at: float | None = None
        self.retiring = False
        self.silent = False
        self.failure: str | None = None
        self.loading: dict[str, Loading] = {}
        self.data_port: int | None = None
        self.control_port: int | None = None
        self.state: WorkerReport | None = None
        self.state_at = 0.0
        self.unreachable: str | None = None
        self.errors: deque[str] = deque(maxlen=50)
        self._http = http
        self._token = token
        self._on_event = on_event
        self._process: asyncio.subprocess.Process | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._client: WorkerClient | None = None

    async def start(self, command: WorkerCommand, now: float) -> None:
        """Start the process. Raises OSError when the program can't be run."""
        self.started_at = now
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LLMTASKPOOL_")}
        environment |= {"LLMTASKPOOL_CONTROL_TOKENS": self._token, **command.environment}
        self._process = await asyncio.create_subprocess_exec(
            *command.program,
            "serve",
            *("--host", LOOPBACK, "--port", "0"),
            *("--control-host", LOOPBACK, "--control-port", "0"),
            *("--worker-id", self.id, "--die-with-parent"),
            *command.options,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            limit=_LINE_BYTES,
            start_new_session=True,  # Ctrl-C in the terminal is for this process, which drains
        )
        self._readers = [
            asyncio.create_task(self._read_events()),
            asyncio.create_task(self._read_errors()),
        ]

    @property
    def pid(self) -> int | None:
        """The process id, once started."""
        return self._process.pid if self._process is not None else None

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.returncode if self._process is not None else None

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.returncode is None

    @property
    def ready(self) -> bool:
        """Whether it takes tasks."""
        return self.alive and self.ready_at is not None and not self.retiring

    @property
    def in_flight(self) -> int:
        """Tasks that run or wait, as last reported."""
        if self.state is None:
            return 0
        return sum(lane.active + lane.queued for lane in self.state.lanes.values())

    def last_words(self) -> str:
        """The last line it wrote to standard error."""
        return self.errors[-1] if self.errors else ""

    def client(self) -> WorkerClient:
        """Its control port. Raises WorkerUnreachable before it listens."""
        if self._client is None:
            raise WorkerUnreachable("it does not listen yet")
        return self._client

    async def observe(self, now: float) -> WorkerReport | None:
        """Ask for its state; None, with ``unreachable`` saying why, when it does not answer."""
        try:
            self.state = await self.client().state()
        except WorkerUnreachable as error:
            self.unreachable = str(error)
            return None
        self.state_at = now
        self.unreachable = None
        return self.state

    async def is_alive(self) -> bool | None:
        """What it says of itself; None when it says nothing."""
        if self.data_port is None:
            return None
        return await is_alive(self._http, f"http://{LOOPBACK}:{self.data_port}")

    async def drain(self, budget_seconds: float, clock: Callable[[], float]) -> bool:
        """Tell it to finish and wait until nothing is in flight; whether that was so in time."""
        until = clock() + budget_seconds
        while self.alive:
            try:
                await self.client().drain(max(0.0, until - clock()))
                state = await self.client().state()
            except WorkerUnreachable:
                if self.ready_at is None:
                    return True  # it never took a task
            else:
                self.state = state
                if self.in_flight == 0:
                    return True
            if clock() >= until:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True

    async def end(self, grace_seconds: float) -> None:
        """SIGTERM, and SIGKILL after the grace period; returns when the process is gone."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            self.signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(grace_seconds):
                    await process.wait()
            except TimeoutError:
                self.signal(signal.SIGKILL)
        await process.wait()
        await asyncio.wait(self._readers, timeout=_POLL_SECONDS)
        for reader in self._readers:  # they end with the pipes; a grandchild may hold one open
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)

    def signal(self, number: int) -> None:
        """Send a signal; a process that is gone already is fine."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def ended(self) -> int:
        """The exit code, once it has ended."""
        return await self._process.wait() if self._process is not None else 0

    # -- what it says

    async def _read_events(self) -> None:
        assert self._process is not None  # noqa: S101  started
        assert self._process.stdout is not None  # noqa: S101  a pipe, as asked for
        async for line in _lines(self._process.stdout):
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                self._take(event)

    def _take(self, event: dict[str, Any]) -> None:
        match event:
            case {"event": "listening", "data_port": int(data), "control_port": int(control)}:
                self.data_port, self.control_port = data, control
                url = f"http://{LOOPBACK}:{control}"
                self._client = WorkerClient(self._http, url, self._token, ClientLimits())
            case {"event": "loading", "stage": str(stage), "fraction": float() | int() as done}:
                model = str(event.get("model", ""))
                self.loading[model] = Loading(model, stage, min(max(float(done), 0.0), 1.0))
            case {"event": "load_failed", "message": str(message)}:
                self.failure = message
        self._on_event(self, event)

    async def _read_errors(self) -> None:
        assert self._process is not None  # noqa: S101  started
        assert self._process.stderr is not None  # noqa: S101  a pipe, as asked for
        async for line in _lines(self._process.stderr):
            self.errors.append(line.decode("utf-8", "replace").rstrip())


async def _lines(stream: asyncio.StreamReader) -> Any:
    """Lines of a pipe; one that is longer than the limit is dropped."""
    while True:
        try:
            line = await stream.readline()
        except ValueError:
            continue
        if not line:
            return
        yield line
