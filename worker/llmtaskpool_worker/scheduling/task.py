"""What a task is: its states, its request, its events and its result.

Pure: no torch, no asyncio, no clock. Times are seconds of the caller's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import msgspec

from llmtaskpool_worker.contract import LaneName as LaneName  # brokers have it from here
from llmtaskpool_worker.scheduling.inputs import IMAGE_TOKENS as IMAGE_TOKENS
from llmtaskpool_worker.scheduling.inputs import EncodedRow as EncodedRow
from llmtaskpool_worker.scheduling.inputs import Evaluate as Evaluate
from llmtaskpool_worker.scheduling.inputs import Row as Row
from llmtaskpool_worker.scheduling.inputs import Spelled as Spelled
from llmtaskpool_worker.scheduling.inputs import Tensor as Tensor
from llmtaskpool_worker.scheduling.inputs import Transcribe as Transcribe


class TaskState(StrEnum):
    """The states of a task. A task ends in exactly one of TERMINAL."""

    BLOCKED = "blocked"
    """It waits for tasks that it depends on."""
    DELAYED = "delayed"
    """It waits for its time."""
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    """It waited in the queue beyond its deadline and was never started."""
    DEAD = "dead"
    """Its worker was lost with it as often as that may be: a dead letter, to be looked at."""


CLAIMABLE = frozenset({TaskState.QUEUED})
WAITING = frozenset({TaskState.BLOCKED, TaskState.DELAYED, TaskState.QUEUED})
IN_FLIGHT = frozenset({TaskState.RUNNING})
TERMINAL = frozenset(
    {
        TaskState.SUCCEEDED,
        TaskState.FAILED,
        TaskState.CANCELLED,
        TaskState.EXPIRED,
        TaskState.DEAD,
    }
)
UNSUCCESSFUL = TERMINAL - {TaskState.SUCCEEDED}
"""Ends that count as a failed parent."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn; temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    """How many alternatives to report beside each drawn token; None reports no logprobs."""
    repetition_penalty: float = 1.0
    """Of tokens in prompt or answer: a logit above 0 is divided by it, another multiplied."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to the logits of these tokens."""
    min_tokens: int = 0
    """Before so many are drawn the answer doesn't end by itself."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the answer, beside the model's own."""
    grammar: str | None = None
    """What the answer has to be, as llguidance reads it; checked when the request came."""


@dataclass(frozen=True, slots=True)
class Generate:
    """Payload: continue ``prompt`` (token ids) by at most ``max_tokens`` tokens."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    prefix: tuple[int, ...] = ()
    """With what the answer begins, where a model reads the prompt and writes beside it."""


@dataclass(frozen=True, slots=True)
class Embed:
    """Payload: embed one text, given as token ids."""

    tokens: tuple[int, ...]


ForwardRoute = Literal[
    "chat/completions", "completions", "embeddings", "rerank", "score", "classify"
]
SCORE_ROUTES: frozenset[ForwardRoute] = frozenset({"rerank", "score", "classify"})
WHOLE_ROUTES: frozenset[str] = frozenset({"embeddings", *SCORE_ROUTES})
"""Answered at once: nothing is drawn."""


@dataclass(frozen=True, slots=True)
class Forward:
    """Payload: send a request as it is to the server that stands behind the model.

    ``body`` is its JSON object, without the model's name, without what is meant for this pool, and
    for one choice. It has ``letters`` letters to read; ``prompt_tokens`` where they were counted.
    ``max_tokens`` None: the server's own bound.
    """

    route: ForwardRoute
    body: bytes
    letters: int
    prompt_tokens: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """Payload: call the registered handler of the task's kind with JSON arguments."""

    arguments: dict[str, Any] = field(default_factory=dict)


Payload = Generate | Embed | Evaluate | Transcribe | Forward | Call


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What must have ended before a task may be claimed.

    ``need`` of ``parents`` must have succeeded (None: all). When too few still can, the task fails
    with ``dependency_failed`` and so do those that depend on it; with ``on_failure`` "continue" it
    waits for all of them to end, however, and runs.
    """

    parents: tuple[str, ...]
    need: int | None = None
    on_failure: Literal["fail", "continue"] = "fail"


class TaskRequest(msgspec.Struct, frozen=True):
    """What a client asks for.

    ``weight`` is W of P = W / T (> 0, 1 is ordinary). ``timeout_seconds`` bounds the run,
    ``queue_timeout_seconds`` the wait; None leaves the worker's own limit in force.
    """

    kind: str
    payload: Payload
    model: str | None = None
    weight: float = 1.0
    queue_timeout_seconds: float | None = None
    timeout_seconds: float | None = None
    idempotency_key: str | None = None
    labels: dict[str, str] = {}
    attended: bool = False
    """Whether its submitter waits for it and says when it has read it: nothing is kept after."""
    dependencies: Dependencies | None = None
    tenant: str = ""
    """Whose it is, by the API key; its Line has it too, and a claim's request only there."""
    of_a_batch: bool = False
    """Whether it is the line of a batch, which leaves room to its tenant's other tasks."""


FinishReason = Literal["stop", "length"]


class TokenLogprob(msgspec.Struct, frozen=True, gc=False):
    """One drawn token with its log-probability and the alternatives asked for; as TextDelta."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """Event: text that became certain, with the tokens it came from.

    One is made for each token of each stream, and kept for who asks later. So it is a Struct, which
    is made in less time than a frozen dataclass and can be left out of the collector's rounds: it
    holds nothing that could hold it.
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class StateChanged:
    """Event: the task is in a new state."""

    state: TaskState
    reason: str = ""


class ChoiceDelta(msgspec.Struct, frozen=True, gc=False):
    """Event: what the server behind a model said next; as TextDelta.

    ``choice`` is the JSON object of a chunk's choice, as the server sent it but for its index.
    """

    choice: bytes


TaskEvent = TextDelta | ChoiceDelta | StateChanged


@dataclass(frozen=True, slots=True)
class Generated:
    """Result of Generate."""

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()
    cached_tokens: int = 0
    """Of the prompt, how many the engine had kept from others and not to compute."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """Result of Embed: the vector as little-endian float32 bytes."""

    vector: bytes
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Result of Evaluate and Transcribe: a JSON object such as ``{"results": [...]}``."""

    value: dict[str, Any]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Forwarded:
    """Result of Forward.

    ``value`` is the choice of a whole answer without its index, put together of all chunks; of
    embeddings, their list; of scores, all that the server answered. ``usage`` is the server's own,
    or counted here where it told none.
    """

    value: Any
    usage: dict[str, Any]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return _count(self.usage.get("prompt_tokens"))

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answer."""
        return _count(self.usage.get("completion_tokens"))

    @property
    def cached_tokens(self) -> int:
        """Of the prompt, how many the server had not to compute, where it tells that."""
        details = self.usage.get("prompt_tokens_details")
        return _count(details.get("cached_tokens")) if isinstance(details, dict) else 0


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


@dataclass(frozen=True, slots=True)
class Returned:
    """Result of Call: what the handler returned, JSON-able."""

    value: Any


Result = Generated | Embedded | Evaluated | Forwarded | Returned


@dataclass(frozen=True, slots=True)
class TaskError:
    """Why a task failed: a code for programs, a sentence for people, nothing of our insides."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Asked:
    """Which tasks to list: newest first. ``after`` is the id of the last one seen."""

    states: Collection[TaskState] = frozenset(TaskState)
    labels: Mapping[str, str] = field(default_factory=dict)
    tenant: str | None = None
    after: str | None = None
    limit: int = 20


class TaskView(msgspec.Struct, frozen=True):
    """A task as others may see it, at one moment."""

    id: str
    kind: str
    lane: LaneName
    model: str | None
    state: TaskState
    weight: float
    load_seconds: float
    """T of P = W / T: estimated thread-seconds."""
    priority: float
    submitted_at: float
    started_at: float | None = None
    ended_at: float | None = None
    attempts: int = 0
    result: Result | None = None
    error: TaskError | None = None
    result_expires_at: float | None = None
    """Until when its result is kept at least, on the caller's clock. It moves on until the task
    has ended. None: nothing is promised, as its submitter reads it at once."""
    depends_on: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    tenant: str = ""
    """Whose it is."""
