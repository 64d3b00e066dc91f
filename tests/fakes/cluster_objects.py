"""Objects as an API server would give them: pools, Deployments, pods, and what workers say."""

from __future__ import annotations

from typing import Any

from llmtaskpool_operator.api.names import API_VERSION, KIND
from llmtaskpool_operator.api.pool import LLMTaskPool
from llmtaskpool_operator.cluster.identity import gate_labels
from llmtaskpool_operator.cluster.manifests import selector_labels
from llmtaskpool_worker.contract import GateState, LaneName, LaneState, Phase, Work, WorkerState

NAMESPACE, NAME, UID = "team-a", "chat", "0f3c-77"


def pool_body(name: str = NAME, *, version: int = 10, generation: int = 1, **spec: Any) -> Any:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "uid": UID,
            "generation": generation,
            "resourceVersion": str(version),
        },
        "spec": spec,
    }


def pool(name: str = NAME, **spec: Any) -> LLMTaskPool:
    return LLMTaskPool.model_validate(pool_body(name, **spec))


def pod_body(
    name: str, *, version: int = 10, ready: bool = True, going: bool = False, **status: Any
) -> Any:
    """A pod of the pool NAME; its address is 10.0.0.<last letters of its name>."""
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": NAMESPACE,
        "resourceVersion": str(version),
        "labels": selector_labels(NAME),
    }
    if going:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    full = {"phase": "Running", "podIP": f"ip-of-{name}", "conditions": conditions} | status
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": full}


def gate_body(name: str, **about: Any) -> Any:
    """A pod of the gate of the pool NAME."""
    made = pod_body(name, **about)
    made["metadata"]["labels"] = gate_labels(NAME)
    return made


def gate_state(name: str = "g", *, held: int = 0, recent: int = 0, **more: Any) -> WorkerState:
    """What a gate says; ``workers`` are those that it knows."""
    gate = GateState(held=held, recent=recent, workers=more.pop("workers", ()))
    return worker_state(name, threads=0).model_copy(update={"gate": gate} | more)


def worker_state(
    name: str = "w", *, active: int = 0, queued: int = 0, threads: int = 4, arrived: float = 0.0
) -> WorkerState:
    """Its compute lane; the threads of a test pool are Fixed, or at the law's floor of 4."""
    lane = LaneState(threads=threads, threads_cap=64, active=active, queued=queued, queue_limit=99)
    return WorkerState(
        worker_id=name,
        started_at=0.0,
        observed_at=0.0,
        phase=Phase.READY,
        threads_generation=3,
        lanes={LaneName.COMPUTE: lane},
        work=Work(arrived_seconds_total=arrived),
    )
