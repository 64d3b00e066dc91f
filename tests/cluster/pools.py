"""What tests of the operator do with pools: make, read, wait; through the API server alone."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llmtaskpool_operator.api.names import API_VERSION, KIND

from .conftest import Cluster, wait_for

POOLS = "/apis/llmtaskpool.io/v1alpha1/namespaces/{}/llmtaskpools"


def manifest(name: str = "p", **spec: Any) -> dict[str, Any]:
    scaling = {"minReplicas": 1, "maxReplicas": 4, "drainSeconds": 30} | spec.pop("scaling", {})
    body = {"scaling": scaling, **spec}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": body}


def fixed(replicas: int, **spec: Any) -> dict[str, Any]:
    return manifest(replicas=replicas, scaling={"mode": "Fixed", "drainSeconds": 5}, **spec)


class Pools:
    """The pools of one namespace."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.path = POOLS.format(namespace)

    def get(self, path: str) -> dict[str, Any]:
        status, answer = self.cluster.request("GET", path)
        return json.loads(answer) if status == 200 else {}

    def send(self, method: str, path: str, body: Any, kind: str = "json") -> dict[str, Any]:
        content = {"json": "json", "merge": "merge-patch+json", "apply": "apply-patch+yaml"}[kind]
        status, answer = self.cluster.request(
            method, path, body, Content_Type=f"application/{content}"
        )
        assert status in {200, 201, 202}, answer.decode()
        return json.loads(answer)

    def apply(self, body: dict[str, Any]) -> dict[str, Any]:
        path = f"{self.path}/{body['metadata']['name']}?fieldManager=user&fieldValidation=Strict"
        return self.send("PATCH", path, body, "apply")

    def pool(self, name: str = "p") -> dict[str, Any]:
        return self.get(f"{self.path}/{name}")

    def status(self, name: str = "p") -> dict[str, Any]:
        return self.pool(name).get("status") or {}

    def condition(self, kind: str, name: str = "p") -> dict[str, Any]:
        conditions = self.status(name).get("conditions", ())
        return next((one for one in conditions if one["type"] == kind), {})

    def deployment(self, name: str = "p") -> dict[str, Any]:
        return self.get(f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{name}")

    def asked_for(self, name: str = "p") -> int | None:
        return self.deployment(name).get("spec", {}).get("replicas")

    def pods(self, name: str = "p") -> list[dict[str, Any]]:
        path = f"/api/v1/namespaces/{self.namespace}/pods?labelSelector=llmtaskpool.io/pool={name}"
        return self.get(path).get("items", [])

    def scale(self, replicas: int, name: str = "p") -> None:
        path = f"{self.path}/{name}/scale"
        self.send("PATCH", path, {"spec": {"replicas": replicas}}, "merge")

    def events(self, reason: str) -> list[str]:
        found = self.get(f"/apis/events.k8s.io/v1/namespaces/{self.namespace}/events")
        return [e["note"] for e in found.get("items", ()) if e["reason"] == reason]

    def delete(self, name: str = "p") -> None:
        self.cluster.request("DELETE", f"{self.path}/{name}")

    def wait_ready(self, replicas: int, name: str = "p", within: float = 90.0) -> None:
        def ready() -> bool:
            status = self.status(name)
            conditions = {c["type"]: c["status"] for c in status.get("conditions", ())}
            same = status.get("readyReplicas") == replicas == status.get("desiredReplicas")
            return same and conditions.get("Ready") == "True"

        try:
            wait_for(f"{replicas} of {name} ready", ready, within)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.status(name)}") from None


@contextmanager
def own_pools(cluster: Cluster) -> Iterator[Pools]:
    """The pools of a new namespace, deleted at the end."""
    made = Pools(cluster, f"test-{uuid.uuid4().hex[:8]}")
    made.send("POST", "/api/v1/namespaces", {"metadata": {"name": made.namespace}})
    yield made
    for item in made.get(made.path).get("items", ()):
        made.delete(item["metadata"]["name"])
