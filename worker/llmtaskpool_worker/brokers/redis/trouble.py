"""What a server's errors mean for whoever asked: that it is away, or that it can't write now."""

from __future__ import annotations

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from llmtaskpool_worker.brokers.protocol import Unavailable

GONE = (OSError, TimeoutError, EOFError, RedisError)
"""Of a connection: what was in flight may have been done or not."""

_REASONS = {
    "OOM": ("the queue's server is out of memory (maxmemory)", 10.0),
    "READONLY": ("the queue's server is a replica now", 2.0),
    "MISCONF": ("the queue's server can't write to its disk", 10.0),
    "LOADING": ("the queue's server is starting", 2.0),
    "BUSY": ("the queue's server is busy", 2.0),
    "MASTERDOWN": ("the queue's server has no primary", 2.0),
    "NOREPLICAS": ("the queue's server has too few replicas", 5.0),
    "CLUSTERDOWN": ("the queue's cluster is down", 5.0),
    "TRYAGAIN": ("the queue's cluster is being rebuilt", 2.0),
    "MOVED": ("the queue's cluster has moved its slot", 2.0),
}
RECONNECT = frozenset({"READONLY", "MASTERDOWN", "MOVED"})
"""Another server may be the one by now."""


def away(retry_after_seconds: float = 2.0) -> Unavailable:
    """Nobody answers."""
    return Unavailable("the queue's server can't be reached", retry_after_seconds)


def kind_of(error: ResponseError) -> str:
    """The first word of an error, which says what it is."""
    name = type(error).__name__
    told = {"OutOfMemoryError": "OOM", "ReadOnlyError": "READONLY", "BusyLoadingError": "LOADING"}
    if name in told:
        return told[name]
    return str(error).split(" ", 1)[0].rstrip(":")


def meaning(error: Exception) -> Exception:
    """Unavailable for what passes; the error itself for what is a mistake of ours."""
    if isinstance(error, AuthenticationError | NoPermissionError):
        return Unavailable("the queue's server refuses this worker's user or password", 10.0)
    if isinstance(error, ResponseError):
        if known := _REASONS.get(kind_of(error)):
            return Unavailable(*known)
        if "-OOM" in str(error) or "maxmemory" in str(error):
            return Unavailable(*_REASONS["OOM"])
        return error
    return away() if isinstance(error, GONE) else error
