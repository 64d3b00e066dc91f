"""The pool's line on a server, and this worker's own memory for chats while the server is away.

Who waits for its answer at an open connection is served all the same: its task needs to survive
nothing. Tasks whose results are fetched later are refused until the server is back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from llmtaskpool_worker.brokers.memory import MemoryBroker
from llmtaskpool_worker.brokers.protocol import (
    Claim,
    Committed,
    Depth,
    Durability,
    Head,
    Held,
    Outcome,
    Receipt,
    Release,
    Submission,
    Swept,
    Unavailable,
    Wanted,
    Weights,
)
from llmtaskpool_worker.brokers.redis.broker import RedisBroker
from llmtaskpool_worker.brokers.shelf import Shelf
from llmtaskpool_worker.scheduling.limits import Limits
from llmtaskpool_worker.scheduling.task import Asked, LaneName, TaskError, TaskEvent, TaskView

Listed = list
"""The type: the class has a method of that name."""
One = TypeVar("One", Held, Release, Outcome)


class PoolBroker:
    """See Broker. ``shared_line`` is the server's; its clock is ``clock``."""

    immediate = False
    shared = True

    def __init__(
        self, shared_line: RedisBroker, limits: Limits, clock: Callable[[], float]
    ) -> None:
        self._pool = shared_line
        self._own = MemoryBroker(limits, clock)
        self._ids: set[str] = set()
        """Of what is or was in our own memory."""

    @property
    def durability(self) -> Durability:
        """See Broker: of what is fetched later."""
        return self._pool.durability

    def _of(self, task_id: str) -> RedisBroker | MemoryBroker:
        return self._own if task_id in self._ids else self._pool

    def _apart(self, all_of: Sequence[One]) -> tuple[list[One], list[One]]:
        """Those of our own memory, and those of the pool's line."""
        own = [one for one in all_of if one.id in self._ids]
        return own, [one for one in all_of if one.id not in self._ids]

    async def start(self, worker: str, on_lost: Callable[[str], None]) -> None:
        """See Broker."""
        await self._own.start(worker, on_lost)
        await self._pool.start(worker, on_lost)

    async def close(self) -> None:
        """See Broker."""
        await self._own.close()
        await self._pool.close()

    async def accept(self, submission: Submission) -> Receipt:
        """See Broker. What its submitter waits for is accepted, server or not."""
        if not submission.request.attended:
            return await self._pool.accept(submission)
        try:
            return await self._pool.accept_at_once(submission)
        except Unavailable:
            receipt = await self._own.accept(submission)
            self._ids.add(submission.id)
            return receipt

    async def claim(self, wanted: Wanted) -> Listed[Claim]:
        """See Broker. Of our own and the pool's the highest P goes first, of equals our own.

        What the pool's best is stands in its last answer: while our own go first it isn't asked.
        """
        if not self._ids:
            return await self._pool.claim(wanted)
        claims: list[Claim] = []
        rest = wanted
        while (rest := _without(wanted, claims)).most > 0:
            mine = await self._own.peek(rest)
            if mine is None or mine.priority <= wanted.above:
                break
            theirs = self._pool.first(rest)
            more: list[Claim] = []
            if theirs is not None and theirs.priority > mine.priority:
                with suppress(Unavailable):  # then our own go on without it
                    more = await self._of_the_pool(rest._replace(above=mine.priority))
            more = more or await self._own.claim(rest._replace(most=1))
            claims += more
            if not more:
                break
        if rest.most > 0 and not (claims and self._pool.away):
            try:
                claims += await self._of_the_pool(rest)
            except Unavailable:
                if not claims:
                    raise
        return claims

    async def _of_the_pool(self, wanted: Wanted) -> Listed[Claim]:
        claims = []
        for claim in await self._pool.claim(wanted):
            if claim.id in self._ids:  # it was accepted there as well, and nobody heard
                await self._pool.cancel(claim.id)
            else:
                claims.append(claim)
        return claims

    async def peek(self, wanted: Wanted) -> Head | None:
        """See Broker."""
        theirs = await self._pool.peek(wanted)
        mine = await self._own.peek(wanted) if self._ids else None
        if mine is None or (theirs is not None and theirs.priority > mine.priority):
            return theirs
        return mine

    def waiting_weights(self, lane: LaneName, groups: Collection[str]) -> Weights:
        """See Broker."""
        theirs = self._pool.waiting_weights(lane, groups)
        return [*theirs, *self._own.waiting_weights(lane, groups)] if self._ids else theirs

    async def promise(self, head: Head) -> bool:
        """See Broker."""
        return await self._of(head.id).promise(head)

    async def wait_for_work(self, lane: LaneName, groups: Collection[str], seconds: float) -> bool:
        """See Broker."""
        return await self._pool.wait_for_work(lane, groups, seconds)

    async def renew(self, held: Sequence[Held], lease_seconds: float) -> frozenset[str]:
        """See Broker."""
        own, pools = self._apart(held)
        lost = await self._own.renew(own, lease_seconds)
        return lost | (await self._pool.renew(pools, lease_seconds) if pools else frozenset())

    async def release(self, released: Sequence[Release]) -> None:
        """See Broker."""
        own, pools = self._apart(released)
        await self._own.release(own)
        await self._pool.release(pools)

    async def recover(self, worker: str, known: Sequence[Held]) -> int:
        """See Broker."""
        return await self._pool.recover(worker, self._apart(known)[1])

    async def commit(self, outcomes: Sequence[Outcome]) -> Listed[Committed]:
        """See Broker."""
        own, pools = self._apart(outcomes)
        mine = iter(await self._own.commit(own) if own else ())
        theirs = iter(await self._pool.commit(pools) if pools else ())
        return [next(mine if one.id in self._ids else theirs) for one in outcomes]

    async def cancel(self, task_id: str) -> Committed:
        """See Broker."""
        return await self._of(task_id).cancel(task_id)

    async def give_up(self, error: TaskError, group: str | None = None) -> Sequence[TaskView]:
        """See Broker."""
        ended = [*await self._own.give_up(error, group)]
        try:
            return [*ended, *await self._pool.give_up(error, group)]
        except Unavailable:
            return ended  # the pool cancels them when this worker gives no sign of life

    async def replay(self, task_id: str) -> TaskView | None:
        """See Broker."""
        return await self._of(task_id).replay(task_id)

    async def get(self, task_id: str) -> TaskView | None:
        """See Broker."""
        return await self._of(task_id).get(task_id)

    async def list(self, asked: Asked) -> Listed[TaskView]:
        """See Broker."""
        return await self._pool.list(asked)

    async def wait(self, task_id: str) -> TaskView:
        """See Broker."""
        return await self._of(task_id).wait(task_id)

    def events(self, task_id: str) -> AsyncIterator[TaskEvent]:
        """See Broker."""
        return self._of(task_id).events(task_id)

    def publish(self, held: Held, event: TaskEvent) -> None:
        """See Broker."""
        self._of(held.id).publish(held, event)

    def watched(self, task_id: str) -> bool:
        """See Broker."""
        return self._of(task_id).watched(task_id)

    def let_go(self, task_id: str) -> None:
        """See Broker."""
        self._of(task_id).let_go(task_id)

    async def sweep(self) -> Swept:
        """See Broker."""
        own = await self._own.sweep()
        self._ids = {one for one in self._ids if await self._own.get(one) is not None}
        try:
            pools = await self._pool.sweep()
        except Unavailable:
            if not own.ended:
                raise
            return own
        return Swept([*own.ended, *pools.ended], [*own.returned, *pools.returned])

    def shelf(self, limit_bytes: int) -> Shelf:
        """See Broker."""
        return self._pool.shelf(limit_bytes)

    def depth(self) -> Depth:
        """See Broker. What is in our own memory ends with this worker."""
        depth = self._pool.depth()
        if not self._ids:
            return depth
        own = self._own.depth()
        waiting = sum(lane.waiting for lane in own.lanes.values())
        return replace(depth, bound=depth.bound + waiting)


def _without(wanted: Wanted, claims: Sequence[Claim]) -> Wanted:
    """What is wanted still once these were given: only groups that have a slot are named."""
    if any(claim.alone for claim in claims):
        return wanted._replace(most=0)
    taken: dict[str, int] = {}
    for claim in claims:
        taken[claim.group] = taken.get(claim.group, 0) + 1

    def free(group: str) -> int:
        return wanted.free(group) - taken.get(group, 0)

    return wanted._replace(
        fence=f"{wanted.fence}.{len(claims)}",
        groups=tuple(group for group in wanted.groups if free(group) > 0),
        most=wanted.most - len(claims),
        free=free,
    )
