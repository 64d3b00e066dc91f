"""The frames between the API process and an engine process, and the Engine protocol.

Frames are msgpack (msgspec) with a 4-byte big-endian length before each: typed, bounded, and
never pickle. This module imports no torch: the API process imports it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

import msgspec

from llmtaskpool_worker.engines.model_spec import TASKS as TASKS
from llmtaskpool_worker.engines.model_spec import ModelSpec as ModelSpec
from llmtaskpool_worker.engines.scales import Memory as Memory
from llmtaskpool_worker.engines.server_events import Answered as Answered
from llmtaskpool_worker.engines.server_events import ConnectionLost as ConnectionLost
from llmtaskpool_worker.engines.server_events import Gauges as Gauges
from llmtaskpool_worker.engines.server_events import Piece as Piece
from llmtaskpool_worker.engines.server_events import TurnedAway as TurnedAway

MAX_FRAME_BYTES = 64 * 1024 * 1024


class Admit(msgspec.Struct, frozen=True, tag="admit"):
    """Start one generation. ``id`` is the caller's and unique among running ones."""

    id: int
    prompt: list[int]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    ignore_eos: bool = False
    repetition_penalty: float = 1.0
    logit_bias: list[tuple[int, float]] = []
    min_tokens: int = 0
    stop_token_ids: list[int] = []
    grammar: str | None = None
    prefix: list[int] = []
    """With what the answer begins, where a model reads the prompt and writes beside it."""


class AdmitSound(msgspec.Struct, frozen=True, tag="sound"):
    """Write down what is said in a file of sound.

    ``language``: its code, such as "en"; None: the model is to hear which it is. ``translate``: in
    English. ``timestamps``: with tokens of time. ``prompt``: what was said before.
    """

    id: int
    file: bytes
    language: str | None = None
    translate: bool = False
    timestamps: bool = False
    prompt: list[int] = []
    temperature: float = 0.0
    seed: int | None = None


class AdmitEmbedding(msgspec.Struct, frozen=True, tag="embed"):
    """Embed one text of token ids."""

    id: int
    tokens: list[int]


class TextRow(msgspec.Struct, frozen=True, array_like=True):
    """Token ids as little-endian uint32. The last text in them ends at ``end``.

    A second one begins at ``second``; 0: there is none.
    """

    tokens: bytes
    second: int = 0
    end: int = 0


class Tensor(msgspec.Struct, frozen=True):
    """Numbers in little-endian order; ``datatype`` as Open Inference Protocol v2 has it: FP32."""

    name: str
    datatype: str
    shape: list[int]
    data: bytes


class AdmitInputs(msgspec.Struct, frozen=True, tag="inputs"):
    """Run the model once over each row of one request; it is answered by Values.

    ``options`` is what the model's head reads of the request (engines/one_pass/).
    """

    id: int
    texts: list[TextRow] = []
    options: dict[str, Any] = {}
    tensors: list[Tensor] = []
    images: list[bytes] = []


class AdmitForward(msgspec.Struct, frozen=True, tag="forward"):
    """Send one request to the server behind the model.

    ``body`` is its JSON object without the model, for one choice. ``route`` is what follows the
    server's address, such as ``chat/completions``.
    """

    id: int
    route: str
    body: bytes


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Stop one request at the next step boundary; it is answered by Finished(cancelled)."""

    id: int


class Park(msgspec.Struct, frozen=True, tag="park"):
    """Put one generation aside at the next step boundary; it is answered by Finished(parked).

    What it has drawn, its generator and its counts are kept; its cache is as long as there is room.
    One that has ended meanwhile is not answered again.
    """

    id: int


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    """Go on with a generation that was put aside, token for token as if it had not been."""

    id: int


class SetThreads(msgspec.Struct, frozen=True, tag="threads"):
    """At most ``n`` requests run at once from the next step on; running ones are not stopped."""

    n: int


class SetNiceness(msgspec.Struct, frozen=True, tag="niceness"):
    """Steps from the next one on leave the processors to others: ``n`` levels nicer; 0: not."""

    n: int


class Trim(msgspec.Struct, frozen=True, tag="trim"):
    """Give back the memory that no running request needs."""


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Show that you hear: asked of an engine at rest, and answered by Beat."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Leave now; what still runs is lost."""


ToEngine = (
    Admit
    | AdmitSound
    | AdmitEmbedding
    | AdmitInputs
    | Cancel
    | Park
    | Resume
    | SetThreads
    | SetNiceness
    | Trim
    | Ping
    | Stop
)


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """How far loading is, 0 to 1."""

    stage: str
    fraction: float


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded and takes requests."""

    context_length: int
    vocab_size: int
    eos_token_ids: list[int]
    device: str
    dtype: str
    max_threads: int
    """Slots that memory holds."""
    embedding_dimensions: int | None = None
    cpu_threads: int = 1
    """Threads that it computes with on the CPU; 1 with an accelerator."""
    memory_budget_bytes: int | None = None
    """What the process should hold at most, of memory that is no copy of a file."""
    about: dict[str, Any] = {}
    """What clients may know of a model that reads: its labels, its languages."""


class Token(msgspec.Struct, frozen=True, array_like=True):
    """One drawn token; ``top`` pairs token ids with log-probabilities."""

    id: int
    token: int
    logprob: float | None = None
    top: list[tuple[int, float]] = []


class Finished(msgspec.Struct, frozen=True, array_like=True):
    """A request left its slot; reason is stop (end-of-sequence), length, cancelled, parked."""

    id: int
    reason: str


class Step(msgspec.Struct, frozen=True, tag="step"):
    """One step of the engine: what it drew and what it cost. Tokens of eos are not reported."""

    number: int
    seconds: float
    decode_batch: int
    prefill_tokens: int
    tokens: list[Token]
    finished: list[Finished]
    kv_tokens_used: int = 0
    kv_tokens_total: int = 0
    cpu_seconds: float = 0.0
    """Of all threads of the engine's process during the step; 0: not measured."""
    parked: int = 0
    """Generations that are put aside in the engine."""
    reused: list[tuple[int, int]] = []
    """Who began in it with tokens that were kept from others: their ids, and how many."""
    ran: list[int] = []
    """Whose rows it ran, one id for each row, where the model runs once over its input."""


class Vector(msgspec.Struct, frozen=True, tag="vector"):
    """An embedding as little-endian float32 bytes, normalized to length 1."""

    id: int
    vector: bytes
    tokens: int


class Values(msgspec.Struct, frozen=True, tag="values"):
    """What the model's head made of AdmitInputs; ``tokens``: what it read, rows of tensors too."""

    id: int
    values: list[Any]
    tokens: int


class RequestFailed(msgspec.Struct, frozen=True, tag="failed"):
    """One request could not be run; the others go on."""

    id: int
    code: str
    message: str


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """The model can't be loaded: says what and how to mend it.

    ``may_pass``: another try may end well. ``retrying_in_seconds`` is the parent's word: None
    means that nothing is tried any more.
    """

    message: str
    may_pass: bool = False
    retrying_in_seconds: float | None = None


class Beat(msgspec.Struct, frozen=True, tag="beat"):
    """A sign of life: each second while it loads, amid a long step, and in answer to Ping."""


FromEngine = Loading | Ready | Step | Vector | Values | RequestFailed | LoadFailed | Beat | Memory
FromServer = Piece | Answered | TurnedAway | ConnectionLost | Gauges
"""What engines tell beside these that have a server instead of a process."""


class EngineDied(msgspec.Struct, frozen=True, tag="died"):
    """Made by the parent: the engine process ended; ``in_flight`` were running in it.

    ``reason`` is a sentence; ``said`` are its last lines, as far as they may be told
    (last_words.py).
    """

    in_flight: list[int]
    exit_code: int | None
    restarting_in_seconds: float
    reason: str = ""
    said: tuple[str, ...] = ()


EngineEvent = FromEngine | FromServer | EngineDied


class Engine(Protocol):
    """One model's engine as the API process sees it. All calls are from one asyncio loop.

    ``start`` returns at once; ``events`` yields Loading, then Ready or LoadFailed, then what
    running requests produce. After EngineDied the engine restarts by itself (with back-off) and
    yields Loading/Ready again; requests in flight are lost and the caller's to retry or fail.
    After LoadFailed it tries again where ``retrying_in_seconds`` says so, and rests otherwise.
    """

    spec: ModelSpec

    async def start(self) -> None:
        """Start the engine (its process, where it has one)."""

    def send(self, message: ToEngine | AdmitForward) -> None:
        """Queue a message for the engine; never blocks. What it can't do fails as a request."""

    def events(self) -> AsyncIterator[EngineEvent]:
        """All events, in order; one consumer."""

    def kill(self) -> None:
        """End the engine process now, because it stalls: yields EngineDied and restarts."""

    async def stop(self, grace_seconds: float) -> None:
        """Ask it to stop, kill after ``grace_seconds``; returns when nothing is left running."""
