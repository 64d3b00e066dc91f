"""What others may rely on: ports, routes, metric names and the state a worker reports.

Pure: the operator imports this module, so it imports nothing but pydantic.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

DATA_PORT = 8000
CONTROL_PORT = 8001

LIVEZ = "/livez"
READYZ = "/readyz"
METRICS = "/metrics"
OPEN_ROUTES = frozenset({LIVEZ, READYZ, METRICS})
"""The only routes that answer without a key when a key is set."""

REQUEST_ID = "x-request-id"
"""The header with a request's id: of every answer, and in the log."""
GOOD_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
"""A client's own is kept when it is one of these."""

CONTROL_STATE = "/control/v1/state"
CONTROL_THREADS = "/control/v1/threads"
CONTROL_DRAIN = "/control/v1/drain"
CONTROL_WORKERS = "/control/v1/workers"
"""Of a gate alone."""

COLD_START = "x-llmtaskpool-cold-start"
"""The header of an answer whose request a gate held until a worker was there: ``true``."""

METRIC_WORK_ARRIVED = "llmtaskpool_work_arrived_seconds_total"
METRIC_WORK_DONE = "llmtaskpool_work_done_seconds_total"
METRIC_WORK_WAITING = "llmtaskpool_work_waiting_seconds"
METRIC_TASKS_ACTIVE = "llmtaskpool_tasks_active"
METRIC_TASKS_QUEUED = "llmtaskpool_tasks_queued"
METRIC_THREADS = "llmtaskpool_threads"
METRIC_VLLM_WAITING = "vllm:num_requests_waiting"
METRIC_VLLM_RUNNING = "vllm:num_requests_running"
METRIC_VLLM_KV_USAGE = "vllm:kv_cache_usage_perc"


class LaneName(StrEnum):
    """The lanes of a worker; each has its own threads, its own queue and its own limits."""

    COMPUTE = "compute"
    IO = "io"


class Phase(StrEnum):
    """Where a worker is in its life; only READY takes new tasks."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    DRAINED = "drained"
    FAILED = "failed"


_UNTOLD: set[str] = set()


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    def model_post_init(self, _context: object, /) -> None:
        """Let go of which fields were given: nobody asks, and it is half of a message's memory."""
        object.__setattr__(self, "__pydantic_fields_set__", _UNTOLD)


Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


class LaneState(_Message):
    """One lane as it is now.

    ``threads`` is N in force; ``threads_cap`` the most the worker finds useful (the knee of its
    step-time curve, lowered by its latency guard, and what its memory holds).
    """

    threads: Count
    threads_cap: Count
    active: Count
    queued: Count
    queue_limit: Count
    oldest_wait_seconds: Seconds = 0.0


class GpuReading(_Message):
    """One device as NVML tells it; a field NVML doesn't give is None and never 0.

    ``sm_activity``: share of its multiprocessors that worked since the reading before, on chips
    that count it (Hopper and later). Of a device in MIG parts, memory and activity are those of
    the parts that this process may use.
    """

    index: Count
    name: str
    utilization: Annotated[float, Field(ge=0, le=1)] | None = None
    memory_used_bytes: Count | None = None
    memory_total_bytes: Count | None = None
    sharing: Literal["exclusive", "mig", "time-slicing"] | None = None
    sm_activity: Annotated[float, Field(ge=0, le=1)] | None = None


class Work(_Message):
    """Offered work in pod-seconds: seconds of one worker at its efficient batch size.

    Counters start at 0 with the process. ``arrived`` counts at arrival, rejected tasks included.
    """

    arrived_seconds_total: Seconds = 0.0
    done_seconds_total: Seconds = 0.0
    waiting_seconds: Seconds = 0.0


class Totals(_Message):
    """Tasks since the process started, by how they ended."""

    accepted: Count = 0
    rejected: Count = 0
    succeeded: Count = 0
    failed: Count = 0
    cancelled: Count = 0
    expired: Count = 0
    dead: Count = 0


class QueueState(_Message):
    """The queue as this worker last saw it. ``shared``: it is the pool's, and not to be summed."""

    durability: str
    """memory, file, or what a server that holds it promises."""
    durable: bool
    shared: bool = False
    observed_at: float
    error: str | None = None
    """Why nothing newer is known, or nothing can be written."""
    running: Count = 0
    blocked: Count = 0
    """They wait for other tasks."""
    delayed: Count = 0
    """They wait for their time."""
    dead: Count = 0
    """Dead letters."""
    quarantined: Count = 0
    """Entries that nobody here can read."""
    batches: Count = 0
    """Batches that have not ended and that nobody has cancelled: a worker feeds their lines."""


class TenantState(_Message):
    """A tenant's tasks. Of a shared queue ``waiting`` and ``running`` are the pool's; what was
    started (in thread-seconds, T of P = W / T) and refused is this worker's."""

    waiting: Count = 0
    running: Count = 0
    started_seconds_total: Seconds = 0.0
    refused_total: Count = 0


class KindState(_Message):
    """Where a kind of task runs and why: its seconds on a CPU against those it waited."""

    lane: LaneName
    declared: bool
    compute_seconds: Seconds
    waiting_seconds: Seconds
    runs: Count
    reason: str


class ModelProblem(_Message):
    """Why a model takes nothing now.

    ``code``: load_failed (nothing is tried any more), retrying (it could not be loaded and is
    tried again), restarting (its engine died), stalled (its engine stands still).
    """

    code: Literal["load_failed", "retrying", "restarting", "stalled"]
    message: str


class ModelMemory(_Message):
    """What a model's engine process holds of memory that is no copy of a file.

    ``budget_bytes``: what it should hold at most; ``recycled_total``: how often it began anew
    because it stayed beyond that.
    """

    own_bytes: Count | None = None
    budget_bytes: Count | None = None
    given_back_bytes_total: Count = 0
    recycled_total: Count = 0


class UpstreamState(_Message):
    """The server behind a model: our own counts, and what its metrics page says, if it does.

    ``limit`` is the most requests that are in flight now; ``turned_away_total`` those that it
    answered with 429 or 503, which wait again.
    """

    in_flight: Count
    limit: Count
    turned_away_total: Count = 0
    running: Seconds | None = None
    waiting: Seconds | None = None
    cache_usage: Seconds | None = None
    preemptions_total: Seconds | None = None


Address = Annotated[
    str, Field(max_length=300, pattern=r"^([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$")
]
"""``host:port`` of a worker's data port."""

MOST_WORKERS = 64
"""So many workers are told to a gate: more are not needed until it is out of the way."""


class GateState(_Message):
    """What a gate has to do: requests that it holds, and those that it has passed on."""

    held: Count
    """They wait for a worker."""
    recent: Count = 0
    """Those that asked for a worker within the last 10 s, also when their clients have left."""
    forwarding: Count = 0
    """Workers are at them."""
    arrived_total: Count = 0
    """Requests that asked for a worker, since the process started."""
    workers: tuple[Address, ...] = ()
    """The ready workers that it knows."""


class WorkerReport(_Message):
    """Of a worker's state what the operator reads and keeps: it has thousands of them."""

    schema_version: Literal[1] = 1
    started_at: float
    observed_at: float
    phase: Phase
    threads_generation: Count = 0
    lanes: dict[LaneName, LaneState]
    work: Work = Work()
    gpus: tuple[GpuReading, ...] = ()
    rss_bytes: Count | None = None
    model_devices: dict[str, str] = {}
    """Where models that are loaded run, by their names: "cpu", or a kind of accelerator."""
    model_problems: dict[str, ModelProblem] = {}
    """What is wrong with models now, by their names; one that loads for the first time is not."""
    queue: QueueState | None = None
    """None: of a worker that is older than this."""
    gate: GateState | None = None
    """None: it is a worker."""


class WorkerState(WorkerReport):
    """The answer of ``GET /control/v1/state``: what the operator reads, and what tells people."""

    worker_id: str
    totals: Totals = Totals()
    models: tuple[str, ...] = ()
    steps_total: Count = 0
    kv_cache_usage: Annotated[float, Field(ge=0, le=1)] | None = None
    """The fullest engine's share of KV cache tokens in use; None where no engine has one."""
    kinds: dict[str, KindState] = {}
    """The registered kinds, by name."""
    model_memory: dict[str, ModelMemory] = {}
    """Of engines that have a process and have told it, by the models' names."""
    upstreams: dict[str, UpstreamState] = {}
    """The servers behind models, by the models' names."""
    tenants: dict[str, TenantState] = {}
    """By their names; those that have none are called key- and a few digits of a digest."""


class ThreadsRequest(_Message):
    """The body of ``PUT /control/v1/threads``: absolute N per lane, with the generation it is of.

    A generation lower than the one observed is answered 409 and changes nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    generation: Count
    threads: dict[LaneName, Annotated[int, Field(ge=1, le=4096)]]


class ThreadsAnswer(_Message):
    """What the worker has in force after a ThreadsRequest."""

    generation: Count
    threads: dict[LaneName, Count]


class WorkersRequest(_Message):
    """The body of ``PUT /control/v1/workers``: all ready workers of a gate's pool, absolute."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    workers: Annotated[tuple[Address, ...], Field(max_length=MOST_WORKERS)]


class DrainRequest(_Message):
    """The body of ``POST /control/v1/drain``: stop taking tasks, finish within the budget."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    budget_seconds: Annotated[float, Field(ge=0, le=86_400)] = 60.0


class DrainAnswer(_Message):
    """How far a drain is: what still runs and what still waits."""

    phase: Phase
    active: Count
    queued: Count


def keys_in(text: str) -> list[str]:
    """The keys of a file: one a line. Blank lines and lines that begin with ``#`` are none.

    Raises ValueError when a line holds more than one word, or none is a key.
    """
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 1:
            raise ValueError(
                f"line {number} holds more than one word: put one key a line into it, and comments "
                "on lines of their own that begin with #"
            )
        keys += words
    if not keys:
        raise ValueError("it holds no key: put one key a line into it, or unset it")
    return keys
