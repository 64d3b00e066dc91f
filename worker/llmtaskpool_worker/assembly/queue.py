"""Which queue a worker's setting names, and the broker that is it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llmtaskpool_worker.brokers.memory import MemoryBroker
from llmtaskpool_worker.brokers.protocol import Broker
from llmtaskpool_worker.execution.ids import ids
from llmtaskpool_worker.scheduling.limits import Limits

MEMORY = "memory"
SQLITE = "sqlite:"


def check_queue(value: str) -> str:
    """The setting as it is kept. Raises ValueError with the remedy."""
    value = value.strip()
    if value in ("", MEMORY):
        return MEMORY
    name, colon, path = value.partition(":")
    if name + colon == SQLITE and path.lstrip("/"):
        return value
    raise ValueError(
        f"{value[:80]!r} names no queue: it is {MEMORY}, or {SQLITE}PATH for a file of this worker"
    )


def broker_of(
    queue: str, limits: Limits, clock: Callable[[], float], wall_clock: Callable[[], float]
) -> Broker:
    """The broker of a setting that ``check_queue`` has passed; it is not started."""
    if queue.startswith(SQLITE):
        from llmtaskpool_worker.brokers.sqlite import SqliteBroker  # only who has a file needs it

        path = Path(queue.removeprefix(SQLITE)).expanduser()
        return SqliteBroker(path, limits, clock, wall_clock)
    return MemoryBroker(limits, clock)


def ids_of(broker: Broker, worker_id: str) -> Callable[[], str]:
    """A maker of ids; of a queue that is not shared they tell who holds the task."""
    new_id = ids()
    return new_id if broker.shared else lambda: f"{worker_id}-{new_id()}"
