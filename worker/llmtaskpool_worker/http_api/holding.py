"""Who waits in a gate for a worker, and which workers it knows.

The operator tells which workers are ready. One that can't be reached is forgotten until it is told
again: a list that is a second old must not send a request into the void twice.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from llmtaskpool_worker.contract import GateState

RECENT_SECONDS = 10.0
"""A request counts so long as a reason to wake: two of the operator's periods."""
MOST_NOTED = 1000
"""More arrivals in that time need no exact number."""


class NobodyCame(Exception):
    """No worker was there in time; ``closing``: the gate itself ends."""

    def __init__(self, *, closing: bool = False) -> None:
        super().__init__("no worker came")
        self.closing = closing


class Holding:
    """The held requests of one gate. ``clock`` in seconds; all calls are from one loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._workers: dict[str, None] = {}
        self._busy: Counter[str] = Counter()
        self._came = asyncio.Event()
        self._one_over = asyncio.Event()
        self._closed = False
        self._held = 0
        self._arrived = 0
        self._arrivals: deque[float] = deque(maxlen=MOST_NOTED)

    @property
    def has_workers(self) -> bool:
        """Whether a worker is known to be ready."""
        return bool(self._workers)

    def know(self, workers: Iterable[str]) -> None:
        """These are the ready workers now, and no others."""
        self._workers = dict.fromkeys(workers)
        self._wake()

    def lost(self, worker: str) -> None:
        """It can't be reached."""
        self._workers.pop(worker, None)
        self._wake()

    def close(self) -> None:
        """The gate ends: whoever waits is told so."""
        self._closed = True
        self._came.set()

    def arrived(self) -> None:
        """A request asks for a worker."""
        self._arrived += 1
        self._arrivals.append(self._clock())

    @contextmanager
    def held(self) -> Iterator[None]:
        """A request waits."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            self._one_over.set()

    async def worker(self, until: float) -> str:
        """The known worker that has the fewest of our requests, once there is one.

        It counts as one more of its requests, until ``done``.

        Raises:
            NobodyCame: the gate closes, or it is ``until``.
        """
        while not self._workers or self._closed:
            if self._closed:
                raise NobodyCame(closing=True)
            left = until - self._clock()
            if left <= 0:
                raise NobodyCame
            try:
                await asyncio.wait_for(self._came.wait(), left)
            except TimeoutError:
                raise NobodyCame from None
        found = min(self._workers, key=self._busy.__getitem__)
        self._busy[found] += 1
        return found

    def done(self, worker: str) -> None:
        """One of its requests is over."""
        self._busy[worker] -= 1
        if self._busy[worker] <= 0:
            del self._busy[worker]
        self._one_over.set()

    async def rest(self) -> None:
        """Wait until nothing is held and nothing is under way."""
        while self._held or self._busy.total():
            self._one_over.clear()
            await self._one_over.wait()

    def state(self) -> GateState:
        """As the operator reads it."""
        since = self._clock() - RECENT_SECONDS
        return GateState(
            held=self._held,
            recent=sum(at >= since for at in self._arrivals),
            forwarding=self._busy.total(),
            arrived_total=self._arrived,
            workers=tuple(self._workers),
        )

    def _wake(self) -> None:
        if self._workers or self._closed:
            self._came.set()
        else:
            self._came.clear()
