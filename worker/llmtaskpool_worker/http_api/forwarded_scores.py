"""Rerank, score and classify for models of servers: requests that are answered with scores.

They pass as they are, in the shapes of vLLM, Jina, Cohere and llama.cpp, as one task each: the
server batches what a request holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from pydantic import Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from llmtaskpool_worker.http_api.answering import Answering
from llmtaskpool_worker.http_api.catalog import Catalog, Model
from llmtaskpool_worker.http_api.counting import count_chat, count_keys
from llmtaskpool_worker.http_api.errors import blaming, from_validation, invalid
from llmtaskpool_worker.http_api.forwarded_requests import OURS, ForwardedFields, Forwarding
from llmtaskpool_worker.http_api.forwarding import ForwardRoutes, counted
from llmtaskpool_worker.http_api.openai_schema import INPUTS_MAX
from llmtaskpool_worker.http_api.sse import answer
from llmtaskpool_worker.scheduling.task import Forward, Forwarded, ForwardRoute

_Text = Annotated[str, Field(strict=True, min_length=1)]
_Thing = _Text | dict[str, Any]
_Things = Annotated[list[_Thing], Field(min_length=1, max_length=INPUTS_MAX, fail_fast=True)]
_ONE_OR_MANY = f"a text, or a list of at most {INPUTS_MAX} of them"


class ForwardedRerank(ForwardedFields):
    """Of POST /v1/rerank."""

    query: _Thing = Field(description="a text")
    documents: _Things = Field(description=f"a list of at most {INPUTS_MAX} texts")


class ForwardedScore(ForwardedFields):
    """Of POST /v1/score: pairs as text_1 and text_2, or as queries and documents."""

    text_1: _Thing | _Things | None = Field(None, description=_ONE_OR_MANY)
    text_2: _Thing | _Things | None = Field(None, description=_ONE_OR_MANY)
    queries: _Thing | _Things | None = Field(None, description=_ONE_OR_MANY)
    documents: _Thing | _Things | None = Field(None, description=_ONE_OR_MANY)


class ForwardedClassify(ForwardedFields):
    """Of POST /v1/classify: texts as input, or a chat as messages."""

    input: _Thing | _Things | None = Field(None, description=_ONE_OR_MANY)
    messages: _Things | None = Field(None, description="a list of messages")


_SCHEMAS: Mapping[ForwardRoute, type[ForwardedFields]] = {
    "rerank": ForwardedRerank,
    "score": ForwardedScore,
    "classify": ForwardedClassify,
}


_ROUTES: Mapping[str, ForwardRoute] = {str(route): route for route in _SCHEMAS}

T = TypeVar("T")


class ForwardedScores:
    """Serves these requests for models of servers."""

    def __init__(self, forward: ForwardRoutes, answering: Answering, catalog: Catalog) -> None:
        self._forward, self._answering, self._catalog = forward, answering, catalog

    def read_or(
        self, kind: str, read: Callable[[dict[str, Any]], T]
    ) -> Callable[[dict[str, Any]], T | Forwarding]:
        """Reads a body for a server's model as it is, and others by ``read``."""
        route = _ROUTES.get(kind)

        def either(given: dict[str, Any]) -> T | Forwarding:
            if route is not None and self._catalog.forwards(given):
                return scores(route, given)
            return read(given)

        return either

    async def serve(self, request: Request, wanted: Forwarding) -> Response:
        """The server's answer, with the pool's id and the model's name here."""
        model, tasks = await self._forward.tasks_of(request, wanted)
        (view,) = await self._answering.some_at_a_time(request, tasks)
        assert isinstance(view.result, Forwarded)  # noqa: S101 - its payload is a Forward
        own = {"id": f"{wanted.route}-{view.id}", "model": model.name}
        return answer(view.result.value | own)


def scores(route: ForwardRoute, given: Mapping[str, Any]) -> Forwarding:
    """A body for a server. Raises ApiError 400 naming what can't be used."""
    schema = _SCHEMAS[route]
    count_keys(given, "body")
    count_chat(given)
    there = {name: value for name, value in given.items() if value is not None}
    try:
        fields = schema.model_validate({k: v for k, v in there.items() if k in schema.model_fields})
    except ValidationError as error:
        raise from_validation(error, schema) from None
    body = {name: value for name, value in there.items() if name not in OURS}
    names = [name for name in schema.model_fields if name not in ForwardedFields.model_fields]
    texts = [text for name in names for text in _texts(body.get(name))]
    if not texts:
        raise invalid(names[0], f"{names[0]} is missing: {route} has nothing to read.")
    if route == "rerank":  # the query is read again with each document
        texts += texts[:1] * (len(body["documents"]) - 1)
    payload = Forward(route, msgspec.json.encode(body), sum(map(len, texts)))
    return Forwarding(route, fields, [payload], [texts])


async def score_payload(
    route: ForwardRoute, model: Model, given: object, arguments: Mapping[str, Any]
) -> Forward:
    """Of a task: its ``arguments`` are what the route's body holds. Raises ApiError 400."""
    if given is not None:
        raise invalid("input", f"input can't be used with kind {route}: use arguments.")
    for name in sorted(OURS & set(arguments)):
        raise invalid(f"arguments.{name}", f"arguments.{name} can't be used here: leave it out.")
    with blaming("arguments.", {}):
        wanted = scores(route, {**arguments, "model": model.name})
    payload: Forward = (await counted(model, wanted))[0]
    return payload


def _texts(value: object) -> list[str]:
    """All texts in a text, an object with a text, or a list of them."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key in ("text", "content") for text in _texts(value.get(key))]
    return [text for one in value for text in _texts(one)] if isinstance(value, list) else []
