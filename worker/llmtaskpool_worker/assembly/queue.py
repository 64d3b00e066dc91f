"""Which queue a worker's setting names, and the broker that is it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from llmtaskpool_worker.brokers.memory import MemoryBroker
from llmtaskpool_worker.brokers.protocol import Broker
from llmtaskpool_worker.execution.ids import ids, short_ids
from llmtaskpool_worker.execution.running import LEASE_SECONDS
from llmtaskpool_worker.scheduling.limits import Limits
from llmtaskpool_worker.scheduling.tenants import parse_tenants

MEMORY = "memory"
SQLITE = "sqlite:"
SERVERS = ("redis", "rediss", "unix", "redis+sentinel")
"""Schemes of URLs of a server that workers share."""
GOOD_POOL = re.compile(r"[A-Za-z0-9._-]{1,253}/[A-Za-z0-9._-]{1,253}")


def check_queue(value: str) -> str:
    """The setting as it is kept. Raises ValueError with the remedy."""
    value = value.strip()
    if value in ("", MEMORY):
        return MEMORY
    name, colon, path = value.partition(":")
    if name + colon == SQLITE and path.lstrip("/"):
        return value
    if name in SERVERS and path.startswith("//"):
        return value
    shown = f"{name}{colon}..." if colon else name[:40]  # the rest may hold a password
    raise ValueError(
        f"{shown!r} names no queue: it is {MEMORY}, {SQLITE}PATH for a file of this worker, or the "
        "URL of a Redis or Valkey that workers share: redis://, rediss:// (TLS), unix:// or "
        "redis+sentinel://"
    )


def read_queue(file: Path) -> str:
    """The queue that a file names. Raises ValueError with the remedy."""
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file.name} can't be read ({type(error).__name__}): it is a file with the URL of a "
            "Redis or Valkey"
        ) from None
    return check_queue(text)


def readable_queue(file: Path) -> Path:
    """A file that names a queue. Raises ValueError with the remedy."""
    read_queue(file)
    return file


def tenants_of(value: object) -> object:
    """A setting as people write it, read. Raises ValueError with the remedy."""
    return parse_tenants(value) if isinstance(value, str) else value


def check_pool(value: str) -> str:
    """The name of the pool on a shared queue. Raises ValueError with the remedy."""
    if GOOD_POOL.fullmatch(value):
        return value
    raise ValueError(f"{value[:80]!r} is no name of a pool: it is NAMESPACE/NAME")


def broker_of(
    queue: str,
    limits: Limits,
    clock: Callable[[], float],
    wall_clock: Callable[[], float],
    *,
    pool: str,
    allow_volatile: bool = False,
) -> Broker:
    """The broker of a setting that ``check_queue`` has passed; it is not started.

    ``pool`` names the line on a server that is shared.
    """
    if queue.partition(":")[0] in SERVERS:
        # Only who has a server needs its client, which takes 20 MB.
        from llmtaskpool_worker.brokers.redis.away import PoolBroker
        from llmtaskpool_worker.brokers.redis.broker import RedisBroker
        from llmtaskpool_worker.brokers.redis.link import Address

        line = RedisBroker(
            Address(queue),
            pool,
            limits,
            clock,
            lease_seconds=LEASE_SECONDS,
            allow_volatile=allow_volatile,
        )
        return PoolBroker(line, limits, clock)
    if queue.startswith(SQLITE):
        from llmtaskpool_worker.brokers.sqlite import SqliteBroker  # only who has a file needs it

        path = Path(queue.removeprefix(SQLITE)).expanduser()
        return SqliteBroker(path, limits, clock, wall_clock)
    return MemoryBroker(limits, clock)


def ids_of(broker: Broker, worker_id: str) -> Callable[[], str]:
    """A maker of ids; of a queue that is not shared they tell who holds the task."""
    if broker.shared:
        return short_ids()
    new_id = ids()
    return lambda: f"{worker_id}-{new_id()}"
