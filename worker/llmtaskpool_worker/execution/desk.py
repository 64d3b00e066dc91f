"""Telling the broker what has ended: at once where it holds all in this process, else in order.

A broker that is away is told again until it has heard, while what runs goes on: a task's engine and
its thread are free when it has ended here, whether or not that has been written down already.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from llmtaskpool_worker.brokers.protocol import (
    Broker,
    Commit,
    Committed,
    Outcome,
    Release,
    Unavailable,
)
from llmtaskpool_worker.scheduling.task import TaskError, TaskView

T = TypeVar("T")
Told = Callable[[Committed], None]

AT_ONCE = 64
"""So many ends are told in one call at most."""
LONGEST_WAIT_SECONDS = 2.0


def at_once(asked: Coroutine[Any, Any, T]) -> T:
    """The answer of a coroutine that never waits, as those of immediate brokers."""
    try:
        asked.send(None)
    except StopIteration as answer:
        value: T = answer.value
        return value
    asked.close()
    raise RuntimeError("an immediate broker has waited")


class Desk:
    """One worker's. What was told is answered by calling ``then``, in the order of the telling."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self._untold: deque[tuple[Outcome | Release | str, Told]] = deque()
        self._came, self._told = asyncio.Event(), asyncio.Event()
        self._told.set()
        self._telling: asyncio.Task[None] | None = None
        self._giving_up: asyncio.Future[None] | None = None

    @property
    def untold(self) -> int:
        """How much the broker has not heard yet."""
        return len(self._untold)

    def start(self) -> None:
        """Begin to tell; an immediate broker needs none of it."""
        if not self.broker.immediate:
            self._telling = asyncio.create_task(self._tell_all())

    async def close(self, seconds: float) -> None:
        """Tell what is left, for at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._told.wait()
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)

    def commit(self, outcome: Outcome, then: Told) -> None:
        """A claimed task has ended."""
        if self.broker.immediate:
            then(at_once(self.broker.commit([outcome]))[0])
        else:
            self._add(outcome, then)

    def release(self, released: Release) -> None:
        """A claimed task waits for anybody again."""
        if self.broker.immediate:
            at_once(self.broker.release([released]))
        else:
            self._add(released, lambda _: None)

    def cancel(self, task_id: str, then: Told) -> None:
        """Nobody wants a task any more."""
        if self.broker.immediate:
            then(at_once(self.broker.cancel(task_id)))
        else:
            self._add(task_id, then)

    def give_up(self, error: TaskError, group: str, then: Callable[[TaskView], None]) -> None:
        """Nobody can run what waits in this group and ends with this worker."""
        if self.broker.immediate:
            for view in at_once(self.broker.give_up(error, group)):
                then(view)
            return

        async def later() -> None:
            with contextlib.suppress(Unavailable):
                for view in await self.broker.give_up(error, group):
                    then(view)

        self._giving_up = asyncio.ensure_future(later())

    def _add(self, said: Outcome | Release | str, then: Told) -> None:
        self._untold.append((said, then))
        self._told.clear()
        self._came.set()

    async def _tell_all(self) -> None:
        wait = 0.05
        while True:
            await self._came.wait()
            self._came.clear()
            while self._untold:
                batch = self._next()
                try:
                    answers = await self._tell([said for said, _ in batch])
                except Unavailable:
                    await asyncio.sleep(wait)
                    wait = min(LONGEST_WAIT_SECONDS, 2 * wait)
                    continue
                wait = 0.05
                for (_, then), answer in zip(batch, answers, strict=True):
                    self._untold.popleft()
                    then(answer)
            self._told.set()

    def _next(self) -> list[tuple[Outcome | Release | str, Told]]:
        """The first ones, of one sort."""
        sort = type(self._untold[0][0])
        batch: list[tuple[Outcome | Release | str, Told]] = []
        for one in self._untold:
            if type(one[0]) is not sort or len(batch) == AT_ONCE:
                break
            batch.append(one)
            if sort is str:
                break
        return batch

    async def _tell(self, said: Sequence[Outcome | Release | str]) -> Sequence[Committed]:
        first = said[0]
        if isinstance(first, Outcome):
            return await self.broker.commit([one for one in said if isinstance(one, Outcome)])
        if isinstance(first, Release):
            await self.broker.release([one for one in said if isinstance(one, Release)])
            return [Committed(Commit.TAKEN, None)] * len(said)
        return [await self.broker.cancel(first)]
