"""OpenAI's audio routes: what is said in a file, in its own language or in English."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llmtaskpool_worker.http_api.answering import Answering
from llmtaskpool_worker.http_api.bodies import Bodies
from llmtaskpool_worker.http_api.catalog import Catalog
from llmtaskpool_worker.http_api.forms import parse_form
from llmtaskpool_worker.http_api.openai_schema import WEIGHT_HEADER, weight_of
from llmtaskpool_worker.http_api.sounds import (
    SpeechRequest,
    answered,
    parse_speech,
    transcription,
)
from llmtaskpool_worker.http_api.sse import answer
from llmtaskpool_worker.scheduling.task import Evaluated, TaskRequest

_WITH_TIMES = ("srt", "verbose_json", "vtt")


class AudioRoutes:
    """Handlers over a pool and its models; ``routes`` lists them."""

    def __init__(self, answering: Answering, catalog: Catalog, bodies: Bodies) -> None:
        self._answering, self._catalog, self._bodies = answering, catalog, bodies

    def routes(self) -> list[Route]:
        """For starlette."""
        return [
            Route("/v1/audio/transcriptions", self.transcriptions, methods=["POST"]),
            Route("/v1/audio/translations", self.translations, methods=["POST"]),
        ]

    async def transcriptions(self, request: Request) -> Response:
        """POST /v1/audio/transcriptions: what is said in a file of sound."""
        return await self._hear(request, translate=False)

    async def translations(self, request: Request) -> Response:
        """POST /v1/audio/translations: what is said in a file of sound, in English."""
        return await self._hear(request, translate=True)

    async def _hear(self, request: Request, *, translate: bool) -> Response:
        kind = request.headers.get("content-type", "")

        def read(
            body: bytes, _parse: Callable[[bytes], dict[str, Any]]
        ) -> tuple[SpeechRequest, bytes]:
            return parse_speech(parse_form(body, kind))

        body, file = await self._bodies.read_bytes(request, read)
        model = self._catalog.get(body.model, "transcribe")
        times = body.response_format in _WITH_TIMES
        payload = await transcription(model, body, file, translate=translate, timestamps=times)
        del file
        task = TaskRequest(
            kind="transcribe",
            payload=payload,
            model=model.name,
            weight=weight_of(body, request.headers.get(WEIGHT_HEADER)),
            timeout_seconds=body.timeout_seconds,
            queue_timeout_seconds=body.queue_timeout_seconds,
        )
        self._bodies.give_back(request)
        (view,) = await self._answering.some_at_a_time(request, [task])
        assert isinstance(view.result, Evaluated)  # noqa: S101  what this kind gives
        name = "translate" if translate else "transcribe"
        media, told = answered(view.result, body.response_format, name)
        if isinstance(told, str):
            return Response(told, media_type=media)
        return answer(told)
