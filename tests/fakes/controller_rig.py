"""A controller and the cluster in memory that it works on."""

from __future__ import annotations

import asyncio
from typing import Any

from fakes.cluster_objects import NAME, NAMESPACE, worker_state
from fakes.memory_cluster import KEY, MemoryCluster
from llmtaskpool_operator.api.names import KIND
from llmtaskpool_operator.cluster.controller import Controller, OperatorIdentity
from llmtaskpool_operator.cluster.metrics import OperatorMetrics
from llmtaskpool_operator.replay.record import Recorder

SECRET = b"the operator's key"
STATUS = ("apply/status", KIND, NAME)
THREADS = {"compute": {"mode": "Fixed", "initial": 4}}
AT_REST: dict[str, Any] = {"threads": THREADS}
"""A pool that wants what its one idle pod has."""
ODD: dict[str, Any] = {"scaling": {"minReplicas": 9, "maxReplicas": 2}}


class Rig:
    """One controller and the cluster that it works on, at ``now``."""

    def __init__(self, **spec: Any) -> None:
        self.cluster = MemoryCluster()
        self.api = self.cluster.api
        self.now = 1_800_000_000.0
        self.metrics = OperatorMetrics()
        self.controller = self.another()
        self.cluster.pool(**spec)

    def another(self, recorder: Recorder | None = None) -> Controller:
        """Another replica's, which remembers nothing."""
        identity = OperatorIdentity("replica-1", "llmtaskpool-system", "worker:1", SECRET)
        access, metrics = self.cluster.access, self.metrics
        return Controller(access, identity, metrics, lambda: self.now, recorder)

    def turn(self) -> float | None:
        """One turn, after which the watches have told of all that was written."""
        self.api.calls.clear()
        self.api.bodies.clear()
        try:
            return asyncio.run(self.controller.turn(KEY))
        finally:
            self.cluster.catch_up()

    def settled(self, **pod: Any) -> Rig:
        """With its one pod, after the turns that it takes to get there."""
        self.turn()
        self.cluster.pods("a", state=worker_state("a"), **pod)
        for _ in range(3):
            self.now += 5
            self.turn()
        return self

    def respec(self, **spec: Any) -> None:
        body = self.api.find(KIND, NAMESPACE, NAME)
        self.cluster.put(body | {"spec": spec})

    @property
    def status(self) -> dict[str, Any]:
        return self.api.find(KIND, NAMESPACE, NAME).get("status", {})

    def condition(self, kind: str) -> dict[str, Any]:
        return next((c for c in self.status.get("conditions", ()) if c["type"] == kind), {})

    @property
    def events(self) -> list[str]:
        return [body["reason"] for key, body in self.api.objects.items() if key[0] == "Event"]

    @property
    def writes(self) -> list[Any]:
        return [call for call in self.api.writes if call[1] != "Event"]
