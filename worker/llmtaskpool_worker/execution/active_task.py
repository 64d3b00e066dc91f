"""A task that this worker has claimed and that has not ended, and what its run needs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from math import inf

from llmtaskpool_worker.brokers.protocol import Claim, Held
from llmtaskpool_worker.engines.protocol import (
    Admit,
    AdmitInputs,
    AdmitSound,
    Tensor,
    TextRow,
)
from llmtaskpool_worker.execution.engine_slots import EngineSlots
from llmtaskpool_worker.execution.lanes import Lane
from llmtaskpool_worker.kinds.registry import CallContext
from llmtaskpool_worker.scheduling.cost import CostClass
from llmtaskpool_worker.scheduling.task import (
    Evaluate,
    Generate,
    Result,
    TaskError,
    TaskRequest,
    Transcribe,
)
from llmtaskpool_worker.scheduling.task_queue import Waiting
from llmtaskpool_worker.text.forwarded import ForwardedChoice
from llmtaskpool_worker.text.generated import GenerationText
from llmtaskpool_worker.text.spoken import SpokenText


@dataclass(slots=True, eq=False)
class ActiveTask:
    """A task that this worker has claimed, and what its run needs."""

    claim: Claim
    lane: Lane
    cost_class: CostClass
    held: Held
    """By what the broker knows its claim."""
    number: int
    """Of all that this worker has claimed."""
    runs: bool = False
    """Whether an engine or a handler is at work for it."""
    again: bool = False
    """Whether it has run under this claim and is to begin anew."""
    deadline: float = inf
    crashes: int = 0
    waiting: Waiting | None = None
    """Its place among those that are claimed and wait for a thread here."""
    slots: EngineSlots | None = None
    request_id: int = 0
    """Of its run: unique among all runs of a worker, and its engine's name for it."""
    text: GenerationText | SpokenText | None = None
    forwarded: ForwardedChoice | None = None
    """What the server behind its model has answered so far."""
    told_tokens: int = 0
    """Tokens that this server's chunks stood for, in this run."""
    context: CallContext | None = None
    calling: asyncio.Task[Result | TaskError] | None = None
    on_loop: bool = False
    """Whether its handler runs on the event loop, where it can be cancelled."""
    made_way: int = 0
    parked_at: float | None = None
    """Since when it waits with what it has drawn, after it made way for an urgent one."""
    began_at: float = 0.0
    share_began: float = 0.0
    """EngineSlots.shared_until at its start."""

    @property
    def id(self) -> str:
        """The task's."""
        return self.claim.id

    @property
    def request(self) -> TaskRequest:
        """What is asked for."""
        return self.claim.request

    @property
    def drawn(self) -> int:
        """Tokens that this run has given so far, or chunks of them."""
        if self.forwarded is not None:
            return self.forwarded.chunks
        return 0 if self.text is None else self.text.tokens


def admit_message(request_id: int, payload: Generate) -> Admit:
    """A generation as its engine takes it."""
    sampling = payload.sampling
    return Admit(
        id=request_id,
        prompt=list(payload.prompt),
        max_tokens=payload.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logprobs=sampling.logprobs,
        repetition_penalty=sampling.repetition_penalty,
        logit_bias=list(sampling.logit_bias),
        min_tokens=sampling.min_tokens,
        stop_token_ids=list(sampling.stop_token_ids),
        grammar=sampling.grammar,
        ignore_eos=payload.ignore_eos,
        prefix=list(payload.prefix),
    )


def sound_message(request_id: int, payload: Transcribe) -> AdmitSound:
    """A file of sound as its engine takes it."""
    return AdmitSound(
        request_id,
        payload.file,
        payload.language,
        payload.translate,
        payload.timestamps,
        list(payload.prompt),
        payload.temperature,
        payload.seed,
    )


def inputs_message(request_id: int, payload: Evaluate) -> AdmitInputs:
    """What a model runs once over, as its engine takes it."""
    rows = [TextRow(row.tokens, row.second, row.end) for row in payload.rows]
    tensors = [Tensor(t.name, t.datatype, list(t.shape), t.data) for t in payload.tensors]
    return AdmitInputs(request_id, rows, payload.options, tensors, list(payload.images))
