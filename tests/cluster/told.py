"""What the table of what people are told is made of: a kubelet's words, a clock for each row."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .pools import Pools

MERGE = {"Content_Type": "application/merge-patch+json"}
JSON = {"Content_Type": "application/json"}


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Node:
    """The kubelet of a test: it runs nothing, and says of a pod what a kubelet would."""

    def __init__(self, pools: Pools, name: str = "told") -> None:
        self._pools, self._name = pools, name
        room = {"cpu": "1000", "memory": "4Ti", "pods": "500"}
        status = {"allocatable": room, "capacity": room}
        body = {"metadata": {"name": name}, "status": status}
        pools.cluster.request("POST", "/api/v1/nodes", body, **JSON)

    def pod(self, pool: str) -> dict[str, Any]:
        """The newest pod of a pool, bound to this node."""
        pods = self._pools.pods(pool)
        newest = max(pods, key=lambda pod: int(pod["metadata"]["resourceVersion"]))
        meta = newest["metadata"]
        if not newest["spec"].get("nodeName"):
            target = {"apiVersion": "v1", "kind": "Node", "name": self._name}
            binding = {"metadata": {"name": meta["name"]}, "target": target}
            self._pools.send("POST", f"{self._path(meta['name'])}/binding", binding)
        return newest

    def says(self, pool: str, status: dict[str, Any], *, ready: bool = False) -> None:
        """The status of the newest pod of a pool."""
        word = {True: "True", False: "False"}
        kinds = {"PodScheduled": True, "Initialized": True, "Ready": ready}
        conditions = [
            {"type": kind, "status": word[holds], "lastTransitionTime": now()}
            for kind, holds in kinds.items()
        ]
        name = self.pod(pool)["metadata"]["name"]
        body = {"status": {"conditions": conditions} | status}
        path = f"{self._path(name)}/status"
        answered, answer = self._pools.cluster.request("PATCH", path, body, **MERGE)
        assert answered == 200, answer.decode()

    def warns(self, pool: str, reason: str, message: str) -> None:
        """An event of the newest pod, as kubelets write them."""
        meta = self.pod(pool)["metadata"]
        of = {"kind": "Pod", "apiVersion": "v1", "name": meta["name"], "uid": meta["uid"]}
        event = {
            "metadata": {"generateName": "told-", "namespace": self._pools.namespace},
            "involvedObject": of | {"namespace": self._pools.namespace},
            "reason": reason,
            "message": message,
            "type": "Warning",
            "source": {"component": "kubelet", "host": self._name},
            "firstTimestamp": now(),
            "lastTimestamp": now(),
            "count": 1,
        }
        self._pools.send("POST", f"/api/v1/namespaces/{self._pools.namespace}/events", event)

    def _path(self, pod: str) -> str:
        return f"/api/v1/namespaces/{self._pools.namespace}/pods/{pod}"


def container(state: dict[str, Any], name: str = "worker", **more: Any) -> dict[str, Any]:
    """The status of a container as a kubelet tells it."""
    known = {"name": name, "image": "i", "imageID": "", "ready": False, "restartCount": 0}
    return known | {"state": state} | more


def waiting(reason: str, message: str = "", name: str = "worker", **more: Any) -> dict[str, Any]:
    return container({"waiting": {"reason": reason, "message": message}}, name, **more)


@dataclass(frozen=True, slots=True)
class Row:
    """What is done, and what a person is to be told of it, by which condition, within seconds."""

    what: str
    do: Callable[[Pools], None]
    kind: str
    reason: str
    words: str
    within: float
    pool: str = "p"
    ready: str | None = None
    """What Ready says meanwhile, where that matters."""


@dataclass(slots=True)
class Told:
    row: Row
    seconds: float | None = None
    said: str = ""


def side_by_side(rows: list[tuple[Row, Pools]]) -> list[Told]:
    """Do all rows at one time, and note when each is told."""
    found = [Told(row) for row, _ in rows]

    def look(told: Told, pools: Pools) -> None:
        row = told.row
        row.do(pools)
        began = time.monotonic()
        while time.monotonic() - began < row.within + 20:
            condition = pools.condition(row.kind, row.pool)
            told.said = f"{condition.get('reason')}: {condition.get('message')}"
            if condition.get("reason") == row.reason and row.words in condition["message"]:
                ready = pools.condition("Ready", row.pool).get("status")
                if row.ready in (None, ready):
                    told.seconds = time.monotonic() - began
                    return
            time.sleep(0.2)

    threads = [
        threading.Thread(target=look, args=(told, pools), daemon=True)
        for told, (_, pools) in zip(found, rows, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return found
