"""The routes whose model runs once over its input: rerank, score, classify, tag, answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llmtaskpool_worker.execution.pool import TaskPool
from llmtaskpool_worker.execution.submitting import Batch
from llmtaskpool_worker.http_api.bodies import Bodies
from llmtaskpool_worker.http_api.catalog import Catalog
from llmtaskpool_worker.http_api.evaluations import evaluation
from llmtaskpool_worker.http_api.one_pass_schema import RerankRequest, parse_one_pass
from llmtaskpool_worker.http_api.openai_schema import WEIGHT_HEADER, CommonFields, weight_of
from llmtaskpool_worker.http_api.sse import answer, while_connected
from llmtaskpool_worker.scheduling.task import Evaluated, TaskRequest

Json = dict[str, Any]


class OnePassRoutes:
    """Handlers over a pool and its models; ``routes`` lists them."""

    def __init__(
        self,
        pool: TaskPool,
        catalog: Catalog,
        bodies: Bodies,
        *,
        wall_clock: Callable[[], float],
    ) -> None:
        self._pool, self._catalog, self._bodies = pool, catalog, bodies
        self._wall_clock = wall_clock

    def routes(self) -> list[Route]:
        """For starlette."""
        handlers = {
            "/v1/rerank": self.rerank,
            "/rerank": self.rerank,
            "/v2/rerank": self.rerank_v2,
            "/v1/score": self.score,
            "/score": self.score,
            "/v1/classify": self.classify,
            "/classify": self.classify,
            "/v1/tag": self.tag,
            "/v1/answer": self.answer,
        }
        return [Route(path, handler, methods=["POST"]) for path, handler in handlers.items()]

    async def rerank(self, request: Request) -> Response:
        """POST /v1/rerank: documents by how well they fit a query."""
        body, head, result = await self._run(request, "rerank")
        documents = None if body.return_documents is False else body.texts()
        return answer(
            {"id": head["id"], "model": head["model"], "usage": _usage(result)}
            | {"results": _with_documents(result.value["results"], documents)}
        )

    async def rerank_v2(self, request: Request) -> Response:
        """POST /v2/rerank: the same, in the shape of Cohere's second version."""
        body, head, result = await self._run(request, "rerank")
        documents = body.texts() if body.return_documents else None
        meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
        results = _with_documents(result.value["results"], documents)
        return answer({"id": head["id"], "results": results, "meta": meta})

    async def score(self, request: Request) -> Response:
        """POST /v1/score: how well texts go together."""
        return await self._listed(request, "score")

    async def classify(self, request: Request) -> Response:
        """POST /v1/classify: the label of each text."""
        return await self._listed(request, "classify")

    async def tag(self, request: Request) -> Response:
        """POST /v1/tag: the entities in each text."""
        return await self._listed(request, "tag")

    async def answer(self, request: Request) -> Response:
        """POST /v1/answer: the words of a text that answer a question."""
        return await self._listed(request, "answer")

    async def _listed(self, request: Request, kind: str) -> Response:
        _, head, result = await self._run(request, kind)
        return answer({**head, **result.value, "usage": _usage(result)})

    async def _run(self, request: Request, kind: str) -> tuple[Any, Json, Evaluated]:
        """The body, what an answer begins with, and the result. Raises one of ANSWERED."""
        body = await self._bodies.read(request, partial(parse_one_pass, kind))
        task = await task_of(kind, body, self._catalog, request.headers.get(WEIGHT_HEADER))
        if not isinstance(body, RerankRequest):  # whose documents are in its answer
            self._bodies.give_back(request)
        batch = Batch(self._pool)
        try:
            first = batch.submit_all([task])
            (view,) = await while_connected(request.receive, batch.results())
        finally:
            batch.cancel()
        assert isinstance(view.result, Evaluated)  # noqa: S101  what this kind gives
        head = {
            "id": f"{kind}-{first.id}",
            "object": "list",
            "created": int(self._wall_clock()),
            "model": task.model,
        }
        return body, head, view.result


async def task_of(
    kind: str, body: CommonFields, catalog: Catalog, weight_header: str | None
) -> TaskRequest:
    """The task of a checked body. Raises ApiError naming the field."""
    model, payload = await evaluation(kind, body, catalog)
    return TaskRequest(
        kind=kind,
        payload=payload,
        model=model.name,
        weight=weight_of(body, weight_header),
        timeout_seconds=body.timeout_seconds,
        queue_timeout_seconds=body.queue_timeout_seconds,
    )


def evaluated_json(result: Evaluated) -> Json:
    """A result as a task shows it."""
    return {**result.value, "usage": _usage(result)}


def _usage(result: Evaluated) -> Json:
    return {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens}


def _with_documents(results: list[Json], documents: list[str] | None) -> list[Json]:
    if documents is None:
        return results
    found: list[Mapping[str, Any]] = [
        {"index": one["index"], "document": {"text": documents[one["index"]]}}
        | {"relevance_score": one["relevance_score"]}
        for one in results
    ]
    return [dict(one) for one in found]
