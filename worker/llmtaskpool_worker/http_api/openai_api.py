"""The OpenAI routes: chat completions, completions, embeddings and models."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llmtaskpool_worker.execution.pool import TaskPool
from llmtaskpool_worker.execution.submitting import Batch, merged_events
from llmtaskpool_worker.http_api.answering import Answering, Forms
from llmtaskpool_worker.http_api.audio_api import AudioRoutes
from llmtaskpool_worker.http_api.bodies import Bodies
from llmtaskpool_worker.http_api.catalog import Catalog, Model
from llmtaskpool_worker.http_api.errors import ANSWERED, as_answer, invalid
from llmtaskpool_worker.http_api.forwarded_requests import Forwarding
from llmtaskpool_worker.http_api.forwarding import ForwardRoutes
from llmtaskpool_worker.http_api.inference import InferenceRoutes
from llmtaskpool_worker.http_api.one_pass_api import OnePassRoutes
from llmtaskpool_worker.http_api.openai_answers import ChatShape, CompletionShape, Shape
from llmtaskpool_worker.http_api.openai_schema import (
    WEIGHT_HEADER,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    named,
    parse,
    weight_of,
)
from llmtaskpool_worker.http_api.sse import (
    DONE,
    answer,
    encode,
    event,
    with_list,
)
from llmtaskpool_worker.http_api.structured import checked
from llmtaskpool_worker.http_api.tool_answers import ToolShape
from llmtaskpool_worker.http_api.translate_api import TranslateRoutes
from llmtaskpool_worker.http_api.turns import Turn
from llmtaskpool_worker.scheduling.task import (
    ChoiceDelta,
    Embed,
    Embedded,
    Generate,
    Generated,
    Result,
    TaskRequest,
    TaskState,
    TaskView,
    TextDelta,
)


class OpenAIRoutes:
    """Handlers over a pool and its models; ``routes`` lists them."""

    def __init__(
        self,
        pool: TaskPool,
        catalog: Catalog,
        bodies: Bodies,
        *,
        heartbeat_seconds: float,
        wall_clock: Callable[[], float],
    ) -> None:
        self._catalog = catalog
        self._bodies = bodies
        self._wall_clock = wall_clock
        self._answering = Answering(pool, bodies, heartbeat_seconds)
        self._forward = ForwardRoutes(self._answering, catalog, wall_clock=wall_clock)
        self._tables = InferenceRoutes(pool, self._answering, catalog, bodies)
        self._audio = AudioRoutes(self._answering, catalog, bodies)
        self._translate = TranslateRoutes(self._answering, catalog, bodies)
        self._once = OnePassRoutes(
            self._forward, self._answering, catalog, bodies, wall_clock=wall_clock
        )

    def routes(self) -> list[Route]:
        """For starlette."""
        return [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{model:path}", self.model, methods=["GET"]),
            *self._once.routes(),
            *self._tables.routes(),
            *self._translate.routes(),
            *self._audio.routes(),
        ]

    async def models(self, _request: Request) -> Response:
        """GET /v1/models."""
        listed = [_listed(name, model) for name, model in self._catalog.all()]
        return answer({"object": "list", "data": listed})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{id}."""
        name = request.path_params["model"]
        return answer(_listed(name, self._catalog.get(name)))

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        read = self._forward.read_or("chat/completions", chat_of)
        wanted = await self._bodies.read(request, read)
        if isinstance(wanted, Forwarding):
            return await self._forward.serve(request, wanted)
        body, messages = wanted
        del wanted
        model = self._catalog.get(body.model, "generate")
        calls, grammar = body.calling, await grammar_of(body)
        if calls is not None and body.tool_choice in (None, "auto") and not model.reads_tools():
            raise invalid(
                "tools",
                f"the chat template of {model.name} tells a model of no tools: send tool_choice "
                '"required" or one by name, "none", or ask a model that knows tools.',
                code="unsupported_value",
            )
        prompt = await model.encode_chat(messages, () if calls is None else calls.told)
        del messages
        tasks = generations("chat", body, model, [prompt], _header(request), grammar)
        # Not kept for as long as it is answered.
        body = body.model_copy(update={"messages": [], "tools": []})
        shape = ChatShape if calls is None else partial(ToolShape, calling=calls)
        return await self._generate(request, body, model, tasks, shape)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        read = self._forward.read_or("completions", partial(parse, CompletionRequest))
        body = await self._bodies.read(request, read)
        if isinstance(body, Forwarding):
            return await self._forward.serve(request, body)
        model = self._catalog.get(body.model, "generate")
        prompts = await model.encode_all(named("prompt", body.prompt))
        grammar = await grammar_of(body)
        tasks = generations("generate", body, model, prompts, _header(request), grammar)
        body = body.model_copy(update={"prompt": ""})  # as in a chat
        return await self._generate(request, body, model, tasks, CompletionShape)

    async def _generate(
        self,
        request: Request,
        body: ChatRequest | CompletionRequest,
        model: Model,
        tasks: Sequence[TaskRequest],
        shape_of: Callable[..., Shape],
    ) -> Response:
        def forms_of(first: TaskView) -> Forms:
            shape = shape_of(
                task_id=first.id,
                created=int(self._wall_clock()),
                model=model,
                service_tier=body.service_tier,
                with_logprobs=body.alternatives() is not None,
                prompt_tokens=[_prompt_tokens(task) for task in tasks],
                chunk_usage=_chunk_usage(body),
            )
            return Forms(
                partial(_whole, shape, body), lambda batch: self._frames(batch, shape, body)
            )

        return await self._answering.generations(request, tasks, forms_of, stream=body.stream)

    async def _frames(
        self, batch: Batch, shape: Shape, body: ChatRequest | CompletionRequest
    ) -> AsyncIterator[bytes]:
        """The frames of a stream. Raises one of ANSWERED as long as nothing was yielded."""
        started = False
        try:
            async for chunks in _chunks(batch, shape):
                started = True
                yield b"".join(event(encode(chunk)) for chunk in chunks)
        except ANSWERED as error:
            if not started:
                raise
            yield event(encode(as_answer(error).body()))
            return
        if body.stream_options is not None and body.stream_options.include_usage:
            yield event(encode(shape.usage_chunk(await batch.generated(), body.n)))
        yield DONE

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings."""
        read = self._forward.read_or("embeddings", partial(parse, EmbeddingRequest))
        body = await self._bodies.read(request, read)
        if isinstance(body, Forwarding):
            return await self._forward.serve(request, body)
        model = self._catalog.get(body.model, "embed")
        if body.dimensions is not None and body.dimensions != model.dimensions:
            raise invalid(
                "dimensions",
                f"dimensions is {body.dimensions}: {model.name} makes {model.dimensions}. "
                "Leave it out.",
                code="unsupported_value",
            )
        inputs = await model.encode_all(named("input", body.input))
        weight = weight_of(body, _header(request))
        tasks = [
            TaskRequest(
                kind="embed",
                payload=Embed(tokens),
                model=model.name,
                weight=weight,
                timeout_seconds=body.timeout_seconds,
                queue_timeout_seconds=body.queue_timeout_seconds,
            )
            for tokens in inputs
        ]
        views = await self._answering.some_at_a_time(request, tasks)
        results = [view.result for view in views if isinstance(view.result, Embedded)]
        prompt_tokens = sum(result.prompt_tokens for result in results)
        turn, data = Turn(), []
        for index, result in enumerate(results):
            one = {"object": "embedding", "index": index, "embedding": _vector(result, body)}
            data.append(encode(one))
            await turn.pass_on()
        around = {
            "object": "list",
            "model": model.name,
            "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens},
        }
        return with_list(around, "data", data)


def generations(
    kind: str,
    body: ChatRequest | CompletionRequest,
    model: Model,
    prompts: Sequence[tuple[int, ...]],
    weight_header: str | None,
    grammar: str | None,
) -> list[TaskRequest]:
    """One task per prompt and choice, in OpenAI's order: all choices of a prompt together.

    ``grammar`` is ``grammar_of(body)``. Raises ApiError 400.
    """
    model.check_tokens("logit_bias", map(int, body.logit_bias))
    model.check_tokens("stop_token_ids", body.stop_token_ids)
    weight = weight_of(body, weight_header)
    field, wanted = body.wanted_tokens()
    of = "messages" if kind == "chat" else "prompt"
    if wanted is None and kind == "generate":
        wanted = _COMPLETION_TOKENS
        bounds = [min(wanted, model.max_tokens(field, None, len(p), of)) for p in prompts]
    else:
        bounds = [model.max_tokens(field, wanted, len(p), of) for p in prompts]
    return [
        TaskRequest(
            kind=kind,
            payload=Generate(
                prompt=prompt,
                max_tokens=bound,
                sampling=replace(body.sampling(choice), grammar=grammar),
                stop=body.stops(),
                ignore_eos=body.ignore_eos,
            ),
            model=model.name,
            weight=weight,
            timeout_seconds=body.timeout_seconds,
            queue_timeout_seconds=body.queue_timeout_seconds,
        )
        for prompt, bound in zip(prompts, bounds, strict=True)
        for choice in range(body.n)
    ]


async def grammar_of(body: ChatRequest | CompletionRequest) -> str | None:
    """What the answer has to keep, checked; None: nothing. Raises ApiError 400."""
    wish = body.wish()
    return None if wish is None else await checked(wish)


_COMPLETION_TOKENS = 16
"""OpenAI's default of max_tokens for /v1/completions."""


def chat_of(given: dict[str, Any]) -> tuple[ChatRequest, list[dict[str, Any]]]:
    """A checked chat, and its messages as a template wants them. Raises ApiError 400."""
    body = parse(ChatRequest, given)
    return body, [message.as_template() for message in body.messages]


async def _whole(
    shape: Shape, body: ChatRequest | CompletionRequest, results: Sequence[Result]
) -> Response:
    generated = [one for one in results if isinstance(one, Generated)]
    if body.alternatives() is None:
        return answer(shape.whole(generated, body.n))
    return await asyncio.to_thread(_in_pieces, shape, generated, body.n)


def _in_pieces(shape: Shape, results: Sequence[Generated], choices: int) -> Response:
    """An answer with log-probabilities, which is some hundred times its text, made in a thread."""
    whole = shape.whole(results, choices)
    each = [encode(choice) for choice in whole.pop("choices")]
    return with_list(whole, "choices", each)


async def _chunks(batch: Batch, shape: Shape) -> AsyncIterator[list[dict[str, Any]]]:
    """What each event adds to a stream; the first goes out when a task starts to run."""
    opened = False
    async for index, happened in merged_events(batch):
        if isinstance(happened, TextDelta):
            chunks = shape.deltas(index, happened)
        elif isinstance(happened, ChoiceDelta):
            continue  # of a server's model: served by http_api/forwarding.py
        elif await batch.is_success(index, happened):
            chunks = shape.lasts(index, await batch.result(index))
        elif happened.state is TaskState.RUNNING and not opened:
            chunks = []
        else:
            continue
        if not opened:
            opened = True
            chunks = shape.opening(batch.size) + chunks
        if chunks:
            yield chunks


def _prompt_tokens(task: TaskRequest) -> int:
    return len(task.payload.prompt) if isinstance(task.payload, Generate) else 0


def _chunk_usage(body: ChatRequest | CompletionRequest) -> Literal["none", "null", "so far"]:
    options = body.stream_options
    if options is None or not options.include_usage:
        return "none"
    return "so far" if options.continuous_usage_stats else "null"


def _header(request: Request) -> str | None:
    return request.headers.get(WEIGHT_HEADER)


def _listed(name: str, model: Model) -> dict[str, Any]:
    """``name`` may be an alias: ``root`` has the model's own then."""
    return {
        "id": name,
        **({} if name == model.name else {"root": model.name}),
        "object": "model",
        "created": model.created,
        "owned_by": "llmtaskpool",
        "task": model.task,
        "max_model_len": model.context_length,
    }


def _vector(result: Embedded, body: EmbeddingRequest) -> str | list[float]:
    if body.encoding_format == "base64":
        return base64.b64encode(result.vector).decode("ascii")
    return list(struct.unpack(f"<{len(result.vector) // 4}f", result.vector))
