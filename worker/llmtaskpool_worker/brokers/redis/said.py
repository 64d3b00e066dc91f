"""What the server was told in the last seconds, to be said again to a server that may not know.

An append-only file that is synced each second, or a failover, may lose its last second. Accepting
is idempotent by id, committing by fence and cancelling by itself, so each worker says its own again
and only what server *and* worker lost together is gone. A commit whose claim was lost too comes to
nothing: its task runs again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from llmtaskpool_worker.brokers.redis.link import Argument

SECONDS = 5.0
MOST_BYTES = 64 * 1024 * 1024
Asking = tuple[str, tuple[Argument, ...]]


class Said:
    """Calls of the last SECONDS, in their order."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._calls: deque[tuple[float, int, Asking]] = deque()
        self._bytes = 0

    def note(self, name: str, args: tuple[Argument, ...]) -> None:
        """The server has answered this call."""
        size = sum([len(arg) for arg in args if isinstance(arg, (bytes, str))])
        now = self._clock()
        self._calls.append((now, size, (name, args)))
        self._bytes += size
        while self._calls and (self._calls[0][0] < now - SECONDS or self._bytes > MOST_BYTES):
            self._bytes -= self._calls.popleft()[1]

    def last(self, since: float) -> list[Asking]:
        """What was said from ``since`` less SECONDS on."""
        return [call for at, _, call in self._calls if at >= since - SECONDS]

    def again(self, since: float) -> None:
        """All of ``last`` was said again: a server that is lost once more may forget it anew."""
        now = self._clock()
        self._calls = deque(
            (now if at >= since - SECONDS else at, size, call) for at, size, call in self._calls
        )
