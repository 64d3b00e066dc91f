"""Telling the broker what has ended: at once where it holds all in this process, else in order.

A broker that is away is told again until it has heard, while what runs goes on: a task's engine and
its thread are free when it has ended here, whether or not that has been written down already.
Tasks that end with their client's connection are told of apart, so that a disk that is full, or a
server that is away, holds up no chat.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
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
from llmtaskpool_worker.disclosure import where_raised
from llmtaskpool_worker.scheduling.task import TaskError, TaskView

log = logging.getLogger("llmtaskpool.worker")

T = TypeVar("T")
Told = Callable[[Committed], None]
Said = Outcome | Release | str
"""An end, a claim that is given back, or the id of a task that nobody wants any more."""

AT_ONCE = 64
"""So many ends are told in one call at most."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.05, 2.0


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
    """One worker's. What was told is answered by calling ``then``, in the order of the telling.

    ``bound``: of a task that ends with its client's connection.
    """

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self._tellers = {bound: _Teller(broker) for bound in (True, False)}
        self._giving_up: asyncio.Future[None] | None = None

    @property
    def untold(self) -> int:
        """How much the broker has not heard yet."""
        return sum(len(teller.untold) for teller in self._tellers.values())

    def start(self) -> None:
        """Begin to tell; an immediate broker needs none of it."""
        if not self.broker.immediate:
            for teller in self._tellers.values():
                teller.start()

    async def close(self, seconds: float) -> None:
        """Tell what is left, for at most so long."""
        await asyncio.gather(*(teller.close(seconds) for teller in self._tellers.values()))

    def commit(self, outcome: Outcome, then: Told, *, bound: bool) -> None:
        """A claimed task has ended."""
        if self.broker.immediate:
            then(at_once(self.broker.commit([outcome]))[0])
        else:
            self._tellers[bound].add(outcome, then)

    def release(self, released: Release, *, bound: bool) -> None:
        """A claimed task waits for anybody again."""
        if self.broker.immediate:
            at_once(self.broker.release([released]))
        else:
            self._tellers[bound].add(released, lambda _: None)

    def cancel(self, task_id: str, then: Told) -> None:
        """Its client is gone: nobody wants a task any more."""
        if self.broker.immediate:
            then(at_once(self.broker.cancel(task_id)))
        else:
            self._tellers[True].add(task_id, then)

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


class _Teller:
    """Tells one thing after the other, and each until it is heard."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.untold: deque[tuple[Said, Told]] = deque()
        self._came, self._all_told = asyncio.Event(), asyncio.Event()
        self._all_told.set()
        self._telling: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to tell."""
        self._telling = asyncio.create_task(self._tell_all())

    async def close(self, seconds: float) -> None:
        """Tell what is left, for at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._all_told.wait()
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)

    def add(self, said: Said, then: Told) -> None:
        """To be told after all that was said before."""
        self.untold.append((said, then))
        self._all_told.clear()
        self._came.set()

    async def _tell_all(self) -> None:
        wait = FIRST_WAIT_SECONDS
        while True:
            await self._came.wait()
            self._came.clear()
            while self.untold:
                batch = self._next()
                try:
                    answers = await self._tell([said for said, _ in batch])
                except Unavailable:
                    await asyncio.sleep(wait)
                    wait = min(LONGEST_WAIT_SECONDS, 2 * wait)
                    continue
                except Exception as error:  # one thing that can't be told must not stop the others
                    log.error(  # noqa: TRY400  a traceback has paths
                        "end not told", extra={"error": where_raised(error)}
                    )
                    answers = [Committed(Commit.LOST, None)] * len(batch)
                wait = FIRST_WAIT_SECONDS
                for (_, then), answer in zip(batch, answers, strict=True):
                    self.untold.popleft()
                    then(answer)
            self._all_told.set()

    def _next(self) -> list[tuple[Said, Told]]:
        """The first ones, of one sort."""
        sort = type(self.untold[0][0])
        batch: list[tuple[Said, Told]] = []
        for one in self.untold:
            if type(one[0]) is not sort or len(batch) == AT_ONCE:
                break
            batch.append(one)
            if sort is str:
                break
        return batch

    async def _tell(self, said: Sequence[Said]) -> Sequence[Committed]:
        first = said[0]
        if isinstance(first, Outcome):
            return await self._broker.commit([one for one in said if isinstance(one, Outcome)])
        if isinstance(first, Release):
            await self._broker.release([one for one in said if isinstance(one, Release)])
            return [Committed(Commit.TAKEN, None)] * len(said)
        return [await self._broker.cancel(first)]
