"""Who else writes the replicas of a pool: told when it is written, and not for ever after. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from llmtaskpool_operator.api.pool import LLMTaskPool
from llmtaskpool_operator.api.scaling import ScalingMode
from llmtaskpool_operator.api.status import ConditionType, LLMTaskPoolStatus
from llmtaskpool_operator.autoscaler.plan import given_replicas
from llmtaskpool_operator.cluster.api_client import MANAGER
from llmtaskpool_operator.cluster.differences import REPLICAS, last_write, writer_of
from llmtaskpool_operator.cluster.manifests import Manifest
from llmtaskpool_operator.cluster.pod_facts import seconds

TOLD_SECONDS = 600.0
"""A write is told for so long; who goes on writing is told anew at each."""
_SCALERS = "whoever writes /scale (HPA, KEDA, kubectl scale)"


@dataclass(slots=True)
class ScaleWrites:
    """Of one pool from turn to turn: what spec.replicas was, and when it was written last.

    A write through a custom resource's /scale leaves no manager in managedFields (1.37), and no
    time: that it differs from what it was is all there is to see.
    """

    known: int | None = None
    at: float | None = None
    began: bool = False

    def since(self, pool: LLMTaskPool, now: float) -> float | None:
        """When somebody wrote it, in seconds since the epoch; None: nobody did that we know of."""
        given = pool.spec.replicas
        if pool.spec.scaling.mode is not ScalingMode.AUTO:
            self.began, self.at = True, None  # there it is whoever's it is
        elif not self.began:
            self.began, self.at = True, _as_left(pool, now)
        elif given != self.known:
            self.at = now
        self.known = given
        return None if given is None else self.at


def _as_left(pool: LLMTaskPool, now: float) -> float | None:
    """What whoever led before has told of it; who sees a spec first takes it for news."""
    status = pool.status or LLMTaskPoolStatus()
    kind = ConditionType.SCALING_CONFLICT.value
    told = next((one for one in status.conditions if one.type == kind), None)
    if told is not None:
        return seconds(told.last_transition_time)
    return None if status.observed_generation == pool.metadata.generation else now


def rival_of(
    pool: LLMTaskPool,
    body: Manifest | None,
    deployment: Manifest | None,
    writes: ScaleWrites,
    now: float,
) -> str | None:
    """Who writes replicas that are not theirs to write, as of late.

    ``body`` is the pool and ``deployment`` its Deployment as the server has them.
    """
    mode, written = pool.spec.scaling.mode, writes.since(pool, now)
    if mode is ScalingMode.ADVISE:
        return None
    fresh = written is not None and now - written < TOLD_SECONDS
    if mode is ScalingMode.AUTO and body and fresh and writer_of(body, REPLICAS) is None:
        return _SCALERS
    latest = last_write(deployment, REPLICAS) if deployment else None
    if deployment is None or latest is None or latest[1] == MANAGER:
        return None
    at, asked = seconds(latest[0]) or 0.0, int(deployment.get("spec", {}).get("replicas", 1))
    late = now - at >= TOLD_SECONDS
    # Put back at once where the pool says how many: there the write itself is what is told.
    if late if mode is ScalingMode.AUTO else asked == given_replicas(pool.spec):
        return None
    return f"{latest[1]} (on the Deployment)"
