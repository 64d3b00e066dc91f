"""One request to a server, from its sending to its end: what came of it, as events.

A request is sent again only before its first byte came: here when a connection that was kept alive
turns out to be closed, and by the pool when the server turned it away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from llmtaskpool_worker.engines.protocol import (
    AdmitForward,
    Answered,
    ConnectionLost,
    FromServer,
    Piece,
    RequestFailed,
)
from llmtaskpool_worker.engines.upstream.connections import (
    BROKEN,
    NO_HTTP,
    Connections,
    Sent,
    read_at_most,
)
from llmtaskpool_worker.engines.upstream.event_stream import EventReader, TooLong
from llmtaskpool_worker.engines.upstream.refusals import garbled, refusal, told_in_stream

ANSWER_BYTES = 64 * 1024 * 1024
"""The longest answer that is read."""
ERROR_BYTES = 64 * 1024
USAGE_SECONDS = 5.0
"""After the reason of its end, a stream has so long for its usage and its last word."""
REST_SECONDS = 0.5
"""After its last word, so long for its end, so that its connection can serve another."""

_DRAWN = frozenset({"chat/completions", "completions"})
"""Routes whose answers come token by token; others are answered at once."""
_LISTED = {"rerank": "results", "score": "data", "classify": "data"}
"""Where the answers of these routes have their list. Servers have the routes after the address
that models' routes follow, or at their origin."""

Outcome = FromServer | RequestFailed


class Conversation:
    """Asks one server for one model. ``model`` is what clients know it by, ``name`` the server.

    ``drew`` is called with each piece before it is told, as ``drew(id, tokens)``; ``heard`` with
    whatever comes.
    """

    def __init__(
        self,
        connections: Connections,
        model: str,
        *,
        tell: Callable[[Piece], None],
        drew: Callable[[int, int], None],
        heard: Callable[[], None],
    ) -> None:
        self._connections, self._model = connections, model
        self._tell, self._drew, self._heard = tell, drew, heard
        self.name = ""
        self._at_root: set[str] = set()
        """Routes that this server has at its origin (vLLM's /classify)."""
        self._leaving: set[asyncio.Task[None]] = set()

    async def ask(self, message: AdmitForward) -> Outcome:
        """Send a request and tell its pieces; how it ended. Cancelled, its connection is closed."""
        body = self._body(message)
        response = await self._send(message, body, at_root=message.route in self._at_root)
        if (
            message.route in _LISTED
            and message.route not in self._at_root
            and not isinstance(response, ConnectionLost | RequestFailed)
            and response.status == 404
        ):
            response.close()
            response = await self._send(message, body, at_root=True)
            if not isinstance(response, ConnectionLost | RequestFailed) and response.status == 200:
                self._at_root.add(message.route)
        if isinstance(response, ConnectionLost | RequestFailed):
            return response
        whole = False
        try:
            self._heard()
            outcome, whole = await self._read(message, response)
        except TooLong:
            return garbled(message.id, self._model, "sent an event of more than 4 MiB")
        except BROKEN:
            return ConnectionLost(message.id)
        finally:
            if whole:
                self._let_end(response)
            else:
                response.close()
        return outcome

    async def _send(self, message: AdmitForward, body: bytes, *, at_root: bool) -> Any:
        """The response, its body unread; or what became of the request without one."""
        for fresh in (False, True):
            sent = Sent()
            try:
                return await self._connections.post(
                    message.route, body, sent, fresh=fresh, at_root=at_root
                )
            except NO_HTTP:
                return garbled(message.id, self._model, "sent what is no HTTP")
            except BROKEN:
                if not sent.reused:
                    break
        return ConnectionLost(message.id)

    async def close(self) -> None:
        """Wait for connections that end."""
        for leaving in self._leaving:
            leaving.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)

    def _body(self, message: AdmitForward) -> bytes:
        """The request with the server's name of the model; as a stream where it can be."""
        head: dict[str, Any] = {"model": self.name}
        if message.route in _DRAWN:
            head |= {"stream": True, "stream_options": {"include_usage": True}}
        rest = message.body[1:]
        return msgspec.json.encode(head)[:-1] + (b"}" if rest.strip() == b"}" else b"," + rest)

    async def _read(self, message: AdmitForward, response: Any) -> tuple[Outcome, bool]:
        """How it ended, and whether the answer was whole: its connection may be kept then."""
        if response.status != 200:
            said = await _at_most(response, ERROR_BYTES)
            retry_after = response.headers.get("retry-after")
            return refusal(message.id, self._model, response.status, said, retry_after), False
        if message.route not in _DRAWN:
            return await self._at_once(message, response)
        if response.content_type != "text/event-stream":
            what = f"sent {response.content_type[:80]} in place of an event stream"
            return garbled(message.id, self._model, what), False
        return await self._stream(message, response)

    async def _stream(self, message: AdmitForward, response: Any) -> tuple[Outcome, bool]:
        reader, gathered, length = EventReader(), _Gathered(message.id, self._model), 0
        try:
            async with asyncio.timeout(None) as patience:
                async for data in response.content.iter_any():
                    self._heard()
                    length += len(data)
                    if length > ANSWER_BYTES:
                        return garbled(message.id, self._model, "sent more than 64 MiB"), False
                    for event in reader.feed(data):
                        if event == b"[DONE]":
                            if gathered.reason is None:
                                self._tell(gathered.done(message.route))
                            return gathered.end(), True
                        if (piece := gathered.take(event)) is not None:
                            self._drew(message.id, piece.tokens)
                            self._tell(piece)
                        if gathered.failed is not None:
                            return gathered.failed, False
                    if gathered.reason is not None and patience.when() is None:
                        patience.reschedule(asyncio.get_running_loop().time() + USAGE_SECONDS)
        except TimeoutError:
            if gathered.reason is None:
                raise
        return gathered.end(), False

    async def _at_once(self, message: AdmitForward, response: Any) -> tuple[Outcome, bool]:
        body = await read_at_most(response, ANSWER_BYTES)
        self._heard()
        try:
            answer = msgspec.json.decode(body)
            value = answer
            if message.route == "embeddings":
                data = sorted(answer["data"], key=lambda one: int(one.get("index", 0)))
                value = [one["embedding"] for one in data]
            elif not isinstance(answer[_LISTED[message.route]], list):
                return garbled(message.id, self._model, "sent what are no scores"), False
        except (msgspec.DecodeError, ValueError, KeyError, TypeError, AttributeError):
            what = "embeddings" if message.route == "embeddings" else "scores"
            return garbled(message.id, self._model, f"sent what are no {what}"), False
        usage = answer.get("usage")
        usage = usage if isinstance(usage, dict) else None
        return Answered(message.id, "stop", usage, value), True

    def _let_end(self, response: Any) -> None:
        """The answer is told already; its connection is free once it has ended."""
        if response.content.at_eof():
            response.release()
            return
        leaving = asyncio.ensure_future(_end(response))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)


class _Gathered:
    """What the chunks of a stream told beside its text."""

    def __init__(self, request_id: int, model: str) -> None:
        self._id, self._model = request_id, model
        self.reason: str | None = None
        self.failed: RequestFailed | None = None
        self._usage: dict[str, Any] | None = None
        self._calls = False

    def take(self, event: bytes) -> Piece | None:
        """One chunk; what it adds to the answer. ``failed`` is set when it is none."""
        try:
            chunk = msgspec.json.decode(event)
        except (msgspec.DecodeError, ValueError):
            chunk = None
        if not isinstance(chunk, dict):
            self.failed = garbled(self._id, self._model, "sent an event that is no JSON object")
            return None
        if chunk.get("error"):
            self.failed = told_in_stream(self._id, self._model, chunk["error"])
            return None
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and choice.get("index", 0) == 0:
                choice.pop("index", None)
                reason = choice.get("finish_reason")
                if isinstance(reason, str):
                    self.reason = reason
                delta = choice.get("delta")
                self._calls |= isinstance(delta, dict) and bool(delta.get("tool_calls"))
                return Piece(self._id, choice, _tokens_of(choice))
        return None

    def done(self, route: str) -> Piece:
        """The server says that it is done and never said why: the last chunk that it owed."""
        self.reason = "tool_calls" if self._calls else "stop"
        said: dict[str, Any] = {"delta": {}} if route == "chat/completions" else {"text": ""}
        return Piece(self._id, said | {"finish_reason": self.reason}, 0)

    def end(self) -> Outcome:
        """A stream that ended without a reason was cut."""
        if self.reason is None:
            return ConnectionLost(self._id)
        return Answered(self._id, self.reason, self._usage)


def _tokens_of(choice: dict[str, Any]) -> int:
    """Tokens that a chunk stands for: those with log-probabilities, else one where it has text."""
    logprobs = choice.get("logprobs")
    if isinstance(logprobs, dict):
        listed = logprobs.get("content") or logprobs.get("tokens")
        if isinstance(listed, list) and listed:
            return len(listed)
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return 1 if choice.get("text") else 0
    return 1 if any(value for name, value in delta.items() if name != "role") else 0


async def _at_most(response: Any, most: int) -> bytes:
    """Of an error's body what comes within a moment: its status is what counts."""
    try:
        async with asyncio.timeout(USAGE_SECONDS):
            return await read_at_most(response, most)
    except BROKEN:
        return b""


async def _end(response: Any) -> None:
    try:
        async with asyncio.timeout(REST_SECONDS):
            while not response.content.at_eof():
                await response.content.readany()
        response.release()
    except BROKEN:
        response.close()
    except asyncio.CancelledError:
        response.close()
        raise
