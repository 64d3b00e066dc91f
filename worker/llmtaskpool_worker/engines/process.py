"""The API process's side of an engine process: start, frames, restart, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

from llmtaskpool_worker.engines.backoff import Backoff
from llmtaskpool_worker.engines.environment import engine_environment
from llmtaskpool_worker.engines.frames import Frames, decode_from_engine, framed
from llmtaskpool_worker.engines.last_words import LastWords
from llmtaskpool_worker.engines.protocol import (
    Admit,
    AdmitEmbedding,
    AdmitForward,
    AdmitInputs,
    AdmitSound,
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
    Values,
    Vector,
)

ENDING_SECONDS = 0.5
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
FIRST_LOAD_BACKOFF_SECONDS = 1.0
LONGEST_LOAD_BACKOFF_SECONDS = 60.0
"""A load takes the machine longer than a restart after a crash is worth waiting for."""
HEALTHY_SECONDS = 30.0
"""An engine that ran so long starts its back-off anew."""
log = logging.getLogger("llmtaskpool.engine")

READ_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class _Ended:
    """How one engine process was until its end."""

    exit_code: int | None = None
    was_ready: bool = False
    failed: LoadFailed | None = None
    said: tuple[str, ...] = ()
    hung: bool = False

    def reason(self) -> str:
        """A sentence for the log."""
        code = self.exit_code
        if self.hung:
            return "its process stood still and was killed"
        when = "" if self.was_ready else " while it loaded"
        if code is not None and code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = f"signal {-code}"
            hint = "; is there too little memory?" if code == -signal.SIGKILL else ""
            return f"its process was killed by {name}{when}{hint}"
        last = f": {self.said[-1]}" if self.said else ""
        return f"its process ended with exit code {code}{when}{last}"


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
        self._writer: asyncio.WriteTransport | None = None
        self._running: asyncio.Task[None] | None = None
        self._in_flight: set[int] = set()
        self._threads: SetThreads | None = None
        self._stopping = False
        self._hung = False

    @property
    def pid(self) -> int | None:
        """Of the engine process, while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Start the engine process and keep it running."""
        self._running = asyncio.create_task(self._keep_running())

    def send(self, message: ToEngine | AdmitForward) -> None:
        """Queue a message. A request sent while no process runs is lost with the next death."""
        if isinstance(message, AdmitForward):
            told = "this engine takes tokens, and no requests of OpenAI's API"
            self._events.put_nowait(RequestFailed(message.id, "wrong_model", told))
            return
        if isinstance(message, SetThreads):
            self._threads = message  # told again to a restarted process
        if isinstance(message, Admit | AdmitSound | AdmitEmbedding | AdmitInputs | Resume):
            self._in_flight.add(message.id)
        if self._writer is not None:
            self._writer.write(framed(message))

    async def events(self) -> AsyncIterator[EngineEvent]:
        """All events, in order, until ``stop``."""
        while (happened := await self._events.get()) is not None:
            yield happened

    def kill(self) -> None:
        """End the process now, because it stands still; it restarts."""
        self._hung = True
        self._kill()

    def _kill(self) -> None:
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
                self._kill()
                self._running.cancel()
                await asyncio.gather(self._running, return_exceptions=True)
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._kill()
            await self._process.wait()
        self._events.put_nowait(None)

    async def _keep_running(self) -> None:
        crashes = Backoff(FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS)
        loads = Backoff(FIRST_LOAD_BACKOFF_SECONDS, LONGEST_LOAD_BACKOFF_SECONDS)
        loop = asyncio.get_running_loop()
        was_ready = False
        while not self._stopping:
            began = loop.time()
            ended = await self._run_once()
            if self._stopping:
                return
            was_ready = was_ready or ended.was_ready
            if ended.was_ready:
                loads.begin_anew()
                if loop.time() - began > HEALTHY_SECONDS:
                    crashes.begin_anew()
            backoff = crashes if ended.was_ready else loads
            spread = 0.75 + 0.5 * self._jitter()
            if ended.failed is None:
                wait = backoff.next() * spread
                lost, self._in_flight = sorted(self._in_flight), set()
                self._events.put_nowait(
                    EngineDied(lost, ended.exit_code, wait, ended.reason(), ended.said)
                )
            elif ended.failed.may_pass or was_ready:
                # What was loaded once can be loaded: something is away that may come back.
                wait = backoff.next() * spread
                self._events.put_nowait(
                    LoadFailed(ended.failed.message, may_pass=True, retrying_in_seconds=wait)
                )
            else:
                self._events.put_nowait(ended.failed)
                return  # what the files hold doesn't get better by reading them again
            await asyncio.sleep(wait)

    async def _run_once(self) -> _Ended:
        """Run one process to its end, and say how it was."""
        ended = _Ended()

        def heard(body: bytes) -> None:
            nonlocal ended
            happened = decode_from_engine(body)
            self._note(happened)
            if isinstance(happened, LoadFailed):
                ended = replace(ended, failed=happened)
                return  # told when it is known whether it is tried again
            if isinstance(happened, Ready):
                ended = replace(ended, was_ready=True)
            self._events.put_nowait(happened)

        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    *self._program,
                    str(theirs.fileno()),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,  # the worker's own holds JSON lines
                    stderr=asyncio.subprocess.PIPE,
                    env=engine_environment(self.spec),
                )
            loop = asyncio.get_running_loop()
            self._writer, frames = await loop.create_connection(lambda: Frames(heard), sock=ours)
        except OSError as error:
            ours.close()
            failure = (
                f"{self.spec.name}: no process can be started ({os.strerror(error.errno or 0)})"
            )
            return _Ended(failed=LoadFailed(failure, may_pass=True))
        self._hung = False
        words = LastWords()
        listening = asyncio.create_task(self._listen(self._process.stderr, words))
        try:
            self._writer.write(framed(self.spec))
            if self._threads is not None:
                self._writer.write(framed(self._threads))
            await frames.ended
        finally:
            self._writer.close()
            self._writer = None
            if ended.failed is None and not self._stopping:
                # The stream ended: the process is about to, or is of no use. It is waited for
                # first, as killing what has just ended loses its exit code.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ENDING_SECONDS):
                        await self._process.wait()
                self._kill()
            await self._process.wait()
            await asyncio.wait({listening}, timeout=ENDING_SECONDS)
            listening.cancel()
        code, said = self._process.returncode, tuple(words.lines)
        return replace(ended, exit_code=code, said=said, hung=self._hung)

    async def _listen(self, stderr: asyncio.StreamReader | None, words: LastWords) -> None:
        """Bring what the process says, as far as it may be told, into our own log."""
        while stderr is not None and (chunk := await stderr.read(READ_BYTES)):
            for line in words.feed(chunk):
                log.warning("engine said", extra={"model": self.spec.name, "line": line})

    def _note(self, happened: EngineEvent) -> None:
        """Keep the set of requests that a death would lose."""
        match happened:
            case Step(finished=finished):
                self._in_flight.difference_update(end.id for end in finished)
            case Vector(id=request_id) | Values(id=request_id) | RequestFailed(id=request_id):
                self._in_flight.discard(request_id)
            case Ready() | _:
                pass
