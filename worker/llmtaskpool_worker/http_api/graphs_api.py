"""Graphs: many tasks that depend on each other, in one call, by names of their own."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Any

from msgspec.structs import replace
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llmtaskpool_worker.disclosure import shown
from llmtaskpool_worker.execution.graphs import Graph, GraphBooks
from llmtaskpool_worker.execution.pool import Rejected, TaskPool
from llmtaskpool_worker.execution.references import RESULT, filled
from llmtaskpool_worker.http_api.auth import sees, tenant_of
from llmtaskpool_worker.http_api.bodies import Bodies
from llmtaskpool_worker.http_api.errors import ApiError, blaming, from_validation, invalid
from llmtaskpool_worker.http_api.graph_progress import frames, progress_of
from llmtaskpool_worker.http_api.sse import EventStream, answer
from llmtaskpool_worker.http_api.task_body import TaskBody, task_of
from llmtaskpool_worker.http_api.tasks_api import TaskRoutes
from llmtaskpool_worker.http_api.turns import Turn
from llmtaskpool_worker.scheduling.task import Call, TaskRequest

NODES_MAX = 1000
LABEL = "graph"
"""Tasks of a graph have its id under this label."""

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class GraphBody(BaseModel):
    """The body of POST /v1/graphs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: Annotated[dict[_Name, dict[str, Any]], Field(min_length=1, max_length=NODES_MAX)] = (
        Field(
            description="an object of at most 1000 tasks by name, as for /v1/tasks; their "
            'depends_on, and {"$result": name} in their arguments, name tasks of this graph'
        )
    )


class GraphRoutes:
    """Handlers over a pool; ``routes`` lists them. ``tasks`` checks and shows one.

    ``books`` knows which tasks are of a graph.
    """

    def __init__(
        self,
        pool: TaskPool,
        tasks: TaskRoutes,
        bodies: Bodies,
        books: GraphBooks,
        *,
        heartbeat_seconds: float,
    ) -> None:
        self._pool, self._tasks, self._bodies = pool, tasks, bodies
        self._books, self._heartbeat_seconds = books, heartbeat_seconds

    def routes(self) -> list[Route]:
        """For starlette."""
        return [
            Route("/v1/graphs", self.submit, methods=["POST"]),
            Route("/v1/graphs/{id}", self.look, methods=["GET"]),
            Route("/v1/graphs/{id}/events", self.events, methods=["GET"]),
        ]

    async def look(self, request: Request) -> Response:
        """GET /v1/graphs/{id}: how far it is, and each of its tasks without its result."""
        ids = await self._tasks_of(request)
        progress, views = await progress_of(self._pool, request.path_params["id"], ids)
        tasks = {
            name: self._tasks.task_json(replace(view, result=None)) for name, view in views.items()
        }
        return answer(progress.json() | {"tasks": tasks})

    async def events(self, request: Request) -> Response:
        """GET /v1/graphs/{id}/events: what becomes of it, until its last task has ended."""
        ids = await self._tasks_of(request)
        stream = frames(self._pool, request.path_params["id"], ids, self._tasks.task_json)
        return EventStream(stream, heartbeat_seconds=self._heartbeat_seconds)

    async def _tasks_of(self, request: Request) -> dict[str, str]:
        graph = await self._books.get(request.path_params["id"])
        if graph is None or not sees(request, graph.tenant):
            raise ApiError(
                404,
                f"There is no graph {shown(request.path_params['id'])} here: it never was, or is "
                "older than a week.",
                param="id",
                code="graph_not_found",
            )
        return graph.tasks

    async def submit(self, request: Request) -> Response:
        """POST /v1/graphs: all of its tasks or none; 202 and their ids by name."""
        bodies, order = await self._bodies.read(request, _graph_of)
        graph_id = self._books.new_id()
        turn, wanted = Turn(), dict[str, TaskRequest]()
        for name in order:
            with blaming(f"tasks.{name}.", {}):
                asked = await self._tasks.request_of(bodies[name], request)
            wanted[name] = replace(asked, labels=asked.labels | {LABEL: graph_id})
            await turn.pass_on()
        told = await self._submit(graph_id, wanted, tenant_of(request))
        self._bodies.give_back(request)
        by_name = {name: told[name] for name in bodies}
        head = {"location": f"/v1/graphs/{graph_id}"}
        return answer({"id": graph_id, "object": "graph", "tasks": by_name}, 202, head)

    async def _submit(
        self, graph_id: str, wanted: Mapping[str, TaskRequest], tenant: str
    ) -> dict[str, dict[str, Any]]:
        """In their order; when one is refused the others are taken back."""
        ids: dict[str, str] = {}
        told: dict[str, dict[str, Any]] = {}
        try:
            for name, request in wanted.items():
                view = await self._pool.submit(_with_ids(request, ids))
                ids[name] = view.id
                told[name] = self._tasks.accepted_json(view)
            await self._books.keep(graph_id, Graph(ids, tenant))
        except Rejected:
            for task_id in ids.values():
                with suppress(Rejected):
                    await self._pool.cancel(task_id)
            raise
        return told


def _graph_of(body: Mapping[str, Any]) -> tuple[dict[str, TaskBody], list[str]]:
    """The tasks by name, and their names in an order in which each comes after its parents."""
    try:
        graph = GraphBody.model_validate(body)
    except ValidationError as error:
        raise from_validation(error, GraphBody) from None
    tasks: dict[str, TaskBody] = {}
    for name, one in graph.tasks.items():
        with blaming(f"tasks.{name}.", {}):
            tasks[name] = task_of(one)
    for name, task in tasks.items():
        for parent in task.depends_on:
            if parent not in tasks:
                raise invalid(
                    f"tasks.{name}.depends_on",
                    f"tasks.{name}.depends_on names {shown(parent)}, which is no task of this "
                    "graph.",
                )
    try:
        order = [*TopologicalSorter({n: t.depends_on for n, t in tasks.items()}).static_order()]
    except CycleError as error:
        path = " -> ".join(reversed(error.args[1]))
        raise ApiError(
            400,
            f"The graph has a circle, so none of these could ever begin: {path}. Take one of these "
            "dependencies out.",
            param="tasks",
            code="circular_dependency",
        ) from None
    return tasks, order


def _with_ids(request: TaskRequest, ids: Mapping[str, str]) -> TaskRequest:
    """The same with ids in the place of names."""
    of = request.dependencies
    if of is None:
        return request
    of = replace(of, parents=tuple(ids[name] for name in of.parents))
    payload = request.payload
    if isinstance(payload, Call):
        named = {name: {RESULT: task_id} for name, task_id in ids.items()}
        payload = Call(filled(payload.arguments, named))
    return replace(request, dependencies=of, payload=payload)
