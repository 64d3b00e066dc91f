"""Which worker of a local pool a request goes to.

The routed one with the fewest connections from here and then the least load. A request about one
task goes to the worker that holds it, whose name is in the task's id; so do files and batches, and
new ones go to the worker that has been here longest, so that they meet.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field

_ABOUT_A_TASK = re.compile(
    r"/v1/(?:tasks/|graphs/graph-)([A-Za-z0-9][A-Za-z0-9._-]{0,252})-[0-9a-f]{32}(?:[/?]|$)"
)

_ABOUT_A_FILE = re.compile(
    r"/v1/(?:files/file-|batches/batch_)[0-9a-f]{32}-([A-Za-z0-9][A-Za-z0-9._-]{0,252})(?:[/?]|$)"
)
_FILES = re.compile(r"/v1/(?:files|batches)(?:[/?]|$)")


@dataclass(slots=True, eq=False)
class Route:
    """One worker's data port.

    ``load`` breaks ties; it is what the worker last reported. ``links`` holds one entry for each
    client that waits for an answer of it. ``answers`` moves with each piece of an answer.
    ``silent``: it does not answer now.
    """

    worker_id: str
    host: str
    port: int
    load: float = 0.0
    open: bool = True
    silent: bool = False
    answers: int = 0
    links: set[object] = field(default_factory=set)
    empty: asyncio.Event = field(default_factory=asyncio.Event)


class RoutingTable:
    """The workers that requests may go to. All calls are from one asyncio loop.

    A request that finds none is held for ``hold_seconds``, but only while ``starting`` says that
    a worker is on its way.
    """

    def __init__(self, hold_seconds: float, starting: Callable[[], bool]) -> None:
        self._hold_seconds = hold_seconds
        self._starting = starting
        self._routes: dict[str, Route] = {}
        self._changed = asyncio.Event()

    def route(self, worker_id: str, host: str, port: int) -> None:
        """Send requests to this worker too."""
        known = self._routes.get(worker_id)
        if known is None or (known.host, known.port) != (host, port) or not known.open:
            self._routes[worker_id] = Route(worker_id, host, port)
            self._wake()

    def unroute(self, worker_id: str) -> None:
        """Send no new work to this worker; what it has is let end and may be asked about."""
        route = self._routes.get(worker_id)
        if route is not None:
            route.open = False

    def silence(self, worker_id: str, *, silent: bool) -> None:
        """Whether this worker is without an answer: no new requests until it has one."""
        route = self._routes.get(worker_id)
        if route is not None and route.silent != silent:
            route.silent = silent
            self._wake()

    def answers(self, worker_id: str) -> int:
        """A count that moves while this worker answers clients."""
        route = self._routes.get(worker_id)
        return route.answers if route is not None else 0

    def forget(self, worker_id: str) -> None:
        """The worker is gone."""
        self._routes.pop(worker_id, None)

    def note_load(self, worker_id: str, load: float) -> None:
        """What the worker last reported; breaks ties."""
        route = self._routes.get(worker_id)
        if route is not None:
            route.load = load

    def routed(self) -> list[str]:
        """The workers that get requests."""
        return [one.worker_id for one in self._routes.values() if one.open and not one.silent]

    def open_connections(self, worker_id: str) -> int:
        """Connections to this worker: one for each client that waits for an answer of it."""
        route = self._routes.get(worker_id)
        return len(route.links) if route is not None else 0

    async def emptied(self, worker_id: str) -> None:
        """Return once there is no connection from here to this worker."""
        route = self._routes.get(worker_id)
        if route is not None and route.links:
            route.empty.clear()
            await route.empty.wait()

    def recheck(self) -> None:
        """Wake held requests: whether a worker is starting may have changed."""
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _best(self, tried: set[str]) -> Route | None:
        routes = (
            one
            for one in self._routes.values()
            if one.open and not one.silent and one.worker_id not in tried
        )
        return min(routes, key=lambda r: (len(r.links), r.load), default=None)

    def keeper(self, target: str) -> str | None:
        """The worker that a request (its path and query) should go to; None: any."""
        owner = owner_of(target)
        if owner is not None or not _FILES.match(target):
            return owner
        return next((one.worker_id for one in self._routes.values() if one.open), None)

    async def pick(self, tried: set[str], owner: str | None = None) -> Route | None:
        """The route to use now; waits a bounded time for one while a worker is starting.

        ``owner`` is preferred, also when it leaves.
        """
        if owner is not None and owner not in tried and owner in self._routes:
            return self._routes[owner]
        try:
            async with asyncio.timeout(self._hold_seconds):
                while True:
                    route = self._best(tried)
                    if route is not None or not self._starting():
                        return route
                    await self._changed.wait()
        except TimeoutError:
            return None


def owner_of(target: str) -> str | None:
    """The worker whose task or graph a request is about.

    Ids are ``<worker id>-<32 hexadecimal digits>``, of graphs with ``graph-`` before it; of files
    and batches the digits come first. ``target`` is a path with its query.
    """
    found = _ABOUT_A_TASK.match(target) or _ABOUT_A_FILE.match(target)
    return found.group(1) if found else None
