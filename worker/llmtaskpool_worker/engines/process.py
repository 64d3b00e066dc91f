"""The API process's side of an engine process: start, frames, restart, stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import sys
from collections.abc import AsyncIterator, Callable

from llmtaskpool_worker.engines.frames import (
    HEADER,
    FrameTooLong,
    body_length,
    decode_from_engine,
    framed,
)
from llmtaskpool_worker.engines.protocol import (
    Admit,
    AdmitEmbedding,
    EngineDied,
    EngineEvent,
    LoadFailed,
    ModelSpec,
    Ready,
    RequestFailed,
    Resume,
    SetThreads,
    Step,
    Stop,
    ToEngine,
    Vector,
)

ENDING_SECONDS = 0.5
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
HEALTHY_SECONDS = 30.0
"""An engine that ran so long starts its back-off anew."""

_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "XDG_CACHE_HOME", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
_KEPT_PREFIXES = ("CUDA_", "NVIDIA_", "HF_", "OMP_", "MKL_", "KMP_", "PYTHON", "PYTORCH_", "TORCH_")


class EngineProcess:
    """Engine over a child process; see protocol.Engine for what it promises."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        program: tuple[str, ...] = (sys.executable, "-m", "llmtaskpool_worker.engines.child"),
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.spec = spec
        self._program = program
        self._jitter = jitter
        self._events: asyncio.Queue[EngineEvent | None] = asyncio.Queue()
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._running: asyncio.Task[None] | None = None
        self._in_flight: set[int] = set()
        self._threads: SetThreads | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """Of the engine process, while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Start the engine process and keep it running."""
        self._running = asyncio.create_task(self._keep_running())

    def send(self, message: ToEngine) -> None:
        """Queue a message. A request sent while no process runs is lost with the next death."""
        if isinstance(message, SetThreads):
            self._threads = message  # told again to a restarted process
        if isinstance(message, Admit | AdmitEmbedding | Resume):
            self._in_flight.add(message.id)
        if self._writer is not None:
            self._writer.write(framed(message))

    async def events(self) -> AsyncIterator[EngineEvent]:
        """All events, in order, until ``stop``."""
        while (happened := await self._events.get()) is not None:
            yield happened

    def kill(self) -> None:
        """End the process now; it restarts."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def stop(self, grace_seconds: float) -> None:
        """Ask, wait, kill; nothing is left running when this returns."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self.send(Stop())
        if self._running is not None:
            _, late = await asyncio.wait({self._running}, timeout=grace_seconds)
            if late:
                self.kill()
                self._running.cancel()
                await asyncio.gather(self._running, return_exceptions=True)
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.kill()
            await self._process.wait()
        self._events.put_nowait(None)

    async def _keep_running(self) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        loop = asyncio.get_running_loop()
        while not self._stopping:
            began = loop.time()
            loaded = await self._run_once()
            exit_code = self._process.returncode if self._process else None
            if self._stopping or loaded is False:
                return  # a model that can't be loaded won't load the next time either
            if loop.time() - began > HEALTHY_SECONDS:
                backoff = FIRST_BACKOFF_SECONDS
            wait = backoff * (0.75 + 0.5 * self._jitter())
            lost, self._in_flight = sorted(self._in_flight), set()
            self._events.put_nowait(EngineDied(lost, exit_code, wait))
            await asyncio.sleep(wait)
            backoff = min(2 * backoff, LONGEST_BACKOFF_SECONDS)

    async def _run_once(self) -> bool | None:
        """Run one process to its end. False when it said that the model can't be loaded."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    *self._program,
                    str(theirs.fileno()),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,  # the worker's own holds JSON lines
                    env=_environment(self.spec),
                )
            reader, self._writer = await asyncio.open_connection(sock=ours)
        except OSError:
            ours.close()
            return None
        loaded: bool | None = None
        try:
            self._writer.write(framed(self.spec))
            if self._threads is not None:
                self._writer.write(framed(self._threads))
            async for happened in _read(reader):
                self._note(happened)
                loaded = False if isinstance(happened, LoadFailed) else loaded
                self._events.put_nowait(happened)
        finally:
            self._writer.close()
            self._writer = None
            if loaded is not False and not self._stopping:
                # The stream ended: the process is about to, or is of no use. It is waited for
                # first, as killing what has just ended loses its exit code.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ENDING_SECONDS):
                        await self._process.wait()
                self.kill()
            await self._process.wait()
        return loaded

    def _note(self, happened: EngineEvent) -> None:
        """Keep the set of requests that a death would lose."""
        match happened:
            case Step(finished=finished):
                self._in_flight.difference_update(end.id for end in finished)
            case Vector(id=request_id) | RequestFailed(id=request_id):
                self._in_flight.discard(request_id)
            case Ready() | _:
                pass


async def _read(reader: asyncio.StreamReader) -> AsyncIterator[EngineEvent]:
    """Messages of the engine process until its stream ends or can't be trusted."""
    try:
        while True:
            length = body_length(await reader.readexactly(HEADER.size))
            yield decode_from_engine(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError, FrameTooLong, ValueError):
        return


def _environment(spec: ModelSpec) -> dict[str, str]:
    """What an engine process may know of ours: no keys, no tokens."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or name.startswith(_KEPT_PREFIXES) or name == "LLMTASKPOOL_CACHE_DIR"
    }
    kept |= {
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",  # progress is told in Loading frames
        "MALLOC_ARENA_MAX": "2",  # fewer arenas to leave holes in
    }
    if not spec.source.startswith("hf://"):
        kept["HF_HUB_OFFLINE"] = "1"
    return kept
