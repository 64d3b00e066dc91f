"""A client's connection to a port of the worker, in one of the states of connection_states.py."""

from __future__ import annotations

import asyncio
from typing import cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from llmtaskpool_worker.http_api.connection_states import (
    HALF_CLOSED_SECONDS,
    LINGER_SECONDS,
    OVER,
    State,
)
from llmtaskpool_worker.http_api.crowd import KNOWN, Crowd
from llmtaskpool_worker.http_api.errors import ApiError
from llmtaskpool_worker.http_api.flow import (
    Flow,
    InPieces,
    LingeringTransport,
    body_length,
    watch_peer,
)
from llmtaskpool_worker.http_api.limits import HttpLimits
from llmtaskpool_worker.http_api.strict_http import (
    EndsWithConnection,
    is_understood,
    not_upgrading,
)

FRAMING_PER_BYTE = 8
"""Bytes of framing that chunked encoding may spend on a byte of body: ``1\\r\\nx\\r\\n`` has 5."""

AHEAD_BYTES = 64 * 1024
"""Reading stops when more than this waits to be parsed."""

TURN_BYTES = 16 * 1024
"""Parsed in one turn of the loop where each byte may cost a call (heads and chunks)."""

TURN_PIECES = 32
"""Heads, or ends of chunks, parsed in one turn of the loop."""

BODY_PIECE_BYTES = 64 * 1024
"""A body of a known length is cheap: so much of it is one piece."""


_HEAD_END = b"\r\n\r\n"


def guarded_protocol(limits: HttpLimits, keep_alive_seconds: float = 30.0) -> type[GuardedProtocol]:
    """The protocol class for one server of uvicorn with these limits in force."""
    own = {
        "limits": limits,
        "keep_alive_seconds": keep_alive_seconds,
        "crowd": Crowd(limits.connections),
    }
    return type("GuardedProtocol", (GuardedProtocol,), own)


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol with the states and bounds of this module.

    llhttp itself takes headers, trailers and chunk framing without end, and uvicorn parses all
    that a client sends ahead.
    """

    limits = HttpLimits()
    keep_alive_seconds = 30.0
    crowd: Crowd[GuardedProtocol] = Crowd(limits.connections)

    _state = State.CLOSING
    _clock: asyncio.TimerHandle | None = None
    _unread_clock: asyncio.TimerHandle | None = None
    _later: asyncio.Handle | None = None
    _data = b""
    _at = 0
    """What is read and not parsed begins here in ``_data``."""
    _tail = b""
    """The last bytes that were parsed of a head or of chunks: its end may lie across two reads."""
    _body_left: int | None = 0
    """Bytes of body still to come; None: it comes in chunks."""
    _framing = 0
    _headers_seen = 0
    _discarded = 0
    _half_closed = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a head; when there are too many, an older one that is idle has to go."""
        self._socket = transport
        transport.set_protocol(InPieces(self))
        super().connection_made(cast("asyncio.Transport", LingeringTransport(transport, self)))
        self.flow: Flow = Flow(transport, self._go_on_soon)
        watch_peer(transport, self.limits.unread_seconds)
        self._state = State.WAITING
        if len(self.connections) > self.limits.connections:
            victim = self.crowd.victim(self.loop.time())
            if victim is None:
                self._refuse(
                    503, "too_many_connections", "Too many connections: try again later.", 1.0
                )
                self._close()  # not lingering: that would be one more connection
                return
            self.connections.discard(victim)
            victim.give_way()
        self.crowd.joined(self, self.loop.time())
        self._enter(State.WAITING, self.limits.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop the timers, which would keep this connection in memory, and what wasn't parsed."""
        self.crowd.left(self)
        self._enter(State.CLOSING)
        self._stop_unread_clock()
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._data, self._at = b"", 0
        super().connection_lost(exc)

    def is_over(self) -> bool:
        """Whether nothing more is answered on this connection."""
        return self._state in OVER

    def cut_off(self) -> None:
        """Reset it at once."""
        self._enter(State.CLOSING)
        self._socket.abort()

    def give_way(self) -> None:
        """A newcomer needs the place."""
        if self._state is State.IDLE:
            self._close()
        else:
            self.cut_off()

    def finish(self) -> None:
        """Close it once what was written is out, and so that the client can still read it."""
        if self._state in OVER:
            return
        if self._half_closed or self._state in (State.WAITING, State.HEAD, State.IDLE):
            self._close()  # nothing was just written, or nothing more is coming
            return
        self._linger()

    def shutdown(self) -> None:
        """The server ends: close now when nothing is being answered, else after the answer."""
        if self._state is State.LINGERING:
            self._close()
        elif self._state is not State.CLOSING:
            super().shutdown()

    # What comes in

    def data_received(self, data: bytes) -> None:
        """Parse what is next; keep the rest for its turn."""
        if self._state in OVER:
            self._throw_away(len(data))
            return
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0
        if self._later is None:
            self._go_on()

    def eof_received(self) -> None:
        """The client sends no more: what it has asked for in whole is still answered."""
        if self._state is not State.ANSWERING and self._at >= len(self._data):
            return None
        self._half_closed = True
        self.moved()
        return True  # type: ignore[return-value]  # asyncio's way to say so; uvicorn never does

    def moved(self) -> None:
        """Bytes went to the client: had it gone, the kernel would soon have heard of it."""
        if self._half_closed and self._state is State.ANSWERING:
            self._enter(State.ANSWERING, HALF_CLOSED_SECONDS)

    def _go_on_soon(self) -> None:
        if self._later is None and self._at < len(self._data):
            self._later = self.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """One turn: at most TURN_PIECES or about TURN_BYTES, or to the end of a request."""
        self._later = None
        parsed = pieces = 0
        while self._at < len(self._data) and not self._must_wait():
            if pieces >= TURN_PIECES or parsed >= TURN_BYTES:
                self._go_on_soon()
                break
            piece = self._next_piece()
            parsed += len(piece)
            pieces += 1
            self._parse(piece)
            if self._state in OVER or self._socket.is_closing():
                self._data, self._at = b"", 0
                return
        if self._at >= len(self._data):
            self._data, self._at = b"", 0
            if self._half_closed and self._state in (State.HEAD, State.BODY, State.IDLE):
                self._close()  # the rest of it will not come
                return
        waiting = len(self._data) - self._at
        self.flow.hold(too_much=self._later is not None or waiting > AHEAD_BYTES)

    def _must_wait(self) -> bool:
        return self._state is State.ANSWERING or self.flow.read_paused

    def _next_piece(self) -> bytes:
        """To the end of a head or body and not beyond, as the parser can't be stopped."""
        if self._state in (State.BODY, State.DISCARDING) and self._body_left is not None:
            piece = self._data[self._at : self._at + min(self._body_left, BODY_PIECE_BYTES)]
        else:
            piece = self._data[self._at : self._at + TURN_BYTES]
            across = self._tail + piece
            found = across.find(_HEAD_END)
            if found >= 0:
                piece = piece[: found + len(_HEAD_END) - len(self._tail)]
                self._tail = b""
            else:
                self._tail = across[1 - len(_HEAD_END) :]
        self._at += len(piece)
        return piece

    def _parse(self, piece: bytes) -> None:
        self._framing += len(piece)
        if self._state in (State.WAITING, State.HEAD, State.IDLE):
            piece = not_upgrading(piece)
        super().data_received(piece)
        if self._state not in OVER and self._framing > self.limits.header_bytes:
            self._refuse_headers()

    def _throw_away(self, count: int) -> None:
        self._discarded += count
        if self._discarded > self.limits.body_bytes and self._state is State.LINGERING:
            self._close()

    # What the parser tells

    def on_message_begin(self) -> None:
        """A new head begins."""
        if self._state in (State.BODY, State.ANSWERING, State.DISCARDING):
            self.cut_off()  # never two at once: the pieces end where requests end
            raise ValueError("a request before its turn")
        super().on_message_begin()
        self._framing = self._headers_seen = 0
        if self._state is State.WAITING:
            self._state = State.HEAD  # and its clock runs on
        else:
            self._enter(State.HEAD, self.limits.header_seconds)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header, or a trailer."""
        self._framing += len(name) + len(value)
        self._headers_seen += 1
        if (
            self._framing > self.limits.header_bytes
            or self._headers_seen > self.limits.header_count
        ):
            self._refuse_headers()
            raise ValueError("too many headers")  # stops the parser
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is in: the request begins to be answered, if there is one way to read it."""
        version = self.parser.get_http_version()
        if not is_understood(self.parser.get_method(), version, self.headers):
            self.send_400_response("")
            raise ValueError("no HTTP that can be understood")  # stops the parser
        if version == "1.0":
            self.expect_100_continue = False
        self._body_left = body_length(self.headers)
        self.scope["extensions"] = {KNOWN: self._is_known}  # type: ignore[dict-item]
        self._enter(State.BODY, self.limits.body_seconds + 1.0)
        try:
            super().on_headers_complete()
        except Exception:
            self._state = State.HEAD  # nobody answers: its target can't be read
            raise
        if version == "1.0":
            self.cycle.__class__ = EndsWithConnection  # uvicorn makes it, and doesn't ask

    def on_body(self, body: bytes) -> None:
        """Body bytes pay for the framing around them."""
        self.cycle.waiting_for_100_continue = False
        self._framing = max(0, self._framing - FRAMING_PER_BYTE * len(body))
        if self._body_left is not None:
            self._body_left -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """What follows is the next head, once this request is answered."""
        self._framing = 0
        super().on_message_complete()
        if self._state is State.BODY:
            self._enter(State.ANSWERING, HALF_CLOSED_SECONDS if self._half_closed else None)
        elif self._state is State.DISCARDING:
            self._enter(State.IDLE, self.keep_alive_seconds)

    def on_response_complete(self) -> None:
        """In place of uvicorn's, which would let the next request run that it had parsed ahead."""
        self.server_state.total_requests += 1
        if self._state in OVER:
            return
        if self._state is State.BODY:
            if self.expect_100_continue:
                self._linger()  # whether its body follows or its next request, nobody knows
                return
            self._enter(State.DISCARDING, LINGER_SECONDS)
        elif self._half_closed and self._at >= len(self._data):
            self._close()
            return
        else:
            self._enter(State.IDLE, self.keep_alive_seconds)
        self.flow.resume_reading()
        self._go_on_soon()

    def _is_known(self) -> None:
        self.crowd.is_known(self)

    # What goes out

    def pause_writing(self) -> None:
        """The client reads more slowly than it is sent to."""
        super().pause_writing()
        self._unread_clock = self.loop.call_later(self.limits.unread_seconds, self.cut_off)

    def resume_writing(self) -> None:
        """It has read on."""
        self._stop_unread_clock()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's words, not ours
        """Answer what can't be parsed, unless it was refused by a limit before."""
        self._refuse(400, "invalid_http", "This is not a valid HTTP/1.1 request.")

    def _refuse_headers(self) -> None:
        self._refuse(
            431,
            "headers_too_large",
            f"The headers are more than {self.limits.header_count} or longer than "
            f"{self.limits.header_bytes} bytes: send fewer.",
        )

    def _refuse(
        self, status: int, code: str, message: str, retry_after_seconds: float | None = None
    ) -> None:
        """Answer in our error shape and close; what runs on this connection sees a disconnect."""
        if self._state in OVER:
            return
        error = ApiError(
            status, message, code=code, retry_after_seconds=retry_after_seconds, close=True
        )
        if self._state is State.BODY:
            if self.cycle.response_started:
                self.cut_off()  # half an answer is out: a second one must not follow
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self._state is not State.DISCARDING:  # that request has its answer
            self.transport.write(error.as_http())
        self._linger()

    # Clocks and ends

    def _enter(self, state: State, seconds: float | None = None) -> None:
        """Be in ``state``; after ``seconds`` in it the connection ends."""
        self._state = state
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
        if seconds is not None:
            self._clock = self.loop.call_later(seconds, self._close)
        self.crowd.entered(self, idle=state is State.IDLE)

    def _linger(self) -> None:
        """Tell the end, and read on without keeping it until the client has seen that."""
        self._data, self._at = b"", 0
        if self._socket.is_closing():
            return
        self.transport.flush()  # type: ignore[attr-defined]
        self._enter(State.LINGERING, LINGER_SECONDS)
        self._discarded = 0
        if self._socket.can_write_eof():
            self._socket.write_eof()
        self.flow.read_paused = False
        self.flow.hold(too_much=False)

    def _close(self) -> None:
        self.transport.flush()  # type: ignore[attr-defined]
        self._enter(State.CLOSING)
        self._socket.close()
        if self._socket.get_write_buffer_size():
            self._clock = self.loop.call_later(self.limits.unread_seconds, self._socket.abort)

    def _stop_unread_clock(self) -> None:
        if self._unread_clock is not None:
            self._unread_clock.cancel()
            self._unread_clock = None


__all__ = ["GuardedProtocol", "State", "guarded_protocol"]
