"""`spec.queue` and `spec.slo`: the queues' limits and order, and what users are promised. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmtaskpool_operator.api.rules import Wire


class Queue(Wire):
    """Limits and order of each worker's queues."""

    limit: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Tasks that may wait per lane; more are answered 429 with Retry-After."""
    policy: Literal["priority", "newest-first"] = "priority"
    """priority: falling weight / load, within the bound of `ageingSeconds`. newest-first: the
    same until the oldest has waited that long, then the newest first."""
    ageing_seconds: Annotated[float, Field(ge=0, le=86_400)] = 300
    """The seconds after which a task goes before all that have waited less, so that nothing waits
    for ever."""
    timeout_seconds: Annotated[float, Field(ge=0.1, le=86_400)] | None = None
    """A task that has waited for so many seconds is given up (503; a task of `/v1/tasks` ends as
    expired). Default: the worker's own limit, 600."""


class Slo(Wire):
    """What users are promised."""

    ttft_seconds: Annotated[float, Field(ge=0.01, le=3600)] = 10
    """Time to first token, in seconds. Four times of it, or 60, is `backlogDrainSeconds` when that
    is not set."""
    tpot_seconds: Annotated[float, Field(ge=0.001, le=60)] = 0.2
    """Time per output token, in seconds; it bounds the useful number of threads."""
