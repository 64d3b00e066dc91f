"""What events say of pods that start in silence: a volume that can't be mounted has no condition.

One pod of a pool is asked about, soon and then more and more seldom: to pull a large image takes
minutes in which nothing is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmtaskpool_operator.autoscaler.observation import Problem
from llmtaskpool_operator.cluster.api_client import ApiFailure, KubernetesApi
from llmtaskpool_operator.cluster.manifests import Manifest
from llmtaskpool_operator.cluster.pod_facts import name_of, seconds

FIRST_SECONDS = 4.0
MOST_SECONDS = 60.0
_OTHERS = ("FailedScheduling", "Unhealthy", "BackOff")
"""Warnings of what a pod's status tells better."""
_MISSING = re.compile(r"not found|non-existent")


class StartWarnings:
    """Of one pool's pods, from turn to turn."""

    def __init__(self, api: KubernetesApi) -> None:
        self._api = api
        self._found: dict[str, Problem] = {}
        self._next = float("-inf")
        self._wait = FIRST_SECONDS
        self.missed = 0
        """How often something of the pool's may have been missing: when pods begin to be silent,
        and each time that an event says so."""

    async def of(self, pods: Sequence[Manifest], now: float) -> dict[str, Problem]:
        """Problems by pod, of ``pods`` that start in silence; ``now`` in seconds."""
        names = {name_of(pod) for pod in pods}
        self._found = {name: told for name, told in self._found.items() if name in names}
        if not pods:
            self._next, self._wait = float("-inf"), FIRST_SECONDS
            return {}
        if now >= self._next:
            first = self._next == float("-inf")
            self._next, self._wait = now + self._wait, min(2 * self._wait, MOST_SECONDS)
            pod = pods[0]
            try:
                problem = await self._asked_about(pod)
            except ApiFailure:
                problem = None  # without the right to list events there is one reason less
            self.missed += first or problem is not None
            if problem is not None:
                self._found[name_of(pod)] = problem
                self._wait = FIRST_SECONDS
        return dict(self._found)

    async def _asked_about(self, pod: Manifest) -> Problem | None:
        name, namespace = name_of(pod), pod["metadata"]["namespace"]
        selector = f"regarding.name={name},type=Warning"
        found = await self._api.list("Event", namespace, fields=selector)
        told = [one for one in found.items if one.get("reason") not in _OTHERS]
        return _problem(name, max(told, key=_at)) if told else None


def _at(event: Manifest) -> float:
    series = event.get("series") or {}
    times = (
        series.get("lastObservedTime"),
        event.get("deprecatedLastTimestamp"),
        event.get("eventTime"),
    )
    return max((seconds(time) or 0.0 for time in times), default=0.0)


_FIELDS = {
    '"keys"': "spec.auth.apiKeySecretRef",
    '"tenants"': "spec.tenants.named[].apiKeySecretRef",
    '"queue"': "spec.queue.redis.secretRef",
}
"""Of volumes that are Secrets' the fields that name these."""


def _problem(pod: str, event: Manifest) -> Problem:
    reason, note = str(event.get("reason") or "FailedMount"), str(event.get("note") or "")
    words = " ".join(note.split())[:400].rstrip(".")
    if reason != "FailedMount":
        return Problem("PodWaits", f"{pod}: {reason}: {words}: kubectl describe pod {pod}")
    missing = _MISSING.search(words) is not None
    remedy = f"kubectl describe pod {pod}"
    if field := next((field for volume, field in _FIELDS.items() if volume in words), None):
        remedy = f"make that Secret and key, or correct {field}"
    elif missing:
        remedy = "make what it names, or correct the name in the pool's spec"
    return Problem("FailedMount", f"{pod}: {words}: {remedy}", stalled=missing)
