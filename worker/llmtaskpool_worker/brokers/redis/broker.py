"""The broker that shares a pool's line and books on Redis or Valkey.

Each step of a task is one script on the server (lua/), so it is done or not done. What this process
holds is what it can ask for again: its claims, and what tasks say.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence

from llmtaskpool_worker.brokers.protocol import (
    Claim,
    Committed,
    Depth,
    Durability,
    Full,
    Head,
    Held,
    IdempotencyConflict,
    Outcome,
    Receipt,
    Release,
    Submission,
    Swept,
    Unavailable,
    UnknownParent,
    Wanted,
    Weights,
)
from llmtaskpool_worker.brokers.redis import books
from llmtaskpool_worker.brokers.redis.claiming import Claiming
from llmtaskpool_worker.brokers.redis.courier import PATIENCE_SECONDS
from llmtaskpool_worker.brokers.redis.ending import LARGEST_BYTES, Ending
from llmtaskpool_worker.brokers.redis.following import Following
from llmtaskpool_worker.brokers.redis.heads import Heads
from llmtaskpool_worker.brokers.redis.link import Address
from llmtaskpool_worker.brokers.redis.session import Session
from llmtaskpool_worker.brokers.redis.shelf import ServerShelf
from llmtaskpool_worker.brokers.redis.sweeping import Sweeping
from llmtaskpool_worker.brokers.redis.trouble import away
from llmtaskpool_worker.brokers.redis.views import Views
from llmtaskpool_worker.brokers.redis.waking import Waking
from llmtaskpool_worker.brokers.refusals import SHED_AT_ONCE
from llmtaskpool_worker.brokers.shelf import Shelf
from llmtaskpool_worker.scheduling.limits import Limits
from llmtaskpool_worker.scheduling.task import (
    TERMINAL,
    Asked,
    LaneName,
    TaskError,
    TaskEvent,
    TaskState,
    TaskView,
)

DEAD_MS = 7 * 86_400_000
AT_ONCE_SECONDS = 0.5
CANCELLED_WITHIN_SECONDS = 600.0
PROMISE_MS = 5_000
"""So long one worker alone makes way for a task."""

Listed = list
"""The type: RedisBroker has a method of that name."""


class RedisBroker:
    """See Broker. ``pool`` is namespace/name; ``clock`` the worker's.

    ``lease_seconds``: of which leases are, for when the server's clock is set.
    """

    immediate = False
    shared = True

    def __init__(
        self,
        address: Address,
        pool: str,
        limits: Limits,
        clock: Callable[[], float],
        *,
        lease_seconds: float = 30.0,
        allow_volatile: bool = False,
    ) -> None:
        self._limits, self._clock = limits, clock
        self._ttl_ms = round(limits.results.ttl_seconds * 1000)
        self._soon_ms = round(
            min(limits.results.ttl_seconds, limits.results.ttl_least_seconds) * 1000
        )
        self._runs: dict[str, books.Run] = {}
        self._session = Session(
            address, pool, clock, lambda: self._runs, allow_volatile=allow_volatile
        )
        self._heads = Heads()
        self._claiming = Claiming(self._session, limits, self._ttl_ms, DEAD_MS, clock, self._heads)
        self._following = Following(self._session, self._runs, clock, self._stopped)
        self._views = Views(self._session, clock, self._ttl_ms / 1000)
        self._ending = Ending(
            self._session,
            self._runs,
            self._following,
            self._views,
            self._stopped,
            ttl_ms=self._ttl_ms,
            soon_ms=self._soon_ms,
        )
        self._sweeping = Sweeping(
            self._session,
            self._heads,
            self._runs,
            self._following,
            self._views,
            self._stopped,
            clock,
            lease_ms=round(lease_seconds * 1000),
            ttl_ms=self._ttl_ms,
            soon_ms=self._soon_ms,
            dead_ms=DEAD_MS,
        )
        self._waking = {
            lane: Waking(self._session.link(), self._put_markers_back) for lane in LaneName
        }
        self._on_lost: Callable[[str], None] = lambda _: None

    @property
    def durability(self) -> Durability:
        """See Broker."""
        return self._session.durability

    async def start(self, worker: str, on_lost: Callable[[str], None]) -> None:
        """See Broker. A server that can't be reached is tried again; calls are Unavailable."""
        self._on_lost = on_lost
        await self._session.start(worker)
        self._following.start()

    async def close(self) -> None:
        """See Broker."""
        await self._following.close()
        await asyncio.gather(*(waking.close() for waking in self._waking.values()))
        await self._session.close()

    def shelf(self, limit_bytes: int) -> Shelf:
        """See Broker."""
        return ServerShelf(self._session.call, limit_bytes)

    # --- in ---------------------------------------------------------------------------------

    async def accept(self, submission: Submission) -> Receipt:
        """See Broker."""
        return await self._accept(submission, PATIENCE_SECONDS)

    async def accept_at_once(self, submission: Submission) -> Receipt:
        """The same for somebody who can be served without the server: it isn't waited for.

        When it doesn't answer what it may have accepted is cancelled once it is back.
        """
        if self.away:
            raise away()
        try:
            return await self._accept(submission, AT_ONCE_SECONDS)
        except Unavailable:
            args = ("C", "", "", self._ttl_ms, self._soon_ms, "1", submission.id)
            self._session.call("close", *args, seconds=CANCELLED_WITHIN_SECONDS)
            raise

    async def _accept(self, submission: Submission, seconds: float) -> Receipt:
        lane = self._limits.lane(submission.lane)
        head, body = books.acceptance(
            submission,
            self._session.pod if submission.bound_to is not None else "",
            (lane.queue_tasks, lane.queue_bytes),
            self._ttl_ms,
            self._soon_ms,
            tenants_most := self._limits.tenants.may_wait(
                submission.line.tenant, of_a_batch=submission.request.of_a_batch
            ),
        )
        if len(body) > LARGEST_BYTES:
            raise Full("bytes", LARGEST_BYTES)
        for _ in range(SHED_AT_ONCE):
            call = self._session.call("accept", head, body, seconds=seconds)
            answer = await call
            lane_full = answer[0] == b"full" and answer[1] in (b"tasks", b"bytes")
            if not lane_full or not await self._claiming.shed(submission, self._soon_ms):
                break
        what, name = answer[0], answer[1].decode()
        if what == b"conflict":
            raise IdempotencyConflict
        if what == b"full":
            bounds = {"tasks": lane.queue_tasks, "bytes": lane.queue_bytes}
            bounds |= {"tenant": tenants_most or 0, "model": submission.group_most or 0}
            raise Full(name, bounds[name])
        if what == b"unknown_dependency":
            raise UnknownParent(name)
        known = what == b"same" and not (call.sent > 1 and name == submission.id)
        if name == submission.id:
            self._session.done("accept", head, body)
        if what == b"same" or answer[3] == b"F":
            view = await self.get(name)
            if view is not None:
                return Receipt(view, known)
        state = books.STATES[answer[3].decode()] if what == b"ok" else TaskState.QUEUED
        if state is TaskState.QUEUED and not known:
            self._heads.came(submission)
        return Receipt(self._accepted(submission, state, answer[2]), known)

    def _accepted(self, task: Submission, state: TaskState, server_ms: float) -> TaskView:
        request, at = task.request, self._session.at(server_ms)
        return TaskView(
            id=task.id,
            kind=request.kind,
            lane=task.lane,
            model=request.model,
            state=state,
            weight=request.weight,
            load_seconds=task.load_seconds,
            priority=task.priority,
            submitted_at=at,
            result_expires_at=None if request.attended else at + self._ttl_ms / 1000,
            depends_on=task.dependencies.parents if task.dependencies is not None else (),
            labels=request.labels,
            tenant=task.line.tenant,
        )

    # --- out --------------------------------------------------------------------------------

    async def claim(self, wanted: Wanted) -> Listed[Claim]:
        """See Broker."""
        runs = await self._claiming.claim(wanted)
        if not runs:
            self._sweeping.look_soon()
        for run in runs:
            self._runs[run.claim.id] = run
            self._following.began(run)
        return [run.claim for run in runs]

    @property
    def away(self) -> bool:
        """Whether the server doesn't answer, as far as is known."""
        return self._session.away_since is not None

    def first(self, wanted: Wanted) -> Head | None:
        """As peek: the server isn't asked."""
        return None if self.away else self._heads.best(wanted)

    async def peek(self, wanted: Wanted) -> Head | None:
        """See Broker. As it was last seen, which is a second ago at most."""
        return self.first(wanted)

    def waiting_weights(self, lane: LaneName, groups: Collection[str]) -> Weights:
        """See Broker."""
        return () if self.away else self._heads.weights(lane, groups)

    async def promise(self, head: Head) -> bool:
        """See Broker."""
        if await self._session.call("promise", head.id, self._session.pod, PROMISE_MS):
            return True
        self._heads.gone(head.id)
        return False

    async def wait_for_work(self, lane: LaneName, groups: Collection[str], seconds: float) -> bool:
        """See Broker."""
        prefix = f"{self._session.prefix}:m:"
        names = [prefix + name for group in groups for name in books.group_keys(lane, group)]
        return await self._waking[lane].wait(names, seconds)

    async def _put_markers_back(self, keys: Sequence[str]) -> None:
        prefix = f"{self._session.prefix}:m:"
        await self._session.call("wake", *(key.removeprefix(prefix) for key in keys))

    async def renew(self, held: Sequence[Held], lease_seconds: float) -> frozenset[str]:
        """See Broker."""
        lost: set[str] = set()
        calls = [
            self._session.call(
                "renew",
                round(lease_seconds * 1000),
                *(text for one in held[start : start + 64] for text in one),
                seconds=lease_seconds / 3,
            )
            for start in range(0, len(held), 64)
        ]
        for call in calls:
            lost.update(task_id.decode() for task_id in await call)
        for task_id in lost:
            self._drop(task_id)
        return frozenset(lost)

    async def release(self, released: Sequence[Release]) -> None:
        """See Broker."""
        if not released:
            return
        self._following.send()
        values: list[str] = []
        for one in released:
            values += (one.id, one.fence, one.reason, "01"[one.counts], "01"[one.alone])
        await self._session.call("release", self._ttl_ms, DEAD_MS, *values)
        for one in released:
            run = self._runs.get(one.id)
            if run is not None and run.claim.fence == one.fence:
                del self._runs[one.id]
                self._following.given_back(one.id, one.reason)

    async def recover(self, worker: str, known: Sequence[Held]) -> int:  # noqa: ARG002
        """See Broker. After each lost connection it is done without being asked as well."""
        known_ids = [one.id for one in known]
        count = await self._session.call("recover", self._session.pod, *known_ids)
        for task_id in set(self._runs) - set(known_ids):
            self._drop(task_id)
        return int(count)

    def _stopped(self, task_id: str) -> None:
        """Somebody ended a task that runs here."""
        self._drop(task_id)
        self._on_lost(task_id)

    def _drop(self, task_id: str) -> None:
        if self._runs.pop(task_id, None) is not None:
            self._following.lost(task_id)

    # --- ends -------------------------------------------------------------------------------

    async def commit(self, outcomes: Sequence[Outcome]) -> Listed[Committed]:
        """See Broker."""
        return await self._ending.commit(outcomes)

    async def cancel(self, task_id: str) -> Committed:
        """See Broker."""
        self._heads.gone(task_id)
        return await self._ending.cancel(task_id)

    async def give_up(self, error: TaskError, group: str | None = None) -> Sequence[TaskView]:
        """See Broker."""
        return await self._ending.give_up(error, group)

    async def replay(self, task_id: str) -> TaskView | None:
        """See Broker."""
        view = await self._ending.replay(task_id)
        if view is not None:
            await self._sweeping.look()
        return view

    # --- to look at -------------------------------------------------------------------------

    async def get(self, task_id: str) -> TaskView | None:
        """See Broker."""
        return (await self._views.of([task_id]))[0]

    async def list(self, asked: Asked) -> Listed[TaskView]:
        """See Broker. Of each state the newest tasks are looked at."""
        return await self._views.list(asked)

    async def wait(self, task_id: str) -> TaskView:
        """See Broker."""
        while True:
            await self._following.end_of(task_id)
            view = await self.get(task_id)
            if view is None:
                raise KeyError(task_id)
            if view.state in TERMINAL:
                return view
            self._following.not_ended(task_id)  # a replay came between

    def events(self, task_id: str) -> AsyncIterator[TaskEvent]:
        """See Broker."""
        return self._following.events(task_id)

    def publish(self, held: Held, event: TaskEvent) -> None:
        """See Broker."""
        self._following.publish(held, event)

    def watched(self, task_id: str) -> bool:
        """See Broker."""
        return self._following.watched(task_id)

    def let_go(self, task_id: str) -> None:
        """See Broker. Its result goes after a short time by itself."""
        self._following.streams.forget(task_id)

    # --- time -------------------------------------------------------------------------------

    async def sweep(self) -> Swept:
        """See Broker."""
        return await self._sweeping.sweep()

    def depth(self) -> Depth:
        """See Broker."""
        return self._sweeping.depth()
