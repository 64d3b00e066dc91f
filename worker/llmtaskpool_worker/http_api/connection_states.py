"""The states of a client's connection: each has a clock, and a bound on what may wait in it.

===========  ==========================================  =====================================
state        what it waits for                           clock, and what happens when it ends
===========  ==========================================  =====================================
WAITING      the first byte of its first request         ``header_seconds``: closed
HEAD         the rest of a request's head                ``header_seconds`` from its first byte
                                                         (from the connect for the first one),
                                                         however it trickles: closed
BODY         the rest of a request's body                ``body_seconds``: answered 408 by who
                                                         reads it; one second later: closed
ANSWERING    its answer                                  the clocks of the task; after the
                                                         client's end ``HALF_CLOSED_SECONDS``
                                                         without a byte for it: closed
IDLE         another request                             ``keep_alive_seconds``: closed
DISCARDING   the rest of a body whose answer is out      ``LINGER_SECONDS``: closed
LINGERING    the client's end, after a last answer       ``LINGER_SECONDS``: closed; what still
                                                         comes is thrown away, up to
                                                         ``body_bytes``
CLOSING      the client to take what was sent            ``unread_seconds``: reset
===========  ==========================================  =====================================

In every state a client that takes nothing of what is sent is cut off after ``unread_seconds``.

One request of a connection is worked on at a time. What a client sends ahead is not parsed before
its turn, and beyond ``AHEAD_BYTES`` it is left in the kernel, so that the client waits. A turn of
the event loop parses at most ``TURN_BYTES``, so that others have their turns.
"""

from __future__ import annotations

from enum import Enum, auto

HALF_CLOSED_SECONDS = 2.0
"""A client that has closed its sending side, and to whom nothing was sent for so long, is gone."""

LINGER_SECONDS = 2.0
"""Closing at once while a client still sends would reset it, and take its answer from it."""


class State(Enum):
    """What a connection waits for: see the module's table."""

    WAITING = auto()
    HEAD = auto()
    BODY = auto()
    ANSWERING = auto()
    IDLE = auto()
    DISCARDING = auto()
    LINGERING = auto()
    CLOSING = auto()


OVER = (State.LINGERING, State.CLOSING)
"""Nothing more is answered. No set: each look would call Enum's hash, in Python."""
