"""This worker's standing with the server: its name there, the server's clock, and coming back.

After each new connection, before anything else: is the server fit, is it another one (then what was
said in the last seconds is said again), and what was given to us whose answer was lost goes back.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from redis.exceptions import ResponseError

from llmtaskpool_worker.brokers.protocol import Durability
from llmtaskpool_worker.brokers.redis.checks import examine
from llmtaskpool_worker.brokers.redis.courier import PATIENCE_SECONDS, Ask, Call, Courier
from llmtaskpool_worker.brokers.redis.link import Address, Argument, Link
from llmtaskpool_worker.brokers.redis.said import SECONDS, Said

UNKNOWN = Durability("unknown", True, "the queue's server was not reached yet")


class Session:
    """``held()``: ids of the tasks that this worker knows it has claimed."""

    def __init__(
        self,
        address: Address,
        pool: str,
        clock: Callable[[], float],
        held: Callable[[], Iterable[str]],
        *,
        allow_volatile: bool,
    ) -> None:
        self.prefix = f"ltp:{{{pool}}}"
        self.worker, self.pod = "", ""
        self.durability = UNKNOWN
        self._clock, self._held, self._allow_volatile = clock, held, allow_volatile
        self._connections = address.connections()
        self._courier = Courier(self.link(), self.prefix, clock, self._back)
        self._said = Said(clock)
        self._heard: deque[tuple[float, Sequence[str]]] = deque()
        """When we were given claims, and their fences, of the last seconds."""
        self._run_id: str | None = None
        self._ahead = 0.0
        """What our clock is ahead of the server's, in seconds."""

    def link(self) -> Link:
        """A connection of its own, not yet open."""
        return Link(self._connections)

    async def start(self, worker: str) -> None:
        """Under a name that no process had before, so that what killed the last one counts.

        Raises ValueError with the remedy when the server answers and is unfit.
        """
        self.worker, self.pod = worker, f"{worker}.{secrets.token_hex(4)}"
        await self._courier.start()

    async def close(self) -> None:
        """Bring what is on its way."""
        await self._courier.close()

    @property
    def away_since(self) -> float | None:
        """Since when the server doesn't answer, on our clock; None: it does."""
        return self._courier.away_since

    def call(self, name: str, *args: Argument, seconds: float = PATIENCE_SECONDS) -> Call:
        """See Courier."""
        return self._courier.call(name, *args, seconds=seconds)

    def done(self, name: str, *args: Argument) -> None:
        """A call has changed something: it is said again to a server that may have lost it.

        Not one that came to nothing: after a rollback it might come to something, and nobody
        would know.
        """
        self._said.note(name, args)

    def given(self, fences: Sequence[str]) -> None:
        """Claims have come: their attempts count, also where the server forgets that they ended."""
        now = self._clock()
        self._heard.append((now, fences))
        while self._heard[0][0] < now - SECONDS:
            self._heard.popleft()

    def at(self, server_ms: float) -> float:
        """A time of the server's on our clock."""
        return server_ms / 1000 + self._ahead

    @property
    def ahead(self) -> float:
        """What our clock is ahead of the server's, in seconds."""
        return self._ahead

    def server_ms(self) -> int:
        """The server's time, as we reckon; 0 before it was told."""
        return round((self._clock() - self._ahead) * 1000) if self._run_id is not None else 0

    def told_time(self, server_ms: float) -> None:
        """The server's time, in an answer that has just come."""
        self._ahead = self._clock() - server_ms / 1000

    async def _back(self, link: Link, ask: Ask) -> None:
        server = await examine(link, allow_volatile=self._allow_volatile)
        if self._run_id is None:
            (tested,) = await ask([("selftest", ())])
            if isinstance(tested, ResponseError):
                raise ValueError(
                    f"the queue's server doesn't run our scripts ({tested}): it must allow keys "
                    "that scripts make, and the commands of docs/durability.md's ACL"
                )
        (when,) = await link.ask([("TIME",)], 2.0)
        self.told_time(int(when[0]) * 1000 + int(when[1]) / 1000)
        calls, lost_at = [], None
        known = [self.pod, *self._held()]
        if self._run_id not in (None, server.run_id):
            lost_at = self.away_since if self.away_since is not None else self._clock()
            calls = self._said.last(lost_at)
            known += [f for at, fences in self._heard if at >= lost_at - SECONDS for f in fences]
        calls.append(("recover", tuple(known)))
        for start in range(0, len(calls), 64):
            for answer in await ask(calls[start : start + 64]):
                if isinstance(answer, ResponseError):
                    raise answer
        if lost_at is not None:  # it was all said now: what is lost next may take it along again
            self._said.again(lost_at)
            now, heard = self._clock(), self._heard
            self._heard = deque((now, f) for at, f in heard if at >= lost_at - SECONDS)
        self._run_id, self.durability = server.run_id, server.durability
