"""Translation in LibreTranslate's shape: /translate and /languages.

Errors have that shape too, ``{"error": "text"}``, but for a missing key and a full server, which
are told before a request gets here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llmtaskpool_worker.http_api.answering import Answering
from llmtaskpool_worker.http_api.bodies import Bodies
from llmtaskpool_worker.http_api.catalog import Catalog
from llmtaskpool_worker.http_api.errors import ANSWERED, ApiError, as_answer
from llmtaskpool_worker.http_api.openai_schema import WEIGHT_HEADER, weight_of
from llmtaskpool_worker.http_api.sequences import (
    TranslateRequest,
    parse_translation,
    targets_of,
    translation,
)
from llmtaskpool_worker.http_api.sse import answer
from llmtaskpool_worker.scheduling.task import Generated, TaskRequest
from llmtaskpool_worker.text.languages import name_of, short_of

Json = dict[str, Any]
FORM = "application/x-www-form-urlencoded"
FIELDS_MAX = 512


class TranslateRoutes:
    """Handlers over a pool and its models; ``routes`` lists them."""

    def __init__(self, answering: Answering, catalog: Catalog, bodies: Bodies) -> None:
        self._answering, self._catalog, self._bodies = answering, catalog, bodies

    def routes(self) -> list[Route]:
        """For starlette."""
        return [
            Route("/translate", self.translate, methods=["POST"]),
            Route("/languages", self.languages, methods=["GET"]),
        ]

    async def languages(self, _request: Request) -> Response:
        """GET /languages: those that are translated from, and into what."""
        return answer(_languages(self._catalog))

    async def translate(self, request: Request) -> Response:
        """POST /translate: a text, or a list of texts, in another language."""
        try:
            return await self._translate(request)
        except ANSWERED as error:
            wrong = as_answer(error)
            return answer({"error": wrong.message}, wrong.status, wrong.headers())

    async def _translate(self, request: Request) -> Response:
        form = request.headers.get("content-type", "").partition(";")[0].strip().lower() == FORM

        def read(body: bytes, parse: Callable[[bytes], Json]) -> TranslateRequest:
            return parse_translation(_fields(body) if form else parse(body), self._catalog)

        body = await self._bodies.read_bytes(request, read)
        model = self._catalog.get(body.model, "translate")
        texts = body.texts()
        names = ["q"] if isinstance(body.q, str) else [f"q[{n}]" for n in range(len(texts))]
        weight = weight_of(body, request.headers.get(WEIGHT_HEADER))
        tasks = [
            TaskRequest(
                kind="translate",
                payload=await translation(model, body, text, name),
                model=model.name,
                weight=weight,
                timeout_seconds=body.timeout_seconds,
                queue_timeout_seconds=body.queue_timeout_seconds,
            )
            for text, name in zip(texts, names, strict=True)
        ]
        self._bodies.give_back(request)
        views = await self._answering.some_at_a_time(request, tasks)
        results = [view.result.text for view in views if isinstance(view.result, Generated)]
        told = {"translatedText": results[0] if isinstance(body.q, str) else results}
        return answer(told)


def _fields(body: bytes) -> Json:
    """A form's fields; one that comes several times is a list."""
    found: Json = {}
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=FIELDS_MAX)
    except ValueError:
        raise ApiError(
            400,
            f"The body is no form of at most {FIELDS_MAX} fields in UTF-8: send JSON.",
            param="body",
            code="invalid_form",
        ) from None
    for name, value in pairs:
        before = found.get(name)
        if before is None:
            found[name] = value
        else:
            found[name] = [*before, value] if isinstance(before, list) else [before, value]
    if found.get("alternatives") == "0":
        del found["alternatives"]
    return found


def _languages(catalog: Catalog) -> list[Json]:
    into: dict[str, set[str]] = {}
    for _, model in catalog.all():
        if model.task != "translate":
            continue
        for source in model.about.get("sources", ()):
            targets = into.setdefault(short_of(source), set())
            targets.update(map(short_of, targets_of(model, source)))
    return [
        {"code": code, "name": name_of(code), "targets": sorted(targets)}
        for code, targets in sorted(into.items())
    ]
