"""The task pool: submit, queue, lanes, engines, results."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from llmtaskpool_worker.contract import GpuReading
from llmtaskpool_worker.engines.protocol import Engine
from llmtaskpool_worker.kinds import Kinds
from llmtaskpool_worker.limits import Limits


class Dispatcher:
    """Implements pool.TaskPool over engines and registered kinds. All calls are from one loop.

    ``tokenizers`` are looked up by model name when a task starts: they may be filled in later.
    """

    def __init__(
        self,
        *,
        engines: Sequence[Engine] = (),
        tokenizers: Mapping[str, Any] | None = None,
        kinds: Kinds | None = None,
        limits: Limits | None = None,
        worker_id: str = "worker",
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: uuid4().hex,
        gpus: Callable[[], tuple[GpuReading, ...]] = tuple,
        rss_bytes: Callable[[], int | None] = lambda: None,
    ) -> None:
        raise NotImplementedError

    async def start(self) -> None:
        """Start the engines and the loops; returns at once (phase: starting)."""

    async def stop(self, grace_seconds: float) -> None:
        """Drain for at most ``grace_seconds``, then end everything; idempotent."""
