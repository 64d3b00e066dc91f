"""Where a request belongs: its engine or handler and its lane, or why it belongs nowhere here."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.engines.model_spec import MOST_WAITING
from llmtaskpool_worker.execution.engine_slots import EngineSlots
from llmtaskpool_worker.execution.lanes import Lane
from llmtaskpool_worker.execution.pool import Rejected
from llmtaskpool_worker.kinds.registry import (
    EMBED_KINDS,
    ENGINE_KINDS,
    EVALUATE_KINDS,
    GENERATE_KINDS,
    HEAR_KINDS,
    KIND_TASKS,
    SEQUENCE_KINDS,
    ArgumentsError,
    Kinds,
)
from llmtaskpool_worker.scheduling.nature import Nature
from llmtaskpool_worker.scheduling.task import (
    Call,
    Embed,
    Evaluate,
    Forward,
    Generate,
    TaskRequest,
    Transcribe,
)


class Placement:
    """Places requests among the engines and kinds of one worker."""

    def __init__(
        self,
        slots: Mapping[str, EngineSlots],
        kinds: Kinds,
        nature: Nature,
        lanes: Mapping[LaneName, Lane],
    ) -> None:
        self._slots, self._kinds, self._nature, self._lanes = slots, kinds, nature, lanes

    def place(self, request: TaskRequest) -> tuple[TaskRequest, Lane]:
        """The request with its model named, and its lane. Raises Rejected."""
        if request.kind in ENGINE_KINDS or isinstance(request.payload, Forward):
            slots = self._engine_for(request)
            if request.model != slots.name:
                request = replace(request, model=slots.name)
            return request, self._lanes[LaneName.COMPUTE]
        kind = self._kinds.get(request.kind)
        if kind is None:
            known = ", ".join(sorted({*ENGINE_KINDS, *self._kinds.names()}))
            raise Rejected(
                "unknown_kind", f"kind {request.kind[:80]!r} is not one of {known}", field="kind"
            )
        if not isinstance(request.payload, Call):
            raise Rejected("invalid", f"kind {kind.name} takes arguments", field="arguments")
        if kind.check is not None:
            try:
                kind.check(request.payload.arguments)
            except ArgumentsError as error:
                raise Rejected("invalid", error.message, field=error.field) from None
        return replace(request, model=None), self._lanes[self._nature.lane(kind.name)]

    def most_waiting(self, model: str | None) -> int | None:
        """How many tasks may wait for a model; None: as many as its lane takes."""
        slots = self._slots.get(model or "")
        most = None if slots is None else slots.engine.spec.options.get(MOST_WAITING)
        return None if most is None else int(most)

    def _engine_for(self, request: TaskRequest) -> EngineSlots:
        forwards = isinstance(request.payload, Forward)
        if not forwards and not isinstance(request.payload, _payload_of(request.kind)):
            raise Rejected("invalid", f"kind {request.kind} takes another input", field="input")
        wanted = KIND_TASKS[request.kind]
        scores = request.kind in EVALUATE_KINDS  # of these a server knows itself whether it can
        fitting = [
            s
            for s in self._slots.values()
            if s.engine.spec.forwards is forwards and (s.task in wanted or (scores and forwards))
        ]
        if request.model is not None:
            fitting = [s for s in fitting if s.name == request.model]
        if not fitting:
            raise Rejected(
                "unknown_model",
                f"no model here does {request.kind} under that name; GET /v1/models lists them",
                field="model",
            )
        slots = fitting[0]
        if slots.failure is not None:
            raise Rejected("model_failed", f"the model {slots.name} could not be loaded")
        if not slots.was_ready:
            raise Rejected(
                "starting", f"the model {slots.name} is still loading", retry_after_seconds=2.0
            )
        return slots


def _payload_of(kind: str) -> type[Generate | Embed | Evaluate | Transcribe]:
    if kind in GENERATE_KINDS | SEQUENCE_KINDS:
        return Generate
    if kind in HEAR_KINDS:
        return Transcribe
    return Embed if kind in EMBED_KINDS else Evaluate
