"""Several tasks that one HTTP request stands for: submitted, awaited and cancelled together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from msgspec.structs import replace

from llmtaskpool_worker.execution.pool import Rejected, TaskPool, Unsuccessful
from llmtaskpool_worker.scheduling.task import (
    TERMINAL,
    Forwarded,
    Generated,
    StateChanged,
    TaskEvent,
    TaskRequest,
    TaskState,
    TaskView,
)

WINDOW = 64
"""At most so many tasks of one embeddings request wait or run at once: others get their turn."""


_FULL = frozenset({"queue_full", "tenant_full"})


class Batch:
    """The tasks of one request. ``cancel`` in a ``finally`` gives back what is still held.

    Until then, or until it was handed out, no result of them is given up. ``tenant``: whose.
    """

    def __init__(self, pool: TaskPool, tenant: str = "") -> None:
        self._pool, self._tenant = pool, tenant
        self._ids: list[str] = []
        self._ended: set[str] = set()

    @property
    def size(self) -> int:
        """How many tasks were submitted."""
        return len(self._ids)

    async def submit_all(self, requests: Sequence[TaskRequest]) -> TaskView:
        """Submit all or none; the first one's view. Raises Rejected when one is."""
        try:
            views = [await self._submit(request) for request in requests]
        except BaseException:
            self.cancel()
            raise
        return views[0]

    async def _submit(self, request: TaskRequest) -> TaskView:
        view = await self._pool.submit(replace(request, attended=True, tenant=self._tenant))
        self._ids.append(view.id)
        return view

    async def results(self) -> list[TaskView]:
        """All views once all have succeeded. Raises Unsuccessful for the first that did not."""
        return [await self._succeeded(task_id) for task_id in self._ids]

    async def run(self, requests: Sequence[TaskRequest]) -> list[TaskView]:
        """Submit WINDOW at a time and gather. Only the first rejection is the client's to see:

        once some are accepted, a full queue means waiting for our own to end.
        """
        views: list[TaskView] = []
        waiting = list(reversed(requests))
        while waiting or len(views) < len(self._ids):
            try:
                while waiting and len(self._ids) - len(views) < WINDOW:
                    await self._submit(waiting[-1])
                    waiting.pop()
            except Rejected as rejected:
                if rejected.code not in _FULL or len(self._ids) == len(views):
                    raise
            views.append(await self._succeeded(self._ids[len(views)]))
        return views

    async def _succeeded(self, task_id: str) -> TaskView:
        view = await self._pool.wait(task_id)
        self._ended.add(task_id)
        self._pool.let_go(task_id)
        if view.state is not TaskState.SUCCEEDED:
            raise Unsuccessful(view)
        return view

    def cancel(self) -> None:
        """Cancel what has not ended, let go of what has; idempotent."""
        for task_id in self._ids:
            if task_id not in self._ended:
                self._ended.add(task_id)
                self._pool.abandon(task_id)
            self._pool.let_go(task_id)

    def events(self, index: int) -> AsyncIterator[TaskEvent]:
        """All events of the index-th task."""
        return self._pool.events(self._ids[index])

    async def is_success(self, index: int, happened: StateChanged) -> bool:
        """Whether a task ended well. Raises Unsuccessful when it ended otherwise."""
        if happened.state not in TERMINAL:
            return False
        self._ended.add(self._ids[index])
        if happened.state is TaskState.SUCCEEDED:
            return True
        view = await self._pool.get(self._ids[index])
        if view is None:  # forgotten already: its event must do
            raise _lost()
        raise Unsuccessful(view)

    async def result(self, index: int) -> Generated:
        """The result of a generation that succeeded. Raises Rejected when it is not kept."""
        view = await self._pool.get(self._ids[index])
        if view is None or not isinstance(view.result, Generated):
            raise _lost()
        return view.result

    async def forwarded(self, index: int) -> Forwarded:
        """What a server answered to the index-th task. Raises Rejected when it is not kept."""
        view = await self._pool.get(self._ids[index])
        if view is None or not isinstance(view.result, Forwarded):
            raise _lost()
        return view.result

    async def generated(self) -> list[Generated]:
        """The results of all."""
        return [await self.result(index) for index in range(self.size)]


def _lost() -> Rejected:
    return Rejected("lost", "The task's result was given up to save memory.")


async def merged_events(batch: Batch) -> AsyncIterator[tuple[int, TaskEvent]]:
    """The events of all tasks of a batch as they come, each with its task's index."""
    if batch.size == 1:
        async for happened in batch.events(0):
            yield 0, happened
        return
    merged: asyncio.Queue[tuple[int, TaskEvent] | Exception | None] = asyncio.Queue(maxsize=256)

    async def read(index: int) -> None:
        end: Exception | None = None
        try:
            async for happened in batch.events(index):
                await merged.put((index, happened))
        except Exception as error:
            end = error
        await merged.put(end)

    readers = [asyncio.ensure_future(read(index)) for index in range(batch.size)]
    try:
        running = batch.size
        while running:
            got = await merged.get()
            if isinstance(got, Exception):
                raise got
            if got is None:
                running -= 1
            else:
                yield got
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
