"""A kubelet for tests: each pod of a cluster without nodes becomes a real worker process here.

It does what a pod's spec says (arguments, environment, secrets, probes, grace period), so what the
operator writes into it is what the worker gets. Every pod has an address of its own in 127/8.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from fakes.operator_process import DIES_WITH_ITS_PARENT
from rig.ports import is_free

NODE = "mini"
POLL_SECONDS = 0.2
READY_LOOK_SECONDS = 1.0
"""How often a pod that is ready is asked whether it still is. All pods five times a second, and the
API server ten times for their list, took a fifth of a core for each cluster."""
PODS = "/api/v1/pods?labelSelector=llmtaskpool.io/pool&resourceVersion=0"
"""From the server's memory: it asks etcd for a list that must be the newest."""
EVERYWHERE = "::"  # what a pod listens on becomes its address
HEARTBEAT_SECONDS = 10.0
DATA_PORT = 8000
_ADDRESSES = itertools.count(2)
_JSON = {"Content_Type": "application/json"}
_MERGE = {"Content_Type": "application/merge-patch+json"}


def next_address() -> str:
    """An address in 127/8 that nobody else got, without a pod that outlived its kubelet."""
    while True:
        number = next(_ADDRESSES)
        address = f"127.{_own_range()[0]}.{number // 250}.{number % 250 + 1}"
        if is_free(address, DATA_PORT):
            return address


@functools.cache
def _own_range() -> tuple[int, socket.socket]:
    """The second number of addresses that are this process's alone, and what claims it.

    Others play kubelets at the same time: tests run side by side, and in several checkouts.
    """
    for number in range(64, 128):
        claim = socket.socket(type=socket.SOCK_DGRAM)
        try:
            claim.bind((f"127.{number}.0.1", DATA_PORT))
        except OSError:
            claim.close()
        else:
            return number, claim
    raise RuntimeError("64 processes play kubelets here: see `ss -lun`")


@dataclass(slots=True)
class RunningPod:
    """One pod's process."""

    name: str
    namespace: str
    uid: str
    address: str
    folder: Path
    process: subprocess.Popen
    grace: float
    ready: bool = False
    looked_at: float = 0.0
    ending_since: float | None = None
    restarts: int = 0
    spec: dict[str, Any] = field(default_factory=dict)


class MiniKubelet:
    """Runs pods until ``stop``. ``request`` is Cluster.request of conftest.py.

    ``program`` replaces the worker's command; ``cache`` is a folder that all pods' caches share.
    """

    def __init__(
        self,
        request: Callable[..., tuple[int, bytes]],
        folder: Path,
        *,
        program: tuple[str, ...] = (sys.executable, "-m", "llmtaskpool_worker"),
        cache: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._request = request
        self._folder = folder
        self._program = program
        self._cache = cache
        self._environment = environment or {}
        self.pods: dict[str, RunningPod] = {}
        self.ended: dict[str, int] = {}
        """Exit codes of the pods that are gone, by name."""
        self.killed: set[str] = set()
        """Pods that outlived their grace period."""
        self.deaf: set[str] = set()
        """Pods whose readiness is not looked at: they stay as they are."""
        self.left: set[str] = set()
        """Namespaces and images whose pods it leaves to the test, which tells their status."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._beat = 0.0

    def start(self) -> None:
        room = {"cpu": "1000", "memory": "4Ti", "pods": "5000"}
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": NODE},
            "status": {"allocatable": room, "capacity": room},
        }
        status, answer = self._request("POST", "/api/v1/nodes", body, **_JSON)
        assert status in {201, 409}, answer.decode()
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(10)
        for pod in self.pods.values():
            pod.process.kill()
        for pod in self.pods.values():
            pod.process.wait()

    def ready_addresses(self, namespace: str) -> list[str]:
        """Addresses of the pods that a Service would send requests to now."""
        return [
            pod.address
            for pod in list(self.pods.values())
            if pod.namespace == namespace and pod.ready and pod.ending_since is None
        ]

    def refresh_secrets(self) -> None:
        """Write the Secrets of the pods that run anew; a real kubelet does within 2 minutes."""
        for pod in list(self.pods.values()):
            for volume in pod.spec.get("volumes", ()):
                if "secret" in volume:
                    self._secret(pod.namespace, volume["secret"], pod.folder / volume["name"])

    def _run(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            # The server may be down: that is what some tests are about.
            with contextlib.suppress(Exception):
                self._turn()

    def _turn(self) -> None:
        if time.monotonic() - self._beat > HEARTBEAT_SECONDS:
            self._heartbeat()
        status, answer = self._request("GET", PODS)
        if status != 200:
            return
        items = {
            pod["metadata"]["uid"]: pod
            for pod in json.loads(answer)["items"]
            if not self.left & {pod["metadata"]["namespace"], pod["spec"]["containers"][0]["image"]}
        }
        for uid, pod in items.items():
            with contextlib.suppress(Exception):  # what ails one pod is not the others' matter
                if uid not in self.pods:
                    self._begin(uid, pod)
                else:
                    self._tend(self.pods[uid], pod)
        for uid in set(self.pods) - set(items):
            self.pods[uid].process.kill()
            self._over(self.pods.pop(uid))

    def _begin(self, uid: str, pod: dict[str, Any]) -> None:
        meta = pod["metadata"]
        if meta.get("deletionTimestamp"):
            self._remove(meta["namespace"], meta["name"], uid)
            return
        if not pod["spec"].get("nodeName"):
            binding = {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": meta["name"]},
                "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
            }
            path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/binding"
            self._request("POST", path, binding, **_JSON)
        folder = self._folder / meta["name"]
        folder.mkdir(parents=True, exist_ok=True)
        address = next_address()
        running = RunningPod(
            name=meta["name"],
            namespace=meta["namespace"],
            uid=uid,
            address=address,
            folder=folder,
            process=self._spawn(pod, address, folder),
            grace=float(pod["spec"].get("terminationGracePeriodSeconds", 30)),
            spec=pod["spec"],
        )
        self.pods[uid] = running
        self._tell(running)

    def _tend(self, running: RunningPod, pod: dict[str, Any]) -> None:
        if pod["metadata"].get("deletionTimestamp"):
            self._end(running)
            return
        if running.process.poll() is not None:
            running.restarts += 1
            running.process = self._spawn(pod, running.address, running.folder)
            running.ready = False
            self._tell(running)
        now = time.monotonic()
        if running.ready and now - running.looked_at < READY_LOOK_SECONDS:
            return
        running.looked_at = now
        if running.name in self.deaf:
            return
        running.ready = _ready(running.address)
        if running.ready != said_ready(pod):
            self._tell(running)

    def _end(self, running: RunningPod) -> None:
        now = time.monotonic()
        if running.ending_since is None:
            running.ending_since = now
            running.ready = False
            running.process.send_signal(signal.SIGTERM)
            self._tell(running)
        if running.process.poll() is not None:
            self._remove(running.namespace, running.name, running.uid)
            self._over(self.pods.pop(running.uid))
        elif now - running.ending_since > running.grace:
            self.killed.add(running.name)
            running.process.kill()

    def _over(self, running: RunningPod) -> None:
        self.ended[running.name] = running.process.wait()
        shutil.rmtree(running.folder, ignore_errors=True)

    def _remove(self, namespace: str, name: str, uid: str) -> None:
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}
        self._request("DELETE", f"/api/v1/namespaces/{namespace}/pods/{name}", body, **_JSON)

    def _tell(self, running: RunningPod) -> None:
        ready = "True" if running.ready else "False"
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        kinds = {"PodScheduled": "True", "Initialized": "True", "ContainersReady": ready}
        conditions = [
            {"type": kind, "status": value, "lastTransitionTime": now}
            for kind, value in (kinds | {"Ready": ready}).items()
        ]
        container = running.spec["containers"][0]
        state = {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": running.ready,
            "started": True,
            "restartCount": running.restarts,
            "state": {"running": {"startedAt": now}},
        }
        status = {
            "phase": "Running",
            "podIP": running.address,
            "podIPs": [{"ip": running.address}],
            "conditions": conditions,
            "containerStatuses": [state],
        }
        path = f"/api/v1/namespaces/{running.namespace}/pods/{running.name}/status"
        self._request("PATCH", path, {"status": status}, **_MERGE)

    def _spawn(self, pod: dict[str, Any], address: str, folder: Path) -> subprocess.Popen:
        container = pod["spec"]["containers"][0]
        paths = self._mounts(pod, container, folder)

        def here(text: str) -> str:
            for inside, outside in paths:
                if text == inside or text.startswith(f"{inside}/"):
                    return outside + text[len(inside) :]
            return text

        names = {"metadata.name": pod["metadata"]["name"]}
        environment = {
            entry["name"]: here(entry["value"])
            if "value" in entry
            else names[entry["valueFrom"]["fieldRef"]["fieldPath"]]
            for entry in container.get("env", ())
        }
        arguments = [address if a == EVERYWHERE else here(a) for a in container["args"]]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("LLMTASKPOOL_")}
        with (folder / "log").open("ab") as log:
            return subprocess.Popen(
                [*DIES_WITH_ITS_PARENT, *self._program, *arguments],
                env=clean | environment | self._environment,
                stdout=log,
                stderr=log,
                cwd=folder,
            )

    def _mounts(
        self, pod: dict[str, Any], container: dict[str, Any], folder: Path
    ) -> list[tuple[str, str]]:
        """Paths in the pod and here, the longest first."""
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", ())}
        found = []
        for mount in container.get("volumeMounts", ()):
            volume = volumes[mount["name"]]
            place = folder / mount["name"]
            if mount["name"] == "cache" and self._cache is not None:
                place = self._cache
            place.mkdir(parents=True, exist_ok=True)
            if "secret" in volume:
                self._secret(pod["metadata"]["namespace"], volume["secret"], place)
            found.append((mount["mountPath"], str(place)))
        return sorted(found, key=lambda pair: -len(pair[0]))

    def _secret(self, namespace: str, wanted: dict[str, Any], place: Path) -> None:
        path = f"/api/v1/namespaces/{namespace}/secrets/{wanted['secretName']}"
        status, answer = self._request("GET", path)
        assert status == 200, answer.decode()
        data = json.loads(answer)["data"]
        items = wanted.get("items") or [{"key": key, "path": key} for key in data]
        for item in items:
            (place / item["path"]).write_bytes(base64.b64decode(data[item["key"]]))

    def _heartbeat(self) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        condition = {"type": "Ready", "status": "True", "reason": "Mini", "message": "mini"}
        times = {"lastHeartbeatTime": now, "lastTransitionTime": now}
        body = {"status": {"conditions": [condition | times]}}
        status, _ = self._request("PATCH", f"/api/v1/nodes/{NODE}/status", body, **_MERGE)
        if status == 200:
            self._beat = time.monotonic()


def said_ready(pod: dict[str, Any]) -> bool:
    """What the server knows. Not what was told last: that may have been lost, and of a node that
    was silent for as long as the server was down a controller says that no pod is ready."""
    conditions = pod.get("status", {}).get("conditions", ())
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _ready(address: str) -> bool:
    asked = HTTPConnection(address, DATA_PORT, timeout=2.0)
    try:
        asked.request("GET", "/readyz")
        return asked.getresponse().status == HTTPStatus.OK
    except (OSError, HTTPException):
        return False
    finally:
        asked.close()


@contextlib.contextmanager
def mini_kubelet(
    request: Callable[..., tuple[int, bytes]], folder: Path, **options: Any
) -> Iterator[MiniKubelet]:
    kubelet = MiniKubelet(request, folder, **options)
    kubelet.start()
    try:
        yield kubelet
    finally:
        kubelet.stop()
