"""What a server in front of which a worker stands tells of the requests that it was sent."""

from __future__ import annotations

from typing import Any

import msgspec


class Piece(msgspec.Struct, frozen=True, tag="piece"):
    """What a server said next of a request: the choice of a chunk, and the tokens it stands for."""

    id: int
    choice: dict[str, Any]
    tokens: int = 0


class Answered(msgspec.Struct, frozen=True, tag="answered"):
    """A server has answered a request to its end; or it was left, and its connection closed.

    ``reason`` is the server's own finish_reason; or cancelled, or parked: nothing is kept of it.
    ``value``: what is not told in pieces, the list of embeddings. ``usage`` as the server told it;
    None where it told none.
    """

    id: int
    reason: str
    usage: dict[str, Any] | None = None
    value: Any = None


class TurnedAway(msgspec.Struct, frozen=True, tag="away"):
    """A server did not take a request, because it has enough (429, 503): less, later."""

    id: int
    retry_after_seconds: float | None = None


class ConnectionLost(msgspec.Struct, frozen=True, tag="lost"):
    """A request's connection broke, and the server lives: it may be sent again."""

    id: int


class Gauges(msgspec.Struct, frozen=True, tag="gauges"):
    """What a server's metrics page says of itself; None: it doesn't say."""

    running: float | None = None
    waiting: float | None = None
    cache_usage: float | None = None
    preemptions: float | None = None
