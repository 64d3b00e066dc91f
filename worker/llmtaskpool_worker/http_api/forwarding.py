"""The OpenAI routes for models of servers: their requests wait in this pool's queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from llmtaskpool_worker.execution.pool import TaskPool
from llmtaskpool_worker.execution.submitting import Batch, merged_events
from llmtaskpool_worker.http_api.bodies import Bodies
from llmtaskpool_worker.http_api.catalog import Catalog, Model
from llmtaskpool_worker.http_api.errors import ANSWERED, as_answer, invalid
from llmtaskpool_worker.http_api.forwarded_answers import ForwardedShape
from llmtaskpool_worker.http_api.forwarded_requests import KINDS, Forwarding, forwarding
from llmtaskpool_worker.http_api.openai_schema import WEIGHT_HEADER, weight_of
from llmtaskpool_worker.http_api.sse import (
    DONE,
    Pieces,
    answer,
    encode,
    event,
    streamed,
    while_connected,
)
from llmtaskpool_worker.scheduling.task import (
    ChoiceDelta,
    Forwarded,
    ForwardRoute,
    StateChanged,
    TaskRequest,
)

T = TypeVar("T")


class ForwardRoutes:
    """Serves what ``read_or`` found to be for a server's model."""

    def __init__(
        self,
        pool: TaskPool,
        catalog: Catalog,
        bodies: Bodies,
        *,
        heartbeat_seconds: float,
        wall_clock: Callable[[], float],
    ) -> None:
        self._pool, self._catalog, self._bodies = pool, catalog, bodies
        self._heartbeat_seconds, self._wall_clock = heartbeat_seconds, wall_clock

    def read_or(
        self, route: ForwardRoute, parse: Callable[[dict[str, Any]], T]
    ) -> Callable[[dict[str, Any]], T | Forwarding]:
        """A reader of bodies: as the server's where the model is one's, else by ``parse``."""

        def read(given: dict[str, Any]) -> T | Forwarding:
            return forwarding(route, given) if self._catalog.forwards(given) else parse(given)

        return read

    async def serve(self, request: Request, wanted: Forwarding) -> Response:
        """The answer, whole or as a stream."""
        embeds = wanted.route == "embeddings"
        model = self._catalog.get(wanted.fields.model, "embed" if embeds else "generate")
        weight = weight_of(wanted.fields, request.headers.get(WEIGHT_HEADER))
        tasks = [
            TaskRequest(
                kind=KINDS[wanted.route],
                payload=payload,
                model=model.name,
                weight=weight,
                timeout_seconds=wanted.fields.timeout_seconds,
                queue_timeout_seconds=wanted.fields.queue_timeout_seconds,
            )
            for payload in await counted(model, wanted)
        ]
        if embeds:
            return await self._embeddings(request, model, tasks)
        return await self._generate(request, wanted, model, tasks)

    async def _generate(
        self, request: Request, wanted: Forwarding, model: Model, tasks: list[TaskRequest]
    ) -> Response:
        batch, fields = Batch(self._pool), wanted.fields
        try:
            first = await batch.submit_all(tasks)
            self._bodies.give_back(request)
            created = int(self._wall_clock())
            shape = ForwardedShape(wanted.route, first.id, created, model.name, fields.n)
            del wanted, tasks
            if not fields.stream:
                views = await while_connected(request.receive, batch.results())
                results = [one.result for one in views]
                return answer(shape.whole([r for r in results if isinstance(r, Forwarded)]))
            options = fields.stream_options
            frames = self._frames(batch, shape, options is not None and options.include_usage)
            # Until the server has said something, its refusal can still be told by a status code.
            return await streamed(
                request.receive, frames, self._heartbeat_seconds, on_close=batch.cancel
            )
        except BaseException:
            batch.cancel()
            raise
        finally:
            if not fields.stream:
                batch.cancel()

    async def _frames(
        self, batch: Batch, shape: ForwardedShape, with_usage: bool
    ) -> AsyncIterator[bytes]:
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

    async def _embeddings(
        self, request: Request, model: Model, tasks: list[TaskRequest]
    ) -> Response:
        batch = Batch(self._pool)
        try:
            views = await while_connected(request.receive, batch.run(tasks))
        finally:
            batch.cancel()
        data: list[bytes] = []
        tokens = 0
        for view in views:
            if isinstance(view.result, Forwarded):
                tokens += view.result.prompt_tokens
                for one in view.result.value:
                    shown = {"object": "embedding", "index": len(data), "embedding": one}
                    data.append(encode(shown))
                    await asyncio.sleep(0)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return Pieces({"object": "list", "model": model.name, "usage": usage}, "data", data)


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


def payload_of(route: ForwardRoute, given: Mapping[str, Any]) -> Forwarding:
    """One task's request. Raises ApiError 400 when it asks for several."""
    wanted = forwarding(route, given)
    if len(wanted.payloads) != 1:
        raise invalid("input", "input holds several prompts: submit a task for each.")
    return wanted
