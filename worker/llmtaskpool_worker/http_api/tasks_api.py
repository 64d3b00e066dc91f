"""The task routes: submit, look, wait, cancel, and follow the events of any kind of task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llmtaskpool_worker.disclosure import shown
from llmtaskpool_worker.execution.pool import TaskPool
from llmtaskpool_worker.http_api.auth import sees, sight_of, tenant_of
from llmtaskpool_worker.http_api.bodies import Bodies
from llmtaskpool_worker.http_api.catalog import Catalog
from llmtaskpool_worker.http_api.errors import ApiError, blaming, invalid
from llmtaskpool_worker.http_api.evaluations import evaluation
from llmtaskpool_worker.http_api.forwarded_requests import KINDS, OURS
from llmtaskpool_worker.http_api.forwarded_scores import score_payload
from llmtaskpool_worker.http_api.forwarding import counted, payload_of
from llmtaskpool_worker.http_api.inference import about_of
from llmtaskpool_worker.http_api.long_text import in_pieces
from llmtaskpool_worker.http_api.one_pass_schema import parse_one_pass
from llmtaskpool_worker.http_api.openai_api import chat_of, generations, grammar_of
from llmtaskpool_worker.http_api.openai_schema import (
    WEIGHT_HEADER,
    CompletionRequest,
    header_weight,
    parse,
)
from llmtaskpool_worker.http_api.sequences import (
    SummarizeRequest,
    parse_translation,
    summary,
    translation,
)
from llmtaskpool_worker.http_api.sounds import task_transcription
from llmtaskpool_worker.http_api.sse import (
    EventStream,
    Frame,
    Pieces,
    answer,
    encode,
    event,
    long_event,
    while_connected,
)
from llmtaskpool_worker.http_api.task_answers import event_json, result_json
from llmtaskpool_worker.http_api.task_body import TaskBody, dependencies_of, task_of
from llmtaskpool_worker.http_api.tensors import parse_infer, tensors_of
from llmtaskpool_worker.kinds.registry import (
    EMBED_KINDS,
    EVALUATE_KINDS,
    GENERATE_KINDS,
    HEAR_KINDS,
    SEQUENCE_KINDS,
)
from llmtaskpool_worker.scheduling.task import (
    SCORE_ROUTES,
    TERMINAL,
    Call,
    Embed,
    Evaluate,
    ForwardRoute,
    Payload,
    TaskRequest,
    TaskView,
)

IDEMPOTENCY_HEADER = "idempotency-key"
WAIT_SECONDS_MAX = 300.0
LONG_LIST = 64
"""Of messages or ids; longer ones are checked off the event loop."""

T = TypeVar("T")

_ELSEWHERE = {"model": "model", "messages": "input", "prompt": "input", "input": "input"}
"""Where a task has what the bodies of the OpenAI routes call so."""

_ROUTES: Mapping[str, ForwardRoute] = {kind: route for route, kind in KINDS.items()}


class TaskRoutes:
    """Handlers over a pool; ``routes`` lists them."""

    def __init__(
        self,
        pool: TaskPool,
        catalog: Catalog,
        bodies: Bodies,
        *,
        heartbeat_seconds: float,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._pool = pool
        self._catalog = catalog
        self._bodies = bodies
        self._heartbeat_seconds = heartbeat_seconds
        self._clock = clock
        self._wall_clock = wall_clock

    def routes(self) -> list[Route]:
        """For starlette."""
        return [
            Route("/v1/tasks", self.submit, methods=["POST"]),
            Route("/v1/tasks/{id}", self.look, methods=["GET"]),
            Route("/v1/tasks/{id}", self.cancel, methods=["DELETE"]),
            Route("/v1/tasks/{id}/events", self.events, methods=["GET"]),
        ]

    async def submit(self, request: Request) -> Response:
        """POST /v1/tasks: 202 and where to look for it."""
        task = await self._bodies.read(request, task_of)
        wanted = await self.request_of(task, request)
        view = await self._pool.submit(wanted)
        self._bodies.give_back(request)
        return answer(self.accepted_json(view), 202, {"location": f"/v1/tasks/{view.id}"})

    async def request_of(self, task: TaskBody, request: Request) -> TaskRequest:
        """What a body asks for, checked. Raises ApiError."""
        weight = task.weight
        if weight is None:
            header = request.headers.get(WEIGHT_HEADER)
            weight = 1.0 if header is None else header_weight(header)
        key = task.idempotency_key or request.headers.get(IDEMPOTENCY_HEADER)
        if key is not None and not 1 <= len(key) <= 256:
            raise invalid(IDEMPOTENCY_HEADER, "Idempotency-Key must have 1 to 256 letters.")
        payload = await self._payload(task)
        model = task.model
        if not isinstance(payload, Call):  # it may have been asked for by an alias
            model = self._catalog.get(_model_of(task)).name
        return TaskRequest(
            kind=task.kind,
            payload=payload,
            model=model,
            weight=weight,
            queue_timeout_seconds=task.deadline_seconds,
            timeout_seconds=task.timeout_seconds,
            idempotency_key=key,
            labels=dict(task.labels),
            dependencies=dependencies_of(task),
            tenant=tenant_of(request),
        )

    async def _payload(self, task: TaskBody) -> Payload:
        route = _ROUTES.get(task.kind)
        if route is not None and self._catalog.forwards({"model": task.model}):
            return await self._forwarded(task, route)
        if task.kind in GENERATE_KINDS:
            return await self._generation(task)
        if task.kind in EMBED_KINDS:
            model = self._catalog.get(_model_of(task), "embed")
            if task.arguments:
                raise invalid("arguments", "arguments is not empty: embed takes none.")
            return Embed(await model.encode(_one_input(task.input), "input"))
        if task.kind in EVALUATE_KINDS:
            return await self._evaluation(task)
        if task.kind in HEAR_KINDS:
            return await self._sound(task)
        if task.kind in SEQUENCE_KINDS:
            return await self._sequence(task)
        if task.input is not None:
            raise invalid("input", f"input can't be used with kind {task.kind}: use arguments.")
        return Call(dict(task.arguments))

    async def _forwarded(self, task: TaskBody, route: ForwardRoute) -> Payload:
        """A request for a server's model, checked as on the OpenAI routes."""
        if route in SCORE_ROUTES:
            model = self._catalog.get(_model_of(task))
            return await score_payload(route, model, task.input, task.arguments)
        model = self._catalog.get(_model_of(task), "embed" if route == "embeddings" else "generate")
        _none_of(task, ("model", "messages", "prompt", "input", *sorted(OURS)))
        field = {"chat/completions": "messages", "completions": "prompt"}.get(route, "input")
        given = {**task.arguments, "model": model.name, field: task.input}
        with blaming("arguments.", _ELSEWHERE):
            wanted = await _off_loop_when_long(task.input, partial(payload_of, route, given, model))
        found: list[Payload] = await counted(model, wanted)
        return found[0]

    async def _generation(self, task: TaskBody) -> Payload:
        """A generation is checked exactly as on the OpenAI routes: one set of rules."""
        model = self._catalog.get(_model_of(task), "generate")
        _none_of(task, ("model", "messages", "prompt", "n", "stream", "weight", "timeout_seconds"))
        with blaming("arguments.", _ELSEWHERE):
            if task.kind == "chat":
                given = {**task.arguments, "model": model.name, "messages": task.input}
                chat, messages = await _off_loop_when_long(task.input, partial(chat_of, given))
                if chat.calling is not None:
                    raise invalid(
                        "tools", "a task can't call tools: send them to /v1/chat/completions."
                    )
                prompt = await model.encode_chat(messages)
                grammar = await grammar_of(chat)
                return generations("chat", chat, model, [prompt], None, grammar)[0].payload
            given = {**task.arguments, "model": model.name, "prompt": _one_input(task.input)}
            body = await _off_loop_when_long(task.input, partial(parse, CompletionRequest, given))
            prompt = await model.encode(task.input, "prompt")
            grammar = await grammar_of(body)
            return generations("generate", body, model, [prompt], None, grammar)[0].payload

    async def _evaluation(self, task: TaskBody) -> Payload:
        """What runs a model once, checked as on its route; ``input`` is the route's own field."""
        model = self._catalog.get(_model_of(task))
        _none_of(task, ("model", "weight", "timeout_seconds", "return_documents"))
        if task.kind == "infer":
            return self._inference(task)
        given = {**task.arguments, "model": model.name}
        if task.input is not None:
            given["input"] = task.input
        with blaming("arguments.", _ELSEWHERE):
            body = await _off_loop_when_long(task.input, partial(parse_one_pass, task.kind, given))
            return (await evaluation(task.kind, body, self._catalog))[1]

    async def _sound(self, task: TaskBody) -> Payload:
        """A file of sound in base64, checked as on its route."""
        model = self._catalog.get(_model_of(task), "transcribe")
        _none_of(task, ("model", "file", "weight", "timeout_seconds"))
        with blaming("arguments.", {"model": "model", "file": "input"}):
            given = {**task.arguments, "model": model.name}
            return await task_transcription(model, given, task.input)

    async def _sequence(self, task: TaskBody) -> Payload:
        """A text to be translated or told shorter, checked as on its route."""
        model = self._catalog.get(_model_of(task), task.kind)
        _none_of(task, ("model", "q", "input", "weight", "timeout_seconds"))
        field = "q" if task.kind == "translate" else "input"
        given = {**task.arguments, "model": model.name, field: task.input}
        with blaming("arguments.", {"model": "model", "q": "input", "input": "input"}):
            if task.kind == "summarize":
                return await summary(model, parse(SummarizeRequest, given))
            if not isinstance(task.input, str):
                raise invalid("q", "q must be a text: send a task for each.")
            body = parse_translation(given, self._catalog)
            return await translation(model, body, task.input, "q")

    def _inference(self, task: TaskBody) -> Payload:
        """Tensors for a model of tables, as Open Inference Protocol v2 writes them in JSON."""
        model = self._catalog.get(_model_of(task), "tensor")
        if task.input is not None:
            raise invalid("input", "input can't be used with kind infer: use arguments.inputs.")
        with blaming("arguments.", {"model": "model"}):
            return Evaluate(
                tensors=tensors_of(parse_infer(task.arguments), about_of(model), memoryview(b""))
            )

    async def look(self, request: Request) -> Response:
        """GET /v1/tasks/{id}: as it is now, or once it has ended with ``?wait=seconds``."""
        view = await self.view_of(request)
        seconds = _wait_seconds(request)
        if seconds > 0 and view.state not in TERMINAL:
            try:
                async with asyncio.timeout(seconds):
                    view = await while_connected(request.receive, self._pool.wait(view.id))
            except TimeoutError:
                view = await self._pool.get(view.id) or view
        return Pieces(await in_pieces(self.task_json(view)))

    async def cancel(self, request: Request) -> Response:
        """DELETE /v1/tasks/{id}: cancels what has not ended."""
        if sight_of(request) is not None:
            await self.view_of(request)
        view = await self._pool.cancel(request.path_params["id"])
        if view is None:
            raise unknown_task(request)
        return answer(self.task_json(view))

    async def events(self, request: Request) -> Response:
        """GET /v1/tasks/{id}/events: from the beginning, or after the header Last-Event-ID."""
        view = await self.view_of(request)
        last = request.headers.get("last-event-id", "")
        after = int(last) if last.isdecimal() and len(last) < 12 else -1
        return EventStream(self._frames(view.id, after), heartbeat_seconds=self._heartbeat_seconds)

    async def _frames(self, task_id: str, after: int) -> AsyncIterator[Frame]:
        number = 0
        async for happened in self._pool.events(task_id):
            if number > after:
                name, data = event_json(happened)
                yield event(encode(data), name=name, number=number)
            number += 1
        view = await self._pool.get(task_id)
        if view is not None:
            pieces = await in_pieces(self.task_json(view))
            yield long_event(pieces, name="end", number=number)

    async def view_of(self, request: Request) -> TaskView:
        """The task of the path, where it is there for who asks. Raises ApiError."""
        view = await self._pool.get(request.path_params["id"])
        if view is None or not sees(request, view.tenant):
            raise unknown_task(request)
        return view

    def accepted_json(self, view: TaskView) -> dict[str, Any]:
        """A task that was accepted now, with what is promised of it."""
        promised = self._pool.durability
        return self.task_json(view) | {"durable": promised.durable, "note": promised.note}

    def task_json(self, view: TaskView) -> dict[str, Any]:
        """A task as JSON; times are seconds since the epoch."""
        offset = self._wall_clock() - self._clock()
        started, ended, expires = view.started_at, view.ended_at, view.result_expires_at
        error = view.error
        return {
            "id": view.id,
            "object": "task",
            "kind": view.kind,
            "lane": view.lane.value,
            "model": view.model,
            "state": view.state.value,
            "weight": view.weight,
            "load_seconds": view.load_seconds,
            "priority": view.priority,
            "attempts": view.attempts,
            "submitted_at": round(view.submitted_at + offset, 3),
            "started_at": None if started is None else round(started + offset, 3),
            "ended_at": None if ended is None else round(ended + offset, 3),
            "result_expires_at": None if expires is None else round(expires + offset, 3),
            "result": None if view.result is None else result_json(view.result),
            "error": None if error is None else {"code": error.code, "message": error.message},
            "labels": view.labels,
            "depends_on": list(view.depends_on),
        }


async def _off_loop_when_long(given: object, check: Callable[[], T]) -> T:
    long = isinstance(given, list) and len(given) > LONG_LIST
    return await asyncio.to_thread(check) if long else check()


def _none_of(task: TaskBody, fields: Sequence[str]) -> None:
    for field in fields:
        if field in task.arguments:
            name = f"arguments.{field}"
            raise invalid(name, f"{name} can't be used here: leave it out.")


def _model_of(task: TaskBody) -> str:
    if task.model is None:
        raise invalid(
            "model", f"model is missing: kind {task.kind} needs one.", code="invalid_missing"
        )
    return task.model


def _one_input(value: object) -> str | list[int]:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(_is_id(one) for one in value):
        return value
    raise invalid("input", "input must be a text or a list of token ids.")


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _wait_seconds(request: Request) -> float:
    given = request.query_params.get("wait")
    if given is None:
        return 0.0
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= WAIT_SECONDS_MAX:
        raise invalid(
            "wait", f"wait is {shown(given)}: send seconds from 0 to {WAIT_SECONDS_MAX:g}."
        )
    return seconds


def unknown_task(request: Request) -> ApiError:
    """404."""
    return ApiError(
        404,
        f"There is no task {shown(request.path_params['id'])} here: it never was, or its result "
        "was kept as long as results are kept.",
        param="id",
        code="task_not_found",
    )
