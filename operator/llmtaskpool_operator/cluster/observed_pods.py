"""A pod as it is observed: what the API server tells of it, and what it answered. Pure."""

from __future__ import annotations

from llmtaskpool_operator.autoscaler.observation import PodObservation
from llmtaskpool_operator.cluster import pod_facts
from llmtaskpool_operator.cluster.manifests import Manifest
from llmtaskpool_operator.workers.states import Answer


def observed(
    pod: Manifest, answer: Answer | None, now: float, address: str | None = None
) -> PodObservation:
    """``answer``: its last one, None before the first; ``now`` in its seconds."""
    return PodObservation(
        name=pod_facts.name_of(pod),
        ready=pod_facts.is_ready(pod),
        draining=pod_facts.is_going(pod),
        lost=pod_facts.is_lost(pod, now),
        state=None if answer is None else answer.state,
        age_seconds=0.0 if answer is None else max(0.0, now - answer.at),
        error=None if answer is None else answer.error,
        address=address,
    )
