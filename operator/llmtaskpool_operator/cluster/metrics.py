"""The operator's /metrics: decisions, turns, queue, API errors, leadership (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from llmtaskpool_worker.contract import LaneName
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from llmtaskpool_operator.autoscaler.plan import SetReplicas

if TYPE_CHECKING:
    from llmtaskpool_operator.autoscaler.reconcile import ReconcileResult

_POOL = ("namespace", "pool")
_DECIDED = tuple(
    (what, way)
    for what in ("replicas", *(f"threads/{lane}" for lane in LaneName))
    for way in ("up", "down")
)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class OperatorMetrics:
    """All of them, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        prefix = "llmtaskpool_operator"
        self._turns = Counter(
            f"{prefix}_turns", "Turns by how they ended.", ("result",), registry=self.registry
        )
        self._turn_seconds = Histogram(
            f"{prefix}_turn_seconds",
            "Seconds that a turn took.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._decisions = Counter(
            f"{prefix}_decisions",
            "Decisions that changed something, by what and direction.",
            (*_POOL, "what", "direction"),
            registry=self.registry,
        )
        self._desired = Gauge(
            f"{prefix}_desired_replicas", "Replicas decided on.", _POOL, registry=self.registry
        )
        self._ready = Gauge(
            f"{prefix}_ready_replicas", "Pods that take tasks.", _POOL, registry=self.registry
        )
        self._utilization = Gauge(
            f"{prefix}_utilization", "U of the last decision.", _POOL, registry=self.registry
        )
        self._offered = Gauge(
            f"{prefix}_offered_work",
            "Offered work in pods: arrivals and backlog; over target and rounded up it is the "
            "number of replicas that the pool needs. For HPA and KEDA.",
            _POOL,
            registry=self.registry,
        )
        self._api_errors = Counter(
            f"{prefix}_api_errors",
            "Requests of the API server that failed; code 0: no answer.",
            ("verb", "code"),
            registry=self.registry,
        )
        self._last: dict[tuple[str, str], tuple[int, int, float | None, int]] = {}
        """Of each pool what was told last: its series are found anew only when that moves."""
        self._depth = Gauge(f"{prefix}_queue_depth", "Pools due.", registry=self.registry)
        self._oldest = Gauge(
            f"{prefix}_queue_oldest_seconds",
            "How long the pool that waits longest has been due.",
            registry=self.registry,
        )
        self._behind = Gauge(
            f"{prefix}_watch_behind_seconds",
            "How long the watch of a kind has owed what lists show; 0: it works.",
            ("kind",),
            registry=self.registry,
        )
        self._leader = Gauge(
            f"{prefix}_leader", "1 while this replica leads.", registry=self.registry
        )

    def turn(self, result: str, seconds: float) -> None:
        """A turn ended: ``ok``, ``failed`` or ``fenced``."""
        self._turns.labels(result).inc()
        self._turn_seconds.observe(seconds)

    def decided(self, namespace: str, name: str, result: ReconcileResult) -> None:
        """What a turn saw and decided."""
        labels, decision = (namespace, name), result.decisions.replicas
        utilization = None if decision is None else decision.utilization
        current = 0 if decision is None else decision.current
        status = result.status
        now = (status.desired_replicas, status.ready_replicas, utilization, current)
        moved = [
            made
            for made in result.decisions.threads
            if made.decision.desired != made.decision.current
        ]
        if self._last.get(labels) == now and not result.plan and not moved:
            return
        self._last[labels] = now
        for what, way in _DECIDED:
            # There at 0 before the first: Prometheus sees no increase in a series that is new.
            self._decisions.labels(*labels, what, way)
        self._desired.labels(*labels).set(status.desired_replicas)
        self._ready.labels(*labels).set(status.ready_replicas)
        if utilization is not None:
            self._utilization.labels(*labels).set(utilization)
            self._offered.labels(*labels).set(utilization * max(1, current))
        for action in result.plan:
            if isinstance(action, SetReplicas):
                way = "up" if action.replicas > result.observed.replicas else "down"
                self._decisions.labels(*labels, "replicas", way).inc()
        for made in moved:
            way = "up" if made.decision.desired > made.decision.current else "down"
            self._decisions.labels(*labels, f"threads/{made.lane}", way).inc()

    def forget(self, namespace: str, name: str) -> None:
        """The pool is gone, and its series with it."""
        self._last.pop((namespace, name), None)
        labels = {"namespace": namespace, "pool": name}
        for gauge in (self._desired, self._ready, self._utilization, self._offered):
            gauge.remove_by_labels(labels)
        self._decisions.remove_by_labels(labels)

    def api_error(self, verb: str, code: int) -> None:
        """A request failed."""
        self._api_errors.labels(verb, str(code)).inc()

    def queue(self, depth: int, oldest_seconds: float) -> None:
        """The queue now."""
        self._depth.set(depth)
        self._oldest.set(oldest_seconds)

    def watches(self, behind: Mapping[str, float]) -> None:
        """Seconds that the watch of each kind is behind."""
        for kind, seconds in behind.items():
            self._behind.labels(kind).set(seconds)

    def leading(self, leads: bool) -> None:
        """Whether this replica leads."""
        self._leader.set(1 if leads else 0)
