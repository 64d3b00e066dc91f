"""Where benchmarks/operator_scale.py runs: a control plane, a stub for all pods, an account."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from aiohttp import web
from kubernetes import client as sync
from kubernetes import config as sync_config
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from rich.console import Console

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "hack" / "cluster")]

import rig  # noqa: E402  found through the line above
from llmtaskpool_worker.contract import (  # noqa: E402
    KindState,
    LaneName,
    LaneState,
    Phase,
    QueueState,
    WorkerState,
)

SYSTEM, NAMESPACES = "llmtaskpool-system", 20
"""In one namespace Kubernetes' own controller of PodDisruptionBudgets compares every pod's labels
with every budget's: 10 of its 34 s of processor time with 1,000 pools."""
ACCOUNT = "operator"
QUICK = ("--kube-api-qps=1000", "--kube-api-burst=2000")
GARBAGE = "1000"
"""GOGC of the programs in Go, which share two cores with the operator: they have memory enough."""
# The operator's writes are counted; to log everybody's requests costs the server more than these.
AUDIT = f"""\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    users: ["system:serviceaccount:{SYSTEM}:{ACCOUNT}"]
    verbs: [create, update, patch, delete]
  - level: None
"""

LANE = LaneState(threads=1, threads_cap=64, active=0, queued=0, queue_limit=100)
KIND_STATE = KindState(
    lane=LaneName.COMPUTE,
    declared=True,
    compute_seconds=0.0,
    waiting_seconds=0.0,
    runs=0,
    reason="declared by its kind",
)
RSS_BYTES = 130 * 2**20


@dataclass(slots=True)
class Stub:
    """Answers the control routes for every address as a worker at rest does, whose clocks go on;
    remembers when each was asked."""

    asked: dict[str, float]
    since: float = field(default_factory=time.time)

    async def state(self, request: web.Request) -> web.Response:
        """GET /control/v1/state."""
        name = request.transport.get_extra_info("sockname")[0]
        self.asked[name] = time.monotonic()
        now = time.time()
        said = WorkerState(
            worker_id=name,
            started_at=self.since,
            observed_at=now,
            phase=Phase.READY,
            threads_generation=1,
            lanes=dict.fromkeys(LaneName, LANE),
            models=("model",),
            rss_bytes=RSS_BYTES + 4096 * int(now / 30),
            kv_cache_usage=0.0,
            kinds=dict.fromkeys(("chat", "complete", "embed", "http", "sleep"), KIND_STATE),
            model_devices={"model": "cpu"},
            queue=QueueState(durability="memory", durable=False, observed_at=now),
        )
        return web.Response(text=said.model_dump_json(), content_type="application/json")

    async def threads(self, request: web.Request) -> web.Response:
        """PUT /control/v1/threads."""
        body = await request.json()
        return web.json_response({"generation": body["generation"], "threads": body["threads"]})


@contextlib.contextmanager
def pods_answer_here() -> Iterator[None]:
    """All of kwok's addresses are this machine's."""
    route = ["local", "10.128.0.0/16", "dev", "lo"]
    subprocess.run(["ip", "route", "replace", *route], check=True)  # noqa: S607
    try:
        yield
    finally:
        subprocess.run(["ip", "route", "del", *route], check=False)  # noqa: S607


def control_plane(folder: Path) -> AbstractContextManager[Any]:
    """A control plane with four of kwok's nodes; what the operator writes goes to its audit log."""
    policy = folder.parent / "audit-policy.yaml"
    policy.write_text(AUDIT)
    arguments = {
        "kube-apiserver": (
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--audit-policy-file={policy}",
        ),
        # By default they make 20 and 50 requests a second, and that is all one would measure.
        "kube-controller-manager": QUICK,
        "kube-scheduler": QUICK,
    }
    os.environ["GOGC"] = GARBAGE
    return rig.control_plane(folder, rig.Options(fake_nodes=4, audit=True, arguments=arguments))


def namespace_of(name: str, kind: str = "pools") -> str:
    """Where the pool of that name is; ``plain`` for what is applied by hand."""
    return f"{kind}-{int(name.rpartition('-')[2]) % NAMESPACES}"


@contextlib.asynccontextmanager
async def reached(plane: Any) -> AsyncIterator[ApiClient]:
    """A client of the server, which knows the CRD, the namespaces and the operator's account."""
    configuration = Configuration()
    await config.load_kube_config(str(plane.kubeconfig), client_configuration=configuration)
    await asyncio.to_thread(furnish, plane)
    async with ApiClient(configuration) as client:
        yield client


def furnish(plane: Any) -> None:
    """The CRD, the namespaces and the operator's account."""
    cluster = sync_config.new_client_from_config(str(plane.kubeconfig))
    body = yaml.safe_load((ROOT / "crds" / "llmtaskpool.yaml").read_text())
    sync.ApiextensionsV1Api(cluster).create_custom_resource_definition(body)
    places = (namespace_of(f"-{n}", kind) for n in range(NAMESPACES) for kind in ("pools", "plain"))
    core = sync.CoreV1Api(cluster)
    for name in (SYSTEM, *places):
        core.create_namespace({"metadata": {"name": name}})
    core.create_namespaced_service_account(SYSTEM, {"metadata": {"name": ACCOUNT}})
    sync.RbacAuthorizationV1Api(cluster).create_cluster_role_binding(
        {
            "metadata": {"name": "bench-operator"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "cluster-admin",
            },
            "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": SYSTEM}],
        }
    )
    for _ in range(100):
        with contextlib.suppress(sync.ApiException):
            sync.CustomObjectsApi(cluster).list_namespaced_custom_object(
                "llmtaskpool.io", "v1alpha1", "default", "llmtaskpools"
            )
            return
        time.sleep(0.1)


def account_kubeconfig(plane: Any, path: Path) -> Path:
    """A kubeconfig with a token, as in a pod: certificates are verified anew at each request."""
    cluster = sync_config.new_client_from_config(str(plane.kubeconfig))
    wanted = {"spec": {"expirationSeconds": 7200}}
    made = sync.CoreV1Api(cluster).create_namespaced_service_account_token(ACCOUNT, SYSTEM, wanted)
    whole = yaml.safe_load(plane.kubeconfig.read_text())
    whole["users"][0]["user"] = {"token": made.status.token}
    path.write_text(yaml.safe_dump(whole))
    path.chmod(0o600)
    return path


class Told(dict[str, float]):
    """Numbers that are told as soon as they are known: a run may be stopped."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def __setitem__(self, what: str, value: float) -> None:
        super().__setitem__(what, value)
        self.console.print(f"{what}: {value:.2f}")


def cpu_by_program() -> dict[str, float]:
    """Seconds of processor time of everything that runs for this benchmark."""
    spent: Counter[str] = Counter()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            name = process.name()
            spent["operator" if name.startswith("python") else name] += sum(process.cpu_times()[:2])
    spent["this benchmark"] = sum(psutil.Process().cpu_times()[:2])
    return dict(spent)


def tell_cpu(found: dict[str, float], what: str, before: dict[str, float]) -> None:
    """Seconds of processor time since ``before``, of the API server, of us and of all others."""
    spent = {name: after - before.get(name, 0.0) for name, after in cpu_by_program().items()}
    for name in ("kube-apiserver", "operator"):
        if name in spent:
            found[f"{what}: {name}, s of processor"] = spent.pop(name)
    found[f"{what}: everything else, s of processor"] = sum(spent.values())


def count_writes(audit: Path) -> int:
    """Writes of pools and their children that the operator made, its Lease left out."""
    with audit.open() as lines:
        places = [
            (json.loads(line).get("objectRef") or {}).get("namespace") or "" for line in lines
        ]
    return sum(place.startswith("pools-") for place in places)
