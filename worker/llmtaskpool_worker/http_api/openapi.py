"""The API's own description, made from the schemas that bodies are checked by: OpenAPI 3.1."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llmtaskpool_worker.contract import OPEN_ROUTES
from llmtaskpool_worker.http_api.batches_api import BatchBody
from llmtaskpool_worker.http_api.graphs_api import GraphBody
from llmtaskpool_worker.http_api.one_pass_schema import (
    AnswerRequest,
    ClassifyRequest,
    DetectRequest,
    RerankRequest,
    ScoreRequest,
    TagRequest,
)
from llmtaskpool_worker.http_api.openai_schema import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
)
from llmtaskpool_worker.http_api.sequences import TranslateRequest
from llmtaskpool_worker.http_api.sounds import SpeechRequest
from llmtaskpool_worker.http_api.sse import answer
from llmtaskpool_worker.http_api.task_body import TaskBody
from llmtaskpool_worker.http_api.tensors import InferRequest

PATH = "/openapi.json"

_BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/rerank": RerankRequest,
    "/rerank": RerankRequest,
    "/v2/rerank": RerankRequest,
    "/v1/score": ScoreRequest,
    "/score": ScoreRequest,
    "/v1/classify": ClassifyRequest,
    "/classify": ClassifyRequest,
    "/v1/tag": TagRequest,
    "/v1/answer": AnswerRequest,
    "/v1/detect": DetectRequest,
    "/v2/models/{model}/infer": InferRequest,
    "/translate": TranslateRequest,
    "/v1/audio/transcriptions": SpeechRequest,
    "/v1/audio/translations": SpeechRequest,
    "/v1/tasks": TaskBody,
    "/v1/graphs": GraphBody,
    "/v1/batches": BatchBody,
}
_FORMS = ("/v1/audio/transcriptions", "/v1/audio/translations")
_SOUND: dict[str, Any] = {
    "type": "object",
    "required": ["file"],
    "properties": {"file": {"type": "string", "contentMediaType": "audio/*"}},
}
_LATER = ("/v1/tasks", "/v1/graphs")
"""Their answers come before the work is done."""
_SHAPE = "#/components/schemas/{model}"
_FILE: dict[str, Any] = {
    "type": "object",
    "required": ["purpose", "file"],
    "properties": {
        "purpose": {"type": "string", "enum": ["batch"]},
        "file": {"type": "string", "format": "binary"},
    },
}
_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """The description of these routes as an OpenAPI document."""
    _, schemas = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(_BODIES.values())], ref_template=_SHAPE
    )
    for schema in schemas["$defs"].values():
        # Fields that other servers know are taken too when they ask for nothing: docs/api.md.
        schema.pop("additionalProperties", None)
    paths: dict[str, Any] = {}
    for route in routes:
        path = route.path.replace(":path}", "}")
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(path, {})[method.lower()] = _operation(path, method, route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "LLMTaskPool worker", "version": version("llmtaskpool")},
        "paths": paths,
        "components": {
            "schemas": {**schemas["$defs"], "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(path: str, method: str, route: Route) -> dict[str, Any]:
    text = (getattr(route.endpoint, "__doc__", None) or "").strip()
    error = {"$ref": _SHAPE.format(model="Error")}
    operation: dict[str, Any] = {
        "summary": text.partition("\n")[0].partition(": ")[2].rstrip(".") or f"{method} {path}",
        "responses": {
            "202" if path in _LATER and method == "POST" else "200": {"description": "Done."},
            "default": {
                "description": "An error; `param` names the field at fault.",
                "content": {"application/json": {"schema": error}},
            },
        },
        "security": [] if path in OPEN_ROUTES else [{}, {"key": []}],
    }
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if method == "POST" and path in _BODIES:
        model: dict[str, Any] = {"$ref": _SHAPE.format(model=_BODIES[path].__name__)}
        if path in _FORMS:
            described = {"allOf": [model, _SOUND]}
            content = {"multipart/form-data": {"schema": described}}
        else:
            content = {"application/json": {"schema": model}}
        operation["requestBody"] = {"required": True, "content": content}
    if method == "POST" and path == "/v1/files":
        operation["requestBody"] = {
            "required": True,
            "content": {"multipart/form-data": {"schema": _FILE}},
        }
    return operation


def description_route(routes: Sequence[Route]) -> Route:
    """GET /openapi.json over ``routes``; made once."""
    described = answer(describe(routes))

    async def openapi(_request: Request) -> Response:
        """GET /openapi.json: this description."""
        return described

    return Route(PATH, openapi, methods=["GET"])
