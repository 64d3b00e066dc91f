"""Open Inference Protocol v2 for models of tables: /v2, its health, models and inference.

Errors have the protocol's shape, ``{"error": "text"}``, but for a missing key and a full server,
which are told before a request gets here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llmtaskpool_worker.contract import Phase
from llmtaskpool_worker.execution.pool import TaskPool
from llmtaskpool_worker.http_api.answering import Answering
from llmtaskpool_worker.http_api.bodies import Bodies
from llmtaskpool_worker.http_api.catalog import Catalog, Model
from llmtaskpool_worker.http_api.errors import ANSWERED, ApiError, as_answer, invalid
from llmtaskpool_worker.http_api.openai_schema import WEIGHT_HEADER, header_weight
from llmtaskpool_worker.http_api.sse import answer, encode
from llmtaskpool_worker.http_api.tensors import InferRequest, answered, parse_infer, tensors_of
from llmtaskpool_worker.scheduling.task import Evaluate, Evaluated, TaskRequest, Tensor

LENGTH_HEADER = "inference-header-content-length"
_PATH = "/v2/models/{model:path}"

Handler = Callable[[Request], Awaitable[Response]]
Parse = Callable[[bytes], dict[str, Any]]


class InferenceRoutes:
    """Handlers over a pool and its models; ``routes`` lists them."""

    def __init__(
        self, pool: TaskPool, answering: Answering, catalog: Catalog, bodies: Bodies
    ) -> None:
        self._pool, self._answering = pool, answering
        self._catalog, self._bodies = catalog, bodies

    def routes(self) -> list[Route]:
        """For starlette."""
        versioned = _PATH + "/versions/{version}"
        return [
            Route("/v2", self.server, methods=["GET"]),
            Route("/v2/health/live", self.live, methods=["GET"]),
            Route("/v2/health/ready", self.ready, methods=["GET"]),
            *(
                Route(path + end, handler, methods=[method])
                for end, handler, method in (
                    ("/infer", self.infer, "POST"),
                    ("/ready", self.model_ready, "GET"),
                    ("", self.model, "GET"),
                )
                for path in (versioned, _PATH)
            ),
        ]

    async def server(self, _request: Request) -> Response:
        """GET /v2: what this server is."""
        told = {"name": "llmtaskpool", "version": version("llmtaskpool")}
        return answer(told | {"extensions": ["binary_tensor_data"]})

    async def live(self, _request: Request) -> Response:
        """GET /v2/health/live: as /livez."""
        alive = self._pool.alive()
        return answer({"live": alive}, 200 if alive else 503)

    async def ready(self, _request: Request) -> Response:
        """GET /v2/health/ready: as /readyz."""
        ready = self._pool.state().phase is Phase.READY and self._pool.alive()
        return answer({"ready": ready}, 200 if ready else 503)

    async def model(self, request: Request) -> Response:
        """GET /v2/models/{model}: its inputs and outputs."""
        return await _told(self._model, request)

    async def model_ready(self, request: Request) -> Response:
        """GET /v2/models/{model}/ready: whether it is loaded."""
        return await _told(self._model_ready, request)

    async def infer(self, request: Request) -> Response:
        """POST /v2/models/{model}/infer: run it over tensors."""
        return await _told(self._infer, request)

    async def _model(self, request: Request) -> Response:
        model = self._named(request)
        about = about_of(model)
        return answer({"name": model.name, "versions": ["1"]} | dict(about))

    async def _model_ready(self, request: Request) -> Response:
        model = self._named(request)
        ready = bool(model.about)
        return answer({"name": model.name, "ready": ready}, 200 if ready else 503)

    async def _infer(self, request: Request) -> Response:
        model = self._named(request)

        def read(body: bytes, parse: Parse) -> tuple[InferRequest, tuple[Tensor, ...]]:
            length = _json_length(request, len(body))
            wanted = parse_infer(parse(body[:length]))
            return wanted, tensors_of(wanted, about_of(model), memoryview(body)[length:])

        wanted, tensors = await self._bodies.read_bytes(request, read)
        header = request.headers.get(WEIGHT_HEADER)
        task = TaskRequest(
            kind="infer",
            payload=Evaluate(tensors=tensors),
            model=model.name,
            weight=1.0 if header is None else header_weight(header),
        )
        (view,) = await self._answering.some_at_a_time(request, [task])
        assert isinstance(view.result, Evaluated)  # noqa: S101  what this kind gives
        outputs, binary = answered(view.result.value["outputs"], wanted)
        told: dict[str, Any] = {"model_name": model.name, "model_version": "1"}
        told |= {"id": wanted.id or view.id, "outputs": outputs}
        if not binary:
            return answer(told)
        head = encode(told)
        headers = {LENGTH_HEADER: str(len(head)), "content-type": "application/octet-stream"}
        return Response(b"".join([head, *binary]), headers=headers)

    def _named(self, request: Request) -> Model:
        if request.path_params.get("version", "1") != "1":
            raise ApiError(404, "There is version 1 alone: leave the version out.", param="version")
        return self._catalog.get(request.path_params["model"], "tensor")


def about_of(model: Model) -> Any:
    """A table's inputs and outputs. Raises ApiError 503 while it loads."""
    if not model.about:
        raise model.starting()
    return model.about


def _json_length(request: Request, size: int) -> int:
    """Where the JSON ends and bytes of tensors begin. Raises ApiError 400."""
    given = request.headers.get(LENGTH_HEADER)
    if given is None:
        return size
    if not given.isdecimal() or len(given) > 12 or int(given) > size:
        raise invalid(LENGTH_HEADER, f"{LENGTH_HEADER} must be the length of the JSON in bytes.")
    return int(given)


async def _told(handler: Handler, request: Request) -> Response:
    """What a handler answers; errors in the protocol's shape."""
    try:
        return await handler(request)
    except ANSWERED as error:
        wrong = as_answer(error)
        return answer({"error": wrong.message}, wrong.status, wrong.headers())
