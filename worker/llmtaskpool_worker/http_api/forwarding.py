"""The OpenAI routes for models of servers: their requests wait in this pool's queue."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from llmtaskpool_worker.execution.submitting import Batch, merged_events
from llmtaskpool_worker.http_api.answering import Answering, Forms
from llmtaskpool_worker.http_api.catalog import Catalog, Model
from llmtaskpool_worker.http_api.errors import ANSWERED, as_answer, invalid
from llmtaskpool_worker.http_api.forwarded_answers import ForwardedShape
from llmtaskpool_worker.http_api.forwarded_requests import Forwarding, forwarding
from llmtaskpool_worker.http_api.openai_schema import WEIGHT_HEADER, weight_of
from llmtaskpool_worker.http_api.sse import DONE, answer, encode, event, with_list
from llmtaskpool_worker.http_api.turns import Turn
from llmtaskpool_worker.scheduling.task import (
    ChoiceDelta,
    Forwarded,
    ForwardRoute,
    Result,
    StateChanged,
    TaskRequest,
    TaskView,
)

T = TypeVar("T")


class ForwardRoutes:
    """Serves what ``read_or`` found to be for a server's model."""

    def __init__(
        self, answering: Answering, catalog: Catalog, *, wall_clock: Callable[[], float]
    ) -> None:
        self._answering, self._catalog, self._wall_clock = answering, catalog, wall_clock

    def read_or(
        self, route: ForwardRoute, parse: Callable[[dict[str, Any]], T]
    ) -> Callable[[dict[str, Any]], T | Forwarding]:
        """A reader of bodies: as the server's where the model is one's, else by ``parse``."""

        def read(given: dict[str, Any]) -> T | Forwarding:
            model = self._catalog.of_server(given)
            return parse(given) if model is None else forwarding(route, given, model)

        return read

    async def serve(self, request: Request, wanted: Forwarding) -> Response:
        """The answer, whole or as a stream."""
        model, tasks = await self.tasks_of(request, wanted)
        if wanted.route == "embeddings":
            return await _embeddings(model, await self._answering.some_at_a_time(request, tasks))
        fields, route, options = wanted.fields, wanted.route, wanted.fields.stream_options
        with_usage = options is not None and options.include_usage

        def forms_of(first: TaskView) -> Forms:
            created = int(self._wall_clock())
            shape = ForwardedShape(route, first.id, created, model.name, fields.n)
            return Forms(
                partial(_whole, shape), lambda batch: _frames(batch, shape, with_usage=with_usage)
            )

        return await self._answering.generations(request, tasks, forms_of, stream=fields.stream)

    async def tasks_of(
        self, request: Request, wanted: Forwarding
    ) -> tuple[Model, list[TaskRequest]]:
        """What is submitted for a request. Raises ApiError."""
        model = self._catalog.get(wanted.fields.model, *wanted.tasks)
        weight = weight_of(wanted.fields, request.headers.get(WEIGHT_HEADER))
        tasks = [
            TaskRequest(
                kind=wanted.kind,
                payload=payload,
                model=model.name,
                weight=weight,
                timeout_seconds=wanted.fields.timeout_seconds,
                queue_timeout_seconds=wanted.fields.queue_timeout_seconds,
            )
            for payload in await counted(model, wanted)
        ]
        return model, tasks


async def _whole(shape: ForwardedShape, results: Sequence[Result]) -> Response:
    return answer(shape.whole([one for one in results if isinstance(one, Forwarded)]))


async def _frames(batch: Batch, shape: ForwardedShape, *, with_usage: bool) -> AsyncIterator[bytes]:
    """The frames of a stream. Raises one of ANSWERED as long as nothing was yielded."""
    started = False
    try:
        async for index, happened in merged_events(batch):
            if isinstance(happened, ChoiceDelta):
                started = True
                yield shape.chunk(index, happened.choice, with_usage=with_usage)
            elif isinstance(happened, StateChanged):
                await batch.is_success(index, happened)
        results = [await batch.forwarded(index) for index in range(batch.size)]
    except ANSWERED as error:
        if not started:
            raise
        yield event(encode(as_answer(error).body()))
        return
    if with_usage:
        yield shape.last(results)
    yield DONE


async def _embeddings(model: Model, views: Sequence[TaskView]) -> Response:
    turn, data = Turn(), list[bytes]()
    tokens = 0
    for view in views:
        if isinstance(view.result, Forwarded):
            tokens += view.result.prompt_tokens
            for one in view.result.value:
                shown = {"object": "embedding", "index": len(data), "embedding": one}
                data.append(encode(shown))
                await turn.pass_on()
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return with_list({"object": "list", "model": model.name, "usage": usage}, "data", data)


async def counted(model: Model, wanted: Forwarding) -> list[Any]:
    """The payloads, with their prompts' tokens where the model has a tokenizer to count them."""
    if model.counter is None:
        return wanted.payloads
    each = len(wanted.payloads) // len(wanted.texts)
    found = []
    for at, texts in enumerate(wanted.texts):
        tokens = await model.count(texts)
        found += [replace(one, prompt_tokens=tokens) for one in wanted.payloads[at * each :][:each]]
    return found


def payload_of(route: ForwardRoute, given: Mapping[str, Any], model: Model) -> Forwarding:
    """One task's request. Raises ApiError 400 when it asks for several."""
    wanted = forwarding(route, given, model)
    if len(wanted.payloads) != 1:
        raise invalid("input", "input holds several prompts: submit a task for each.")
    return wanted
