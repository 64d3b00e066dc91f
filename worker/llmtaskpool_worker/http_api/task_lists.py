"""Many tasks at once: lists by state and label, dead letters, and their replay."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llmtaskpool_worker.disclosure import shown
from llmtaskpool_worker.execution.pool import TaskPool
from llmtaskpool_worker.http_api.auth import sight_of
from llmtaskpool_worker.http_api.errors import ApiError, invalid
from llmtaskpool_worker.http_api.sse import answer
from llmtaskpool_worker.http_api.tasks_api import TaskRoutes
from llmtaskpool_worker.scheduling.task import Asked, TaskState

LIMIT = 20
LIMIT_MAX = 100


class TaskListRoutes:
    """Handlers over a pool; ``routes`` lists them. ``tasks`` shows one."""

    def __init__(self, pool: TaskPool, tasks: TaskRoutes) -> None:
        self._pool, self._tasks = pool, tasks

    def routes(self) -> list[Route]:
        """For starlette."""
        return [
            Route("/v1/tasks", self.tasks, methods=["GET"]),
            Route("/v1/dead-letters", self.dead_letters, methods=["GET"]),
            Route("/v1/tasks/{id}/replay", self.replay, methods=["POST"]),
        ]

    async def tasks(self, request: Request) -> Response:
        """GET /v1/tasks: newest first, by state=, label=NAME:VALUE, after=ID, limit=."""
        return await self._list(request, frozenset(_states(request)))

    async def dead_letters(self, request: Request) -> Response:
        """GET /v1/dead-letters: tasks whose workers were lost with them, newest first."""
        return await self._list(request, frozenset({TaskState.DEAD}))

    async def _list(self, request: Request, states: Collection[TaskState]) -> Response:
        limit = _limit(request)
        after = request.query_params.get("after")
        asked = Asked(
            states=states,
            labels=_labels(request),
            tenant=sight_of(request),
            after=after,
            limit=limit + 1,
        )
        found = await self._pool.list(asked)
        data: list[dict[str, Any]] = [self._tasks.task_json(view) for view in found[:limit]]
        return answer({"object": "list", "data": data, "has_more": len(found) > limit})

    async def replay(self, request: Request) -> Response:
        """POST /v1/tasks/{id}/replay: a dead letter waits again, with no attempts."""
        there = await self._tasks.view_of(request)
        view = await self._pool.replay(there.id)
        if view is not None:
            return answer(
                self._tasks.accepted_json(view), 202, {"location": f"/v1/tasks/{view.id}"}
            )
        raise ApiError(
            409,
            f"The task is {there.state.value} and no dead letter: submit it anew to run it again.",
            param="id",
            code="not_a_dead_letter",
        )


def _states(request: Request) -> list[TaskState]:
    given = request.query_params.get("state")
    if given is None:
        return list(TaskState)
    known = {state.value: state for state in TaskState}
    for name in given.split(","):
        if name not in known:
            raise invalid("state", f"state is {shown(name)}: use {', '.join(known)}.")
    return [known[name] for name in given.split(",")]


def _labels(request: Request) -> dict[str, str]:
    found = {}
    for given in request.query_params.getlist("label"):
        name, colon, value = given.partition(":")
        if not (name and colon):
            raise invalid("label", f"label is {shown(given)}: send NAME:VALUE.")
        found[name] = value
    return found


def _limit(request: Request) -> int:
    given = request.query_params.get("limit", str(LIMIT))
    if not given.isdecimal() or not 1 <= int(given[:9]) <= LIMIT_MAX:
        raise invalid("limit", f"limit is {shown(given)}: send a number from 1 to {LIMIT_MAX}.")
    return int(given)
