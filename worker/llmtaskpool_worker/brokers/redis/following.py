"""Who follows which task, here and elsewhere, and how they hear of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

from llmtaskpool_worker.brokers.protocol import Held, Unavailable
from llmtaskpool_worker.brokers.redis.books import STATES, Run
from llmtaskpool_worker.brokers.redis.inbox import Inbox
from llmtaskpool_worker.brokers.redis.messages import Message, events_of, said
from llmtaskpool_worker.brokers.redis.session import Session
from llmtaskpool_worker.brokers.redis.streams import Stream, Streams
from llmtaskpool_worker.scheduling.task import TERMINAL, StateChanged, TaskEvent, TaskState

JOINED_SECONDS = 0.05
"""What is said within this time goes to other workers as one message."""
SILENCE_SECONDS = 2.0
"""Who has heard nothing of a task for so long asks for it."""
WATCH_MS = 3_600_000
ASKED_AT_ONCE = 256


class Following:
    """``runs``: the claims of this worker by task. ``on_stopped(id)``: one is not in force."""

    def __init__(
        self,
        session: Session,
        runs: Mapping[str, Run],
        clock: Callable[[], float],
        on_stopped: Callable[[str], None],
    ) -> None:
        self._session, self._runs, self._clock = session, runs, clock
        self._on_stopped = on_stopped
        self.streams = Streams()
        self._inbox: Inbox | None = None
        self._watchers: dict[str, set[str]] = {}
        self._outgoing: dict[str, list[TaskEvent]] = {}
        self._sending: asyncio.TimerHandle | None = None
        self._asking: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Listen to what other workers and the server's scripts say."""
        channel = f"{self._session.prefix}:w:{self._session.pod}"
        self._inbox = Inbox(self._session.link(), channel, self._hear, self._ask_for_all)
        self._inbox.start()

    async def close(self) -> None:
        """Listen no more."""
        if self._sending is not None:
            self._sending.cancel()
        for task in self._asking:
            task.cancel()
        if self._inbox is not None:
            await self._inbox.close()

    # --- what runs here ---------------------------------------------------------------------

    def began(self, run: Run) -> None:
        """A claim was given to this worker."""
        stream = self.streams.find(run.claim.id)
        if stream is None:
            return  # made when somebody asks for it, or it says something
        if stream.fence and stream.fence != run.claim.fence and stream.said:
            stream.again("")
        stream.fence = run.claim.fence
        stream.said = 0
        stream.say(StateChanged(TaskState.RUNNING))

    def publish(self, held: Held, event: TaskEvent) -> None:
        """See Broker."""
        run = self._runs.get(held.id)
        if run is None or run.claim.fence != held.fence:
            return
        stream = self._stream_of(run)
        if not isinstance(event, StateChanged):
            stream.say(event)
            stream.said += 1
            if held.id in self._watchers:
                self._outgoing.setdefault(held.id, []).append(event)
                self._send_soon()
        elif event.state is TaskState.QUEUED:
            self._tell(held.id, Message("again", held.id, event.reason))
            stream.again(event.reason)
        elif event.state is TaskState.RUNNING:
            run.more += 1
            stream.say(event)
            self._session.call("again", held.id, held.fence)
            self._tell(held.id, Message("running", held.id, self._session.pod))

    def _stream_of(self, run: Run) -> Stream:
        """The stream of what runs here."""
        stream = self.streams.find(run.claim.id)
        if stream is None:
            stream = self.streams.of(run.claim.id)
            stream.fence = run.claim.fence
            stream.say(StateChanged(TaskState.RUNNING))
        return stream

    def ended(self, task_id: str, state: TaskState, reason: str) -> None:
        """A task of this worker has ended."""
        self._watchers.pop(task_id, None)
        stream = self.streams.find(task_id)
        if stream is not None:
            stream.end(state, reason)
            self.streams.rest(task_id, running_here=False)

    def given_back(self, task_id: str, reason: str) -> None:
        """A task of this worker waits again."""
        self._watchers.pop(task_id, None)
        stream = self.streams.find(task_id)
        if stream is not None:
            stream.again(reason)
            self.streams.rest(task_id, running_here=False)

    def lost(self, task_id: str) -> None:
        """A claim is not in force any more; what became of its task is heard later."""
        self._watchers.pop(task_id, None)
        self._outgoing.pop(task_id, None)
        if (stream := self.streams.find(task_id)) is not None:
            stream.fence, stream.heard_at = "", 0.0
            self.streams.rest(task_id, running_here=False)

    def watched(self, task_id: str) -> bool:
        """See Broker."""
        stream = self.streams.find(task_id)
        return task_id in self._watchers or (stream is not None and stream.watched)

    def send(self) -> None:
        """What has been said and not been sent goes now, before what is asked next."""
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        outgoing, self._outgoing = self._outgoing, {}
        for task_id, events in outgoing.items():
            stream, run = self.streams.find(task_id), self._runs.get(task_id)
            if stream is not None and run is not None:
                place = stream.said - len(events)
                message = said(task_id, run.claim.fence, place, events)
                self._session.call("say", message, *self._watchers.get(task_id, ()))

    def _send_soon(self) -> None:
        if self._sending is None:
            loop = asyncio.get_running_loop()
            self._sending = loop.call_later(JOINED_SECONDS, self.send)

    def _tell(self, task_id: str, message: Message) -> None:
        self.send()
        if pods := self._watchers.get(task_id):
            self._session.call("say", message.packed(), *pods)

    # --- what is followed -------------------------------------------------------------------

    async def events(self, task_id: str) -> AsyncIterator[TaskEvent]:
        """See Broker."""
        stream = self._hold(task_id)
        try:
            await self._watch(task_id, stream)
            async for event in stream.follow():
                yield event
        finally:
            self.streams.let_go(task_id, running_here=task_id in self._runs)

    async def end_of(self, task_id: str) -> None:
        """Until the task has ended. Raises KeyError, Unavailable."""
        stream = self._hold(task_id)
        try:
            await self._watch(task_id, stream)
            while not stream.ended:
                await stream.changed()
        finally:
            self.streams.let_go(task_id, running_here=task_id in self._runs)

    def _hold(self, task_id: str) -> Stream:
        if (run := self._runs.get(task_id)) is not None:
            self._stream_of(run)
        return self.streams.hold(task_id)

    def not_ended(self, task_id: str) -> None:
        """It was a dead letter, and waits again."""
        if (stream := self.streams.find(task_id)) is not None:
            stream.revive()

    async def _watch(self, task_id: str, stream: Stream) -> None:
        """Be told of a task from now on, and what it has said. Raises KeyError, Unavailable."""
        if stream.ended:
            return
        if task_id in self._runs:
            # The claim may end elsewhere: by a cancel, or by the end of its lease.
            self._session.call("watch", self._session.pod, WATCH_MS, task_id)
            return
        state, owner, why = await self._session.call("watch", self._session.pod, WATCH_MS, task_id)
        self._found(task_id, stream, state.decode(), owner.decode(), why.decode())

    def _found(self, task_id: str, stream: Stream, state: str, owner: str, why: str) -> None:
        stream.heard_at = self._clock()
        if not state:
            raise KeyError(task_id)
        now = STATES[state]
        if now in TERMINAL:
            stream.end(now, why if now is not TaskState.SUCCEEDED else "")
        elif now is TaskState.RUNNING and owner != self._session.pod and not stream.fence:
            stream.fence = "?"
            stream.say(StateChanged(TaskState.RUNNING))

    async def look_after_silent(self) -> None:
        """Ask for what has said nothing for a while: messages may be lost. Raises Unavailable."""
        before = self._clock() - SILENCE_SECONDS
        silent = [
            (task_id, stream)
            for task_id, stream in self.streams.followed()
            if task_id not in self._runs and stream.heard_at < before
        ][:ASKED_AT_ONCE]
        calls = [self._session.call("watch", self._session.pod, WATCH_MS, i) for i, _ in silent]
        for (task_id, stream), call in zip(silent, calls, strict=True):
            state, owner, why = await call
            if task_id in self._runs or stream.ended:
                continue
            if not state:  # it was forgotten while we waited
                stream.end(TaskState.FAILED, "forgotten")
            else:
                self._found(task_id, stream, state.decode(), owner.decode(), why.decode())

    def _ask_for_all(self) -> None:
        for task_id, _ in self.streams.followed():
            if task_id not in self._runs:
                self._ask(task_id)

    def _ask(self, task_id: str) -> None:
        """Ask the worker that runs it for a snapshot."""

        async def asking() -> None:
            stream = self.streams.find(task_id)
            if stream is not None:
                try:
                    await self._watch(task_id, stream)
                except (KeyError, Unavailable):
                    return

        task = asyncio.create_task(asking())
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    # --- the inbox --------------------------------------------------------------------------

    def _hear(self, message: Message) -> None:
        task_id = message.id
        if message.what == "watch":
            self._watched_by(task_id, message.text)
        elif message.what == "stop":
            run = self._runs.get(task_id)
            if run is not None and run.claim.fence == message.text:
                self._on_stopped(task_id)
        elif (stream := self.streams.find(task_id)) is not None:
            stream.heard_at = self._clock()
            self._hear_of(task_id, stream, message)

    def _hear_of(self, task_id: str, stream: Stream, message: Message) -> None:
        here = task_id in self._runs
        if message.what == "ended":
            if not here and message.text in STATES:
                state = STATES[message.text]
                stream.end(state, message.fence if state is not TaskState.SUCCEEDED else "")
                self.streams.rest(task_id, running_here=False)
        elif here or stream.ended:
            return
        elif message.what == "again":
            stream.again(message.text)
            stream.fence = ""
        elif message.what == "running" and message.text != self._session.pod:
            stream.say(StateChanged(TaskState.RUNNING))
            stream.fence = "?"
            self._ask(task_id)
        elif message.what == "said":
            self._take_in(task_id, stream, message)

    def _take_in(self, task_id: str, stream: Stream, message: Message) -> None:
        if message.fence != stream.fence:
            if message.place:
                self._ask(task_id)
                return
            if stream.said:  # of an attempt before
                stream.again("")
                stream.say(StateChanged(TaskState.RUNNING))
            stream.fence, stream.said = message.fence, 0
        if message.place > stream.said:
            self._ask(task_id)
            return
        for event in events_of(message)[stream.said - message.place :]:
            stream.say(event)
            stream.said += 1

    def _watched_by(self, task_id: str, pod: str) -> None:
        run = self._runs.get(task_id)
        if run is None or not pod or pod == self._session.pod:
            return
        self.send()
        self._watchers.setdefault(task_id, set()).add(pod)
        said_here = self._stream_of(run).events
        events: list[TaskEvent] = [e for e in said_here if not isinstance(e, StateChanged)]
        self._session.call("say", said(task_id, run.claim.fence, 0, events), pod)
