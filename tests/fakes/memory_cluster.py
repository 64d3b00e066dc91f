"""A cluster in memory for one pool: API server, store, and workers with scripted answers."""

from __future__ import annotations

import asyncio
from typing import Any

from fakes.cluster_objects import NAME, NAMESPACE, gate_body, pod_body, pool_body
from fakes.cluster_objects import pool as pool_of
from fakes.memory_api import MemoryApi
from llmtaskpool_operator.api.names import KIND
from llmtaskpool_operator.api.status import LLMTaskPoolStatus
from llmtaskpool_operator.cluster.access import ClusterAccess
from llmtaskpool_operator.cluster.backend import KubernetesBackend
from llmtaskpool_operator.cluster.claims import OtherOperators
from llmtaskpool_operator.cluster.manifests import Surroundings
from llmtaskpool_operator.cluster.store import ClusterStore, PoolKey
from llmtaskpool_operator.workers.client import ThreadsRefused, WorkerUnreachable
from llmtaskpool_operator.workers.states import PodStates
from llmtaskpool_worker.contract import WorkerState

KEY = PoolKey(NAMESPACE, NAME)


class MemoryCluster:
    """``states`` are the workers' answers by pod; ``threads`` what was set, with its generation."""

    def __init__(self) -> None:
        self.api = MemoryApi()
        self.turns: list[PoolKey] = []
        self.store = ClusterStore(lambda key, _kind: self.turns.append(key))
        self.states: dict[str, WorkerState] = {}
        self.threads: list[tuple[str, int, dict[str, int]]] = []
        self.told: list[tuple[str, tuple[str, ...]]] = []
        """What gates were told, by pod."""
        self.tokens: set[str] = set()
        self.refuses = False
        self.frozen = False
        self.answers = 0
        self.now = 0.0
        others = OtherOperators(self.api, AROUND.operator, lambda: self.now)
        self.access = ClusterAccess(self.store, self.api, self._worker, others)

    def put(self, body: Any) -> Any:
        """Somebody writes an object, and the watch tells of it."""
        found = self.api.put(body)
        self.store.seen(found["kind"], found)
        return found

    def pool(self, **spec: Any) -> Any:
        return self.put(pool_body(**spec))

    def pods(self, *names: str, state: WorkerState | None = None, **about: Any) -> None:
        for name in names:
            self.put(pod_body(name, **about))
            if state is not None:
                self.states[name] = state

    def gate(self, name: str, state: WorkerState | None = None, **about: Any) -> None:
        """A pod of the pool's gate."""
        self.put(gate_body(name, **about))
        if state is not None:
            self.states[name] = state

    def catch_up(self) -> None:
        """The watches tell of all that was written."""
        for (kind, _, _), body in list(self.api.objects.items()):
            if kind in (KIND, "Deployment", "Pod"):
                self.store.seen(kind, body)

    def look_at_deployment(self) -> None:
        """Kubernetes' controller has looked at the last change, and all pods are of it."""
        live = self.deployment
        seen = {"observedGeneration": live["metadata"]["generation"]}
        if live.get("status", {}) != seen:
            self.put(live | {"status": seen})

    @property
    def deployment(self) -> Any:
        return self.api.find("Deployment", NAMESPACE, NAME)

    def cost(self, pod: str) -> str | None:
        metadata = self.api.find("Pod", NAMESPACE, pod)["metadata"]
        return metadata.get("annotations", {}).get("controller.kubernetes.io/pod-deletion-cost")

    def marked(self) -> list[str]:
        names = [name for kind, _, name in self.api.objects if kind == "Pod"]
        return sorted(name for name in names if self.cost(name) is not None)

    def _worker(self, address: str, token: str) -> Any:
        self.tokens.add(token)
        return _Worker(self, address.removeprefix("ip-of-"))


class _Worker:
    def __init__(self, cluster: MemoryCluster, name: str) -> None:
        self._cluster = cluster
        self._name = name

    async def state(self) -> WorkerState:
        if self._name not in self._cluster.states:
            raise WorkerUnreachable("no answer within 2 s")
        # A worker looks at its clock at each answer; one that doesn't is a fault of its own.
        self._cluster.answers += 1
        found = self._cluster.states[self._name]
        observed_at = found.observed_at + self._cluster.answers * (not self._cluster.frozen)
        return found.model_copy(update={"observed_at": observed_at})

    async def set_threads(self, generation: int, threads: Any) -> None:
        if self._cluster.refuses:
            raise ThreadsRefused("the worker has a newer generation in force")
        self._cluster.threads.append((self._name, generation, dict(threads)))

    async def set_workers(self, workers: Any) -> None:
        """A gate knows from now on what it was told."""
        told = self._cluster.told
        told.append((self._name, tuple(workers)))
        state = self._cluster.states[self._name]
        gate = state.gate.model_copy(update={"workers": tuple(workers)})
        self._cluster.states[self._name] = state.model_copy(update={"gate": gate})


AROUND = Surroundings("worker:1", "token-of-the-pool", "llmtaskpool-system")


def backend(
    cluster: MemoryCluster,
    *,
    status: LLMTaskPoolStatus | None = None,
    now: float = 50.0,
    **spec: Any,
) -> KubernetesBackend:
    pool = pool_of(**spec).model_copy(update={"status": status})
    return KubernetesBackend(pool, AROUND, cluster.access, PodStates(lambda: now))


def with_deployment(asked: int = 3, *pods: str, **spec: Any) -> MemoryCluster:
    """A cluster with a pool's Deployment as the operator makes it, all caught up."""
    cluster = MemoryCluster()
    cluster.pool(**spec)
    asyncio.run(backend(cluster, **spec).ensure_deployment())
    live = cluster.deployment
    live["spec"]["replicas"] = asked
    cluster.put(live)
    cluster.pods(*pods)
    cluster.api.calls.clear()
    cluster.api.bodies.clear()
    return cluster
