"""Who has to go when a port has as many connections as it may have."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

KNOWN = "llmtaskpool.known"
"""In a scope's extensions: to be called when a request on this connection had a valid key."""

FRESH_SECONDS = 1.0
"""A connection that is younger may be about to send its first request: it stays."""

KNOWN_SHARE = 0.25
"""Of the connections allowed, so many are kept for clients that have shown a valid key."""


class Member(Protocol):
    """A connection, as far as it matters here."""

    def give_way(self) -> None:
        """A newcomer needs the place."""


One = TypeVar("One", bound=Member)


class Crowd(Generic[One]):
    """The connections of one port: strangers by their age, the known by how long they are idle.

    A connection is known once a request on it had a valid key, or came where no key is set.
    """

    def __init__(self, limit: int) -> None:
        self._share = max(1, int(limit * KNOWN_SHARE))
        self._strangers: dict[One, float] = {}
        self._known: set[One] = set()
        self._idle: dict[One, None] = {}

    def joined(self, one: One, now: float) -> None:
        """A new connection, at ``now`` seconds."""
        self._strangers[one] = now

    def left(self, one: One) -> None:
        """It has ended."""
        self._strangers.pop(one, None)
        self._known.discard(one)
        self._idle.pop(one, None)

    def is_known(self, one: One) -> None:
        """A request on it had a valid key."""
        if self._strangers.pop(one, None) is not None:
            self._known.add(one)

    def entered(self, one: One, *, idle: bool) -> None:
        """It waits for another request, or does not any more."""
        if idle and one in self._known:
            self._idle[one] = None
        else:
            self._idle.pop(one, None)

    def victim(self, now: float) -> One | None:
        """Takes out the one that has to go for a newcomer; None when the newcomer has to.

        The oldest stranger goes first, whatever it does: a stranger's work is a few open routes.
        Then the known one that has been idle for longest, as long as more than their share stay.
        """
        chosen = next(iter(self._strangers), None)
        if chosen is not None and now - self._strangers[chosen] >= FRESH_SECONDS:
            self.left(chosen)
            return chosen
        chosen = next(iter(self._idle), None)
        if chosen is not None and len(self._known) > self._share:
            self.left(chosen)
            return chosen
        return None
