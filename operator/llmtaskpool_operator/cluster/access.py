"""What the backends of all pools share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from llmtaskpool_operator.cluster.api_client import KubernetesApi
from llmtaskpool_operator.cluster.claims import OtherOperators
from llmtaskpool_operator.cluster.rollouts import Rollouts
from llmtaskpool_operator.cluster.store import ClusterStore
from llmtaskpool_operator.workers.client import WorkerClient


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """``worker(address, token)`` makes a control client."""

    store: ClusterStore
    api: KubernetesApi
    worker: Callable[[str, str], WorkerClient]
    others: OtherOperators
    rollouts: Rollouts = field(default_factory=lambda: Rollouts(1_000_000))
