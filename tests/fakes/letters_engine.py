"""An engine in this process: one token per letter, stepped by the event loop, killed by a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from llmtaskpool_worker.engines.protocol import (
    Admit,
    AdmitEmbedding,
    AdmitInputs,
    Beat,
    Cancel,
    EngineDied,
    EngineEvent,
    Finished,
    Loading,
    ModelSpec,
    Park,
    Ping,
    Ready,
    RequestFailed,
    Resume,
    SetThreads,
    Step,
    Token,
    Values,
    Vector,
)

POISON = ord("\N{SKULL}")


class LettersEngine:
    """Repeats each prompt, a letter per step; a prompt with POISON kills it at its first step."""

    def __init__(self, name: str = "letters", *, task: str = "generate", slots: int = 64) -> None:
        self.spec = ModelSpec(name, "nowhere", task)
        self.slots = slots
        self.hangs = False
        self.threads = slots
        self.deaths = 0
        self.pings = 0
        self.largest_batch = 0
        self.keeps = 0
        """Of each prompt it says that it had so many tokens from others."""
        self.started: list[int] = []
        self._running: dict[int, tuple[Admit, int]] = {}
        self._waiting: list[Admit] = []
        self._cancelled: list[int] = []
        self._parking: list[int] = []
        self._parked: dict[int, tuple[Admit, int]] = {}
        self._resumed: list[int] = []
        self.parkings = 0
        self._vectors: list[AdmitEmbedding] = []
        self._inputs: list[AdmitInputs] = []
        self._events: asyncio.Queue[EngineEvent | None] = asyncio.Queue()
        self._stepping: asyncio.Task[None] | None = None
        self._steps = 0

    @property
    def held(self) -> int:
        """Requests that it runs or will run, of cancelled ones too until it has seen that."""
        return len(self._running) + len(self._waiting) + len(self._resumed)

    @property
    def idle(self) -> bool:
        """Whether all that it said was heard."""
        return self._events.empty()

    async def start(self) -> None:
        self._be_ready()
        self._stepping = asyncio.create_task(self._step_for_ever())

    def send(self, message) -> None:
        match message:
            case Admit(prompt=[]):
                self._fail(message.id, "empty_prompt")
            case Admit():
                self._waiting.append(message)
            case AdmitEmbedding() if self.spec.task == "embed":
                self._vectors.append(message)
            case AdmitEmbedding():
                self._fail(message.id, "wrong_model")
            case AdmitInputs() if self.spec.task in ("classify", "rerank"):
                self._inputs.append(message)
            case AdmitInputs():
                self._fail(message.id, "wrong_model")
            case Cancel(id=request_id):
                self._cancelled.append(request_id)
            case Park(id=request_id):
                self._parking.append(request_id)
            case Resume(id=request_id):
                if request_id in self._parked:
                    self._resumed.append(request_id)
            case SetThreads(n=n):
                self.threads = n
            case Ping():
                self.pings += 1
                if not self.hangs:
                    self.beat()

    async def events(self) -> AsyncIterator[EngineEvent]:
        while (event := await self._events.get()) is not None:
            yield event

    def beat(self) -> None:
        self._events.put_nowait(Beat())

    def kill(self) -> None:
        self.deaths += 1
        lost = [*self._running, *(r.id for r in self._waiting)]
        self._running.clear()
        self._parked.clear()
        self._resumed.clear()
        self._waiting.clear()
        self.hangs = False
        self._events.put_nowait(EngineDied(lost, -9, 0.0))
        self._be_ready()

    async def stop(self, grace_seconds: float) -> None:
        if self._stepping is not None:
            self._stepping.cancel()
        self._events.put_nowait(None)

    def _fail(self, request_id: int, code: str) -> None:
        self._events.put_nowait(RequestFailed(request_id, code, code))

    def _be_ready(self) -> None:
        self._events.put_nowait(Loading("loading", 1.0))
        dimensions = 3 if self.spec.task == "embed" else None
        self._events.put_nowait(
            Ready(
                256,
                0x110000,
                [],
                "cpu",
                "float32",
                self.slots,
                embedding_dimensions=dimensions,
                about={"labels": ["short", "long"]} if self.spec.task == "classify" else {},
            )
        )

    def _leave(self, request_id: int) -> bool:
        """Take a cancelled request out; whether there was one."""
        for request in self._waiting:
            if request.id == request_id:
                self._waiting.remove(request)
                return True
        return self._running.pop(request_id, None) is not None

    async def _step_for_ever(self) -> None:
        while True:
            await asyncio.sleep(0)
            if not self.hangs:
                self._step()

    def _step(self) -> None:
        reused = []
        while self._waiting and len(self._running) < self.threads:
            request = self._waiting.pop(0)
            self.started.append(request.prompt[0])
            if self.keeps:
                reused.append((request.id, self.keeps))
            self._running[request.id] = (request, 0)
        if any(POISON in request.prompt for request, _ in self._running.values()):
            self.kill()
            return
        ended = [Finished(i, "cancelled") for i in self._cancelled if self._leave(i)]
        for request_id in self._cancelled:
            self._parked.pop(request_id, None)
        self._cancelled.clear()
        for request_id in self._parking:
            if request_id in self._running:
                self._parked[request_id] = self._running.pop(request_id)
                self.parkings += 1
                ended.append(Finished(request_id, "parked"))
        self._parking.clear()
        for request_id in self._resumed:
            if request_id in self._parked:
                self._running[request_id] = self._parked.pop(request_id)
        self._resumed.clear()
        tokens = []
        for request_id, (request, place) in [*self._running.items()]:
            tokens.append(Token(request_id, request.prompt[place]))
            self._running[request_id] = (request, place + 1)
            if place + 1 in (request.max_tokens, len(request.prompt)):
                reason = "length" if place + 1 == request.max_tokens else "stop"
                ended.append(Finished(request_id, reason))
                del self._running[request_id]
        for text in self._vectors:
            if text.tokens[0] == ord("!"):
                self._events.put_nowait(RequestFailed(text.id, "not_finite", "no number"))
            else:
                self._events.put_nowait(Vector(text.id, bytes(12), len(text.tokens)))
        self._vectors.clear()
        for one in self._inputs:
            sizes = [len(row.tokens) // 4 for row in one.texts]
            chances = [[1 / size, 1 - 1 / size] for size in sizes]
            if self.spec.task == "rerank":
                chances = [first for first, _ in chances]
            self._events.put_nowait(Values(one.id, chances, sum(sizes)))
        self._inputs.clear()
        if tokens or ended:
            self._steps += 1
            self.largest_batch = max(self.largest_batch, len(tokens))
            batch = len(tokens)
            self._events.put_nowait(Step(self._steps, 0.01, batch, 0, tokens, ended, reused=reused))


class LetterTokenizer:
    """A token is a letter's code point."""

    def detokenizer(self) -> LetterTokenizer:
        return self

    def push(self, token: int) -> str:
        return chr(token)

    def finish(self) -> str:
        return ""


def letters(text: str) -> tuple[int, ...]:
    return tuple(ord(letter) for letter in text)
