"""How the tasks of one OpenAI request are answered: whole, or as a stream; cancelled with it.

One frame for models of our own engines and of servers: they differ in what an answer looks like.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from llmtaskpool_worker.execution.pool import TaskPool
from llmtaskpool_worker.execution.submitting import Batch
from llmtaskpool_worker.http_api.auth import tenant_of
from llmtaskpool_worker.http_api.bodies import Bodies
from llmtaskpool_worker.http_api.sse import streamed, while_connected
from llmtaskpool_worker.scheduling.task import Result, TaskRequest, TaskView


@dataclass(frozen=True, slots=True)
class Forms:
    """What an answer is made of, once its tasks are there: the whole of it, or its frames."""

    whole: Callable[[list[Result]], Awaitable[Response]]
    frames: Callable[[Batch], AsyncIterator[bytes]]


class Answering:
    """Submits the tasks of requests to ``pool``. A client that leaves takes its tasks with it."""

    def __init__(self, pool: TaskPool, bodies: Bodies, heartbeat_seconds: float) -> None:
        self._pool, self._bodies = pool, bodies
        self._heartbeat_seconds = heartbeat_seconds

    async def generations(
        self,
        request: Request,
        tasks: Sequence[TaskRequest],
        forms_of: Callable[[TaskView], Forms],
        *,
        stream: bool,
    ) -> Response:
        """All tasks at once, or none. ``forms_of`` is given the first one's view.

        Until a stream's first frame is there, its failure is told by a status code.
        """
        batch = Batch(self._pool, tenant_of(request))
        try:
            first = await batch.submit_all(tasks)
            self._bodies.give_back(request)
            forms = forms_of(first)
            if not stream:
                views = await while_connected(request.receive, batch.results())
                return await forms.whole([one.result for one in views if one.result is not None])
            return await streamed(
                request.receive,
                forms.frames(batch),
                self._heartbeat_seconds,
                on_close=batch.cancel,
            )
        except BaseException:
            batch.cancel()
            raise
        finally:
            if not stream:
                batch.cancel()

    async def some_at_a_time(
        self, request: Request, tasks: Sequence[TaskRequest]
    ) -> list[TaskView]:
        """The views of many small tasks that have all succeeded."""
        batch = Batch(self._pool, tenant_of(request))
        try:
            return await while_connected(request.receive, batch.run(tasks))
        finally:
            batch.cancel()
