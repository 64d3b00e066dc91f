"""Which Kubernetes the tests talk to, chosen in this order:

1. `LLMTASKPOOL_TEST_KUBECONFIG`: a cluster that somebody else brought up;
2. kind, when a Docker runs and kind is on PATH or built;
3. `KUBEBUILDER_ASSETS`, for tests that need only an API server;
4. the rig (docs/rig.md), built by `make rig`.

The choice and its reason are printed above the tests (`kindrig.choice`).

Tests that break the cluster (kill etcd, freeze the API server) always bring up a rig of their own.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import rig
from fakes.api_proxy import ApiProxy, api_proxy, through
from fakes.mini_kubelet import MiniKubelet, mini_kubelet
from fakes.operator_process import OperatorProcess, operator_process
from fakes.read_yaml import document
from fakes.slow_server import slow_server
from kindrig import choice
from kindrig import cluster as kind_clusters
from kindrig.choice import Where
from kubernetes import client, config
from rig.commands import kubebuilder_programs

ROOT = Path(__file__).parents[2]
CRD_FILE = ROOT / "crds" / "llmtaskpool.yaml"
STAND_IN = (sys.executable, str(ROOT / "tests" / "fakes" / "stand_in_worker.py"))
OPERATOR_NAMESPACE = "llmtaskpool-system"
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{OPERATOR_NAMESPACE}/leases/llmtaskpool-operator"
CONVERGED_WITHIN = 30.0
"""Seconds from the end of a fault to the state that a run without it ends in."""
LONGEST_PAUSE_SECONDS = 0.3
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster to test on: `api` is the official client's, for CustomObjectsApi(api) and such."""

    kubeconfig: Path
    api: client.ApiClient

    def request(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, bytes]:
        """A request that the client neither checks nor translates: the server alone judges."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        call = self.api.param_serialize(
            method, path, header_params=names, body=body, auth_settings=["BearerToken"]
        )
        answer = self.api.call_api(*call)
        return answer.status, answer.read()


def connected(kubeconfig: Path) -> Cluster:
    return Cluster(kubeconfig, config.new_client_from_config(str(kubeconfig)))


def wait_for(what: str, look: Callable[[], Found], within: float = 20.0) -> Found:
    """What `look` returns once it is truthy; fails with `what` after `within` seconds.

    It looks less and less often: each look is a request, and the servers share two cores.
    """
    deadline, pause = time.monotonic() + within, 0.05
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(pause)
        pause = min(1.2 * pause, LONGEST_PAUSE_SECONDS)
    raise AssertionError(f"not within {within:.0f} s: {what}")


def only_the_api(made: kind_clusters.Cluster) -> Cluster:
    """Its own kubelet gets no pods: tests play one (`mini_kubelet`)."""
    found = connected(Path(made.kubeconfig))
    core = client.CoreV1Api(found.api)
    for node in core.list_node().items:
        core.patch_node(node.metadata.name, {"spec": {"unschedulable": True}})
    return found


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with controllers: Deployments get their ReplicaSets and Pods."""
    chosen = choice.chosen()
    if chosen.kubeconfig is not None:
        yield connected(chosen.kubeconfig)
    elif chosen.where is Where.KIND:
        with kind_clusters.cluster(tmp_path_factory.mktemp("kind") / "state", print) as made:
            yield only_the_api(made)
    else:
        with rig.control_plane(tmp_path_factory.mktemp("rig") / "state") as plane:
            yield connected(plane.kubeconfig)


@pytest.fixture(scope="session")
def api_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """An API server, perhaps without controllers: enough for CRDs and RBAC."""
    if choice.chosen(server_only=True).where is not Where.ASSETS:
        yield request.getfixturevalue("cluster")
        return
    options = rig.Options(controllers=False)
    folder = tmp_path_factory.mktemp("kubebuilder") / "state"
    with rig.control_plane(folder, options, programs=kubebuilder_programs()) as plane:
        yield connected(plane.kubeconfig)


@pytest.fixture(scope="module")
def own_control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rig.ControlPlane]:
    """A control plane of one test file alone, to kill, freeze and start again; with an audit log.

    Each test leaves it running as it found it.
    """
    options = rig.Options(audit=True)
    with rig.control_plane(tmp_path_factory.mktemp("own") / "state", options) as plane:
        yield plane


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of this test alone."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    core = client.CoreV1Api(cluster.api)
    core.create_namespace({"metadata": {"name": name}})
    yield name
    core.delete_namespace(name)


@pytest.fixture(scope="session")
def crd(api_server: Cluster) -> None:
    """The committed CRD, established on the API server."""
    with_crd(api_server)


@dataclass(frozen=True, slots=True)
class Operated:
    """A cluster with our CRD, a running operator, and pods that run as processes."""

    cluster: Cluster
    kubelet: MiniKubelet
    operator: OperatorProcess
    slow: str
    """host:port of a server that io.fetch may call: tests/fakes/slow_server.py."""


def with_crd(cluster: Cluster, *namespaces: str) -> None:
    """The committed CRD, established; and these namespaces."""
    body: dict[str, Any] = document(CRD_FILE.read_text())
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{body['metadata']['name']}"
    status, answer = cluster.request(
        "PATCH",
        f"{path}?fieldManager=tests&force=true&fieldValidation=Strict",
        body,
        Content_Type="application/apply-patch+yaml",
    )
    assert status in {200, 201}, answer.decode()
    served = "/apis/llmtaskpool.io/v1alpha1/llmtaskpools"
    wait_for("the CRD is served", lambda: cluster.request("GET", served)[0] == 200)
    for name in namespaces:
        namespace = {"metadata": {"name": name}}
        cluster.request("POST", "/api/v1/namespaces", namespace, Content_Type="application/json")


@pytest.fixture(scope="session")
def operated(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    with_crd(cluster, OPERATOR_NAMESPACE)
    folder = tmp_path_factory.mktemp("operated")
    with (
        slow_server() as slow,
        mini_kubelet(
            cluster.request, folder / "pods", environment={"LLMTASKPOOL_FETCH_HOSTS": slow}
        ) as kubelet,
        operator_process(cluster.kubeconfig, folder, record="all") as operator,
    ):
        operator.wait_ready()
        yield Operated(cluster, kubelet, operator, slow)


@dataclass(frozen=True, slots=True)
class Broken:
    """A control plane to break, stand-in workers for pods, operators that go through a proxy."""

    plane: rig.ControlPlane
    cluster: Cluster
    kubelet: MiniKubelet
    proxy: ApiProxy
    folder: Path

    def operator(self, who: str = "one", **settings: str) -> OperatorProcess:
        log = self.folder / f"{who}-{uuid.uuid4().hex[:6]}.log"
        config = through(self.proxy, who, self.folder)
        return OperatorProcess(config, log, identity=who, **({"resync_seconds": "3"} | settings))


@pytest.fixture(scope="module")
def broken(
    own_control_plane: rig.ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broken]:
    cluster = connected(own_control_plane.kubeconfig)
    with_crd(cluster, OPERATOR_NAMESPACE)
    folder = tmp_path_factory.mktemp("broken")
    with (
        mini_kubelet(cluster.request, folder / "pods", program=STAND_IN) as kubelet,
        api_proxy(cluster.kubeconfig, folder) as proxy,
    ):
        yield Broken(own_control_plane, cluster, kubelet, proxy, folder)


@pytest.fixture
def operator(broken: Broken) -> Iterator[OperatorProcess]:
    broken.proxy.fresh()
    broken.cluster.request("DELETE", LEASE)
    made = broken.operator()
    made.start()
    made.wait_ready(60)
    yield made
    broken.proxy.fresh()
    made.kill()
