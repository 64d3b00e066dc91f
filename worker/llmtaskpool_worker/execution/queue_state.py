"""The queue as a worker tells of it."""

from __future__ import annotations

from llmtaskpool_worker.brokers.protocol import Depth, Durability
from llmtaskpool_worker.contract import QueueState


def queue_state(
    durability: Durability, depth: Depth, now: float, wall: float, batches: int
) -> QueueState:
    """What lies in it; ``now`` is of the broker's clock, ``wall`` since the epoch.

    ``batches``: how many want to be fed.
    """
    return QueueState(
        durability=durability.name,
        durable=durability.durable,
        shared=depth.shared,
        observed_at=wall - max(0.0, now - depth.as_of),
        error=depth.error,
        running=depth.running,
        blocked=depth.blocked,
        delayed=depth.delayed,
        dead=depth.dead,
        quarantined=depth.quarantined,
        batches=batches,
    )
