"""The drain: no new tasks, what is accepted within a budget, an error for the rest.

Who begins one: SIGTERM (``assembly.worker``), and ``POST /control/v1/drain``, which `llmtaskpool
local` sends to a worker that is to go. On Kubernetes pods that are to go get SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from llmtaskpool_worker.brokers.protocol import Unavailable
from llmtaskpool_worker.contract import Phase
from llmtaskpool_worker.execution.ledger import TaskLedger
from llmtaskpool_worker.scheduling.task import TaskError


class Drain:
    """One worker's; ``clock`` in seconds."""

    def __init__(self, ledger: TaskLedger, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._until: float | None = None

    @property
    def begun(self) -> bool:
        """Whether new tasks are refused."""
        return self._until is not None

    @property
    def phase(self) -> Phase:
        """DRAINING while accepted tasks are left, else DRAINED."""
        return Phase.DRAINING if self._ledger.left else Phase.DRAINED

    def begin(self, budget_seconds: float) -> None:
        """Refuse new tasks. A second drain can shorten the budget, never lengthen it."""
        until = self._clock() + budget_seconds
        self._until = until if self._until is None else min(until, self._until)

    async def finish(self, grace_seconds: float) -> None:
        """Wait at most so long for what is accepted, then end what is left."""
        deadline = self._clock() + grace_seconds
        while self._ledger.left and self._clock() < deadline:
            self._ledger.emptied.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    self._ledger.emptied.wait(), min(1.0, deadline - self._clock())
                )
        await self._give_up_the_rest()

    async def look(self, now: float) -> None:
        """End what is left once the budget is used up."""
        if self._until is not None and now >= self._until:
            await self._give_up_the_rest()

    async def _give_up_the_rest(self) -> None:
        """Of a durable broker only what ends with this worker: the next one runs the others."""
        ledger = self._ledger
        error = TaskError("draining", "the worker stopped before the task had ended; try again")
        for task in list(ledger.active.values()):
            if ledger.broker.durability.durable and not task.request.attended:
                ledger.let_others(task, "its worker stopped")
            else:
                ledger.stop(task, error)
        with contextlib.suppress(Unavailable):
            for view in await ledger.broker.give_up(error):
                ledger.ended(view)
