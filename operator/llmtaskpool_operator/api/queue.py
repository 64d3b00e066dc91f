"""`spec.queue` and `spec.slo`: the queues' limits and order, and what users are promised. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from llmtaskpool_worker.scheduling.aged_share import DEFAULT_AGED_SHARE
from pydantic import Field

from llmtaskpool_operator.api.models import SecretKey
from llmtaskpool_operator.api.rules import Wire


class SharedQueue(Wire):
    """A Redis or Valkey on which the pool's workers share one line: any of them takes any task and
    answers for any, and what a lost worker had runs again."""

    secret_ref: SecretKey
    """Where the server's URL is, in the pool's namespace: `redis://user:password@host:6379/0`,
    `rediss://` with TLS, or `redis+sentinel://`. Workers read it at their start."""
    allow_volatile: bool = False
    """Take the server also when it may lose tasks: without an append-only file, or with
    eviction."""


class Queue(Wire):
    """Limits and order of each worker's queues."""

    limit: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Tasks that may wait per lane; more are answered 429 with Retry-After."""
    policy: Literal["priority", "newest-first"] = "priority"
    """priority: falling weight / load, with a share for those who waited `ageingSeconds`.
    newest-first: the same until the oldest has waited that long, then the newest first."""
    ageing_seconds: Annotated[float, Field(ge=0, le=86_400)] = 300
    """The seconds after which a task has aged: it has a part in `agedShare`, so that nothing waits
    for ever."""
    aged_share: Annotated[float, Field(ge=0, le=1)] = DEFAULT_AGED_SHARE
    """The share of thread-seconds that tasks which have aged get at least, the oldest first; all
    else is falling weight / load. 0: none. 1: they go before all others, which is first come,
    first served once a backlog has aged."""
    timeout_seconds: Annotated[float, Field(ge=0.1, le=86_400)] | None = None
    """A request that has waited for so many seconds is given up with 503. Default: the worker's
    own limit, 600."""
    task_timeout_seconds: Annotated[float, Field(ge=0.1, le=2_592_000)] | None = None
    """A task of `/v1/tasks` that has waited for so many seconds ends as expired. Default: the
    worker's own limit, 86,400."""
    redis: SharedQueue | None = None
    """Let tasks outlive their worker, in one line for the whole pool. Default: each worker has a
    line of its own in memory."""


class Slo(Wire):
    """What users are promised."""

    ttft_seconds: Annotated[float, Field(ge=0.01, le=3600)] = 10
    """Time to first token, in seconds. Four times of it, or 60, is `backlogDrainSeconds` when that
    is not set."""
    tpot_seconds: Annotated[float, Field(ge=0.001, le=60)] = 0.2
    """Time per output token, in seconds; it bounds the useful number of threads."""
