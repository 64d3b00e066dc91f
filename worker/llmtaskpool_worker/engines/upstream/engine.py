"""An Engine that is a server: its requests in flight are ours to count, its batch is its own.

Each request is an asyncio task, and ``N`` counts these tasks: one that ended, however, holds no
place, and there is nothing to forget or to time out.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial

from llmtaskpool_worker.engines.backoff import Backoff
from llmtaskpool_worker.engines.protocol import (
    Admit,
    AdmitEmbedding,
    AdmitForward,
    AdmitInputs,
    AdmitSound,
    Answered,
    Beat,
    Cancel,
    ConnectionLost,
    EngineDied,
    EngineEvent,
    LoadFailed,
    Loading,
    ModelSpec,
    Park,
    Ping,
    RequestFailed,
    SetThreads,
    Step,
    ToEngine,
)
from llmtaskpool_worker.engines.upstream.address import Address
from llmtaskpool_worker.engines.upstream.connections import BROKEN, Connections
from llmtaskpool_worker.engines.upstream.conversation import Conversation, Outcome
from llmtaskpool_worker.engines.upstream.gauges import PAGE_BYTES, gauges_in
from llmtaskpool_worker.engines.upstream.greeting import NotThere, Unusable, greet
from llmtaskpool_worker.engines.upstream.pace import Pace

FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.25, 5.0
PATIENCE_SECONDS = 15.0
"""A server that is not there yet is waited for in silence; then it is told, and waited for."""
LOOK_SECONDS = 2.0
LOOK_TIMEOUT_SECONDS = 5.0
SILENT_SECONDS = 30.0
"""A server that has sent nothing for so long, though it was asked, is gone."""


class UpstreamEngine:
    """Engine over one model of a server; see protocol.Engine for what it promises.

    ``clock`` in seconds. A kill closes all connections, on which servers end what ran for them.
    """

    def __init__(
        self,
        spec: ModelSpec,
        address: Address,
        *,
        clock: Callable[[], float] = time.monotonic,
        look_seconds: float = LOOK_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        self.spec = spec
        self._clock = clock
        self._look_seconds, self._silent_seconds = look_seconds, silent_seconds
        self._connections = Connections(address, spec.options.get("api_key_env"))
        self._conversation = Conversation(
            self._connections, spec.name, tell=self._tell, drew=self._drew, heard=self._hear
        )
        self._events: asyncio.Queue[EngineEvent | None] = asyncio.Queue()
        self._calls: dict[int, asyncio.Task[Outcome]] = {}
        self._waiting: deque[AdmitForward] = deque()
        self._threads = 1 << 30
        self._up = self._deaf = self._closing = False
        self._living: asyncio.Task[None] | None = None
        self._doubting: asyncio.Task[bool] | None = None
        self._pace = Pace()
        self._sent_at: dict[int, float] = {}
        self._first_at: dict[int, float] = {}
        self._why_left: dict[int, str] = {}
        self._heard_at = 0.0
        self._steps = 0

    @property
    def in_flight(self) -> int:
        """Requests that the server has, or is being sent."""
        return len(self._calls)

    async def start(self) -> None:
        """See Engine."""
        self._connections.open()
        self._living = asyncio.create_task(self._live())

    def send(self, message: ToEngine | AdmitForward) -> None:
        """See Engine. What needs an engine of our own (Resume, Trim) is passed over."""
        if self._closing or self._deaf:
            return
        match message:
            case AdmitForward():
                self._waiting.append(message)
                self._fill()
            case (
                Admit(id=request_id)
                | AdmitSound(id=request_id)
                | AdmitEmbedding(id=request_id)
                | AdmitInputs(id=request_id)
            ):
                told = "a server takes requests as they are, and no tokens"
                self._tell(RequestFailed(request_id, "wrong_model", told))
            case Cancel(id=request_id):
                self._leave(request_id, "cancelled")
            case Park(id=request_id):
                self._leave(request_id, "parked")  # a server keeps nothing: it begins anew
            case Ping():
                self._tell(Beat())  # this end hears; the server is looked after by `_live`
            case SetThreads(n=n):
                self._threads = n
                self._fill()

    async def events(self) -> AsyncIterator[EngineEvent]:
        """See Engine."""
        while (event := await self._events.get()) is not None:
            if isinstance(event, EngineDied):
                self._deaf = False  # what was sent until now is known to be lost
            yield event

    def kill(self) -> None:
        """See Engine."""
        self._die("its connections were closed, because it stood still")

    async def stop(self, grace_seconds: float) -> None:
        """See Engine."""
        if self._closing:
            return
        self._closing = True
        tasks = [*self._calls.values(), self._living, self._doubting]
        running = [task for task in tasks if task is not None]
        for task in running:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(grace_seconds, 0.1)):
                await asyncio.gather(*running, return_exceptions=True)
        await self._conversation.close()
        await self._connections.close()
        self._events.put_nowait(None)

    # --- requests ---------------------------------------------------------------------------

    def _fill(self) -> None:
        while self._up and self._waiting and len(self._calls) < self._threads:
            message = self._waiting.popleft()
            self._sent_at[message.id] = self._clock()
            call = asyncio.create_task(self._ask(message))
            self._calls[message.id] = call
            call.add_done_callback(partial(self._ended, message.id))

    async def _ask(self, message: AdmitForward) -> Outcome:
        outcome = await self._conversation.ask(message)
        if isinstance(outcome, ConnectionLost):
            # One broken connection, or the first of all? Nothing is told until that is known.
            if self._doubting is None or self._doubting.done():
                self._doubting = asyncio.create_task(self._lives())
            await asyncio.shield(self._doubting)  # a server that is gone ends this call
        return outcome

    def _ended(self, request_id: int, call: asyncio.Task[Outcome]) -> None:
        if self._calls.get(request_id) is not call:
            return  # of a server that is gone: told already
        del self._calls[request_id]
        sent, first = self._sent_at.pop(request_id), self._first_at.pop(request_id, None)
        self._pace.left(request_id)
        why = self._why_left.pop(request_id, "cancelled")
        if call.cancelled():
            self._tell(Answered(request_id, why))
        elif call.exception() is not None:
            self._tell(RequestFailed(request_id, "upstream_failed", "its answer can't be read"))
        else:
            outcome = call.result()
            if isinstance(outcome, Answered) and first is not None:
                self._tell_prompt(outcome, first - sent)
            self._tell(outcome)
        self._fill()

    def _leave(self, request_id: int, why: str) -> None:
        call = self._calls.get(request_id)
        if call is not None:
            self._why_left.setdefault(request_id, why)
            call.cancel()
            return
        for message in self._waiting:
            if message.id == request_id:
                self._waiting.remove(message)
                self._tell(Answered(request_id, why))
                return

    def _drew(self, request_id: int, tokens: int) -> None:
        if tokens < 1 or request_id not in self._calls:
            return
        now = self._clock()
        self._first_at.setdefault(request_id, now)
        sample = self._pace.drew(request_id, tokens, now)
        if sample is not None:
            self._step(sample.seconds, sample.streams, 0)

    def _tell_prompt(self, answered: Answered, seconds: float) -> None:
        """What its prompt took: the time to its first token, over the tokens that were read."""
        usage = answered.usage or {}
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else 0
        read = usage.get("prompt_tokens")
        if isinstance(read, int) and isinstance(cached or 0, int) and read > (cached or 0):
            self._step(seconds, 0, read - (cached or 0))

    def _step(self, seconds: float, streams: int, prompt_tokens: int) -> None:
        self._steps += 1
        self._tell(Step(self._steps, seconds, streams, prompt_tokens, [], []))

    def _tell(self, event: EngineEvent) -> None:
        if not self._closing:
            self._events.put_nowait(event)

    def _hear(self) -> None:
        self._heard_at = self._clock()

    # --- the server's life ------------------------------------------------------------------

    async def _live(self) -> None:
        """Wait for the server, then look after it, until it is gone."""
        await self._wait_for_it()
        self._up = True
        self._hear()
        self._fill()
        while True:
            await asyncio.sleep(self._look_seconds)
            await self._look()
            if self._living is not asyncio.current_task():
                return  # it is gone, and another task waits for it
            silent = self._clock() - self._heard_at
            if silent >= self._silent_seconds:
                url = self._connections.address.url
                self._die(f"the server at {url} has not answered for {silent:.0f} s")
                return

    async def _wait_for_it(self) -> None:
        self._tell(Loading("waiting for the server", 0.0))
        began, told = self._clock(), ""
        backoff = Backoff(FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS)
        while True:
            try:
                ready, self._conversation.name = await greet(self._connections, self.spec)
            except (NotThere, Unusable) as error:
                known = isinstance(error, Unusable)
                why, delay = str(error), backoff.next()
                if why != told and (known or self._clock() - began >= PATIENCE_SECONDS):
                    told = why
                    self._tell(LoadFailed(why, may_pass=True, retrying_in_seconds=delay))
                self._tell(Beat())
                await asyncio.sleep(delay)
            else:
                self._tell(ready)
                return

    async def _look(self) -> None:
        """Ask the server how it is; whatever it answers, it lives."""
        root, url = self._connections.address.root, self._connections.address.url
        try:
            status, page = await self._connections.get(
                f"{root}/metrics", seconds=LOOK_TIMEOUT_SECONDS, most=PAGE_BYTES
            )
            if status != 200:  # it has none, or not for us
                await self._connections.get(
                    f"{url}/models", seconds=LOOK_TIMEOUT_SECONDS, most=PAGE_BYTES
                )
                page = b""
        except TimeoutError:
            return
        except BROKEN:
            await self._lives()
            return
        self._hear()
        gauges = gauges_in(page.decode("utf-8", "replace")) if page else None
        if gauges is not None:
            self._tell(gauges)

    async def _lives(self) -> bool:
        """Whether the server takes connections; when it does not, all that it had is lost."""
        url = self._connections.address.url
        for again in (True, False):
            try:
                await self._connections.get(f"{url}/models", seconds=2.0, most=PAGE_BYTES)
            except TimeoutError:
                return True  # it is slow, and there: `_look` has its clock
            except BROKEN:
                if again:
                    await asyncio.sleep(0.2)
            else:
                return True
        self._die(f"the server at {url} is gone: it takes no connections")
        return False

    def _die(self, reason: str) -> None:
        if self._closing or not self._up:
            return
        lost = [*self._calls, *(message.id for message in self._waiting)]
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.cancel()
        self._waiting.clear()
        self._sent_at.clear()
        self._first_at.clear()
        self._why_left.clear()
        self._pace = Pace()
        self._up, self._deaf = False, True
        self._tell(EngineDied(lost, None, 0.0, reason))
        living = self._living
        self._living = asyncio.create_task(self._live())
        if living is not None and living is not asyncio.current_task():
            living.cancel()
