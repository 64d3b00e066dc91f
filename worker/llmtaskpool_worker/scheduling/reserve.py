"""Places at a server that are for the urgent alone: how many, who may have one, since when.

A server that is full of long answers lets an urgent request wait for the end of one of them,
however far ahead it is in our queue. So an urgent one may be sent beyond N, where the server has
more places than N. Where N is all that the server has, one in ONE_IN of its places stays free of
others, but only while urgent ones come: for KEPT_SECONDS after the last. And one place stays free
from the start of requests that yield, whose weight says that an ordinary one is urgent beside them:
else the first urgent one would wait. A pool whose requests are all alike, and none of low weight,
loses nothing, and one with both loses a place of four, or a sixteenth of many.

A server reads what it was sent before it goes on: behind the prompts of four bulk requests that
came at once, as they do when four of equal length end at once, an urgent one waits for all four in
the place that was kept for it. So while urgent ones come those that yield are sent one (where N is
large, a sixteenth) at a time, the next when the one before has its first chunk. Not its first
token: a server that has read a prompt says so with a chunk of the role alone, and may keep a call
of a tool until it is whole. A server that says nothing for UNREAD_SECONDS is not waited for: its
answers may come in one piece. What this costs is of the bulk, and most where its answers are a few
tokens long.

Urgent is who could have the place of a running one, too (preemption.py): its P = W / T is
``factor`` times as high. Pure; seconds are of the caller's clock.
"""

from __future__ import annotations

from collections.abc import Iterable

KEPT_SECONDS = 300.0
UNREAD_SECONDS = 2.0
ONE_IN = 16
LEAST_PLACES = 4
"""Of fewer, one would be too much of what the server can do."""


def beyond(threads: int) -> int:
    """So many urgent ones may be in flight beside N others: one for each ONE_IN, at least one."""
    return max(1, -(-threads // ONE_IN))


def kept(places: int) -> int:
    """So many of a server's places are kept while urgent ones come."""
    return 0 if places < LEAST_PLACES else max(1, places // ONE_IN)


def unread(threads: int) -> int:
    """Of N so many may be at a server at once that yield and whose prompts it has not read yet."""
    return max(1, threads // ONE_IN)


def is_urgent(waiting: float, running: Iterable[float], factor: float) -> bool:
    """Whether P ``waiting`` is ``factor`` times that of a running one; ``factor`` <= 1: never."""
    return factor > 1 and any(waiting >= factor * one for one in running)


def yields(weight: float, factor: float) -> bool:
    """Whether ordinary requests (weight 1) of the same size are urgent beside one of ``weight``."""
    return factor > 1 and weight * factor <= 1
