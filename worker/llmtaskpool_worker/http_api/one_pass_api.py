"""The routes whose model runs once over its input: rerank, score, classify, tag, answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import ceil
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llmtaskpool_worker.http_api.answering import Answering
from llmtaskpool_worker.http_api.bodies import Bodies
from llmtaskpool_worker.http_api.catalog import Catalog
from llmtaskpool_worker.http_api.evaluations import evaluation
from llmtaskpool_worker.http_api.forwarded_requests import Forwarding
from llmtaskpool_worker.http_api.forwarded_scores import ForwardedScores
from llmtaskpool_worker.http_api.forwarding import ForwardRoutes
from llmtaskpool_worker.http_api.one_pass_schema import RerankRequest, parse_one_pass
from llmtaskpool_worker.http_api.openai_schema import WEIGHT_HEADER, CommonFields, weight_of
from llmtaskpool_worker.http_api.sse import answer
from llmtaskpool_worker.scheduling.task import Evaluated, TaskRequest

Json = dict[str, Any]


class OnePassRoutes:
    """Handlers over a pool and its models; ``routes`` lists them."""

    def __init__(
        self,
        forward: ForwardRoutes,
        answering: Answering,
        catalog: Catalog,
        bodies: Bodies,
        *,
        wall_clock: Callable[[], float],
    ) -> None:
        self._answering, self._catalog, self._bodies = answering, catalog, bodies
        self._wall_clock = wall_clock
        self._servers = ForwardedScores(forward, answering, catalog)

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
            "/v1/detect": self.detect,
        }
        return [Route(path, handler, methods=["POST"]) for path, handler in handlers.items()]

    async def rerank(self, request: Request) -> Response:
        """POST /v1/rerank: documents by how well they fit a query."""
        return await self._run(request, "rerank", _jina)

    async def rerank_v2(self, request: Request) -> Response:
        """POST /v2/rerank: the same, in the shape of Cohere's second version."""
        return await self._run(request, "rerank", _cohere)

    async def score(self, request: Request) -> Response:
        """POST /v1/score: how well texts go together."""
        return await self._run(request, "score", _listed)

    async def classify(self, request: Request) -> Response:
        """POST /v1/classify: the label of each text."""
        return await self._run(request, "classify", _listed)

    async def tag(self, request: Request) -> Response:
        """POST /v1/tag: the entities in each text."""
        return await self._run(request, "tag", _listed)

    async def answer(self, request: Request) -> Response:
        """POST /v1/answer: the words of a text that answer a question."""
        return await self._run(request, "answer", _listed)

    async def detect(self, request: Request) -> Response:
        """POST /v1/detect: the objects in pictures, and where they are."""
        return await self._run(request, "detect", _listed)

    async def _run(self, request: Request, kind: str, shape: Shape) -> Response:
        """An answer in ``shape``, or a server's own. Raises one of ANSWERED."""
        read = self._servers.read_or(kind, partial(parse_one_pass, kind))
        body = await self._bodies.read(request, read)
        if isinstance(body, Forwarding):
            return await self._servers.serve(request, body)
        task = await task_of(kind, body, self._catalog, request.headers.get(WEIGHT_HEADER))
        if not isinstance(body, RerankRequest):  # whose documents are in its answer
            self._bodies.give_back(request)
        (view,) = await self._answering.some_at_a_time(request, [task])
        assert isinstance(view.result, Evaluated)  # noqa: S101  what this kind gives
        head = {
            "id": f"{kind}-{view.id}",
            "object": "list",
            "created": int(self._wall_clock()),
            "model": task.model,
        }
        return answer(shape(head, body, view.result))


Shape = Callable[[Json, Any, Evaluated], Json]
"""Makes an answer of its head, the body that asked for it, and the result."""


def _listed(head: Json, _body: Any, result: Evaluated) -> Json:
    return {**head, **result.value, "usage": _usage(result)}


def _jina(head: Json, body: RerankRequest, result: Evaluated) -> Json:
    documents = None if body.return_documents is False else body.texts()
    results = _with_documents(result.value["results"], documents)
    return {"id": head["id"], "model": head["model"], "usage": _usage(result), "results": results}


def _cohere(head: Json, body: RerankRequest, result: Evaluated) -> Json:
    documents = body.texts() if body.return_documents else None
    results = _with_documents(result.value["results"], documents)
    meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
    return {"id": head["id"], "results": results, "meta": meta}


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
    if "duration" in result.value:  # of sound, which OpenAI counts in seconds
        return {**result.value, "usage": duration_usage(result)}
    return {**result.value, "usage": _usage(result)}


def duration_usage(result: Evaluated) -> Json:
    """Of a file of sound: its seconds, begun ones as whole ones."""
    return {"type": "duration", "seconds": ceil(result.value["duration"])}


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
