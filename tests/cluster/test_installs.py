"""Installing, upgrading and taking away, by Helm and by one file, on a real API server.

Whatever goes first: nothing of ours is left, nothing hangs, and no worker is restarted for it.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import rig
from chart.charts import helm_with
from fakes.mini_kubelet import mini_kubelet
from fakes.operator_process import OperatorProcess
from fakes.plain_http import NO_TLS

from .conftest import OPERATOR_NAMESPACE, ROOT, connected, wait_for
from .installs import CHART, CRD, INSTALL, NEXT_FIELD, Site, next_chart, next_file
from .pools import Pools, manifest

STAND_IN = (sys.executable, str(ROOT / "tests" / "fakes" / "stand_in_worker.py"))
GONE_WITHIN = 150.0
CRD_KEPT = {
    "customresourcedefinitions /llmtaskpools.llmtaskpool.io",
    "apiservices /v1alpha1.llmtaskpool.io",  # the server's own, as long as there is the CRD
}
OWN = {
    f"leases {OPERATOR_NAMESPACE}/llmtaskpool-operator",
    f"secrets {OPERATOR_NAMESPACE}/llmtaskpool-operator-key",
}
"""What the operator makes for itself."""


@pytest.fixture(scope="module")
def site(
    own_control_plane: rig.ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    helm = helm_with(folder).program
    cluster = connected(own_control_plane.kubeconfig)
    with mini_kubelet(cluster.request, folder / "pods", program=STAND_IN) as kubelet:
        made = Site(own_control_plane, cluster, kubelet, helm, folder)
        made.make_namespace(OPERATOR_NAMESPACE)
        yield made


@pytest.fixture
def pools(site: Site) -> Iterator[Pools]:
    name = f"team-{uuid.uuid4().hex[:6]}"
    site.make_namespace(name)
    yield Pools(site.cluster, name)
    site.helm("uninstall", "llmtaskpool", "-n", OPERATOR_NAMESPACE, "--ignore-not-found")
    site.delete(f"/api/v1/namespaces/{name}")
    wait_for("the pods ended", lambda: not site.kubelet.pods, 60)
    wait_for("the namespace is gone", lambda: not site.get(f"/api/v1/namespaces/{name}"), 120)


@pytest.fixture
def operators(tmp_path: Path) -> Iterator[list[OperatorProcess]]:
    """Those that a test started, to be ended whatever happens."""
    made: list[OperatorProcess] = []
    yield made
    for operator in made:
        operator.kill()


def begin(site: Site, operators: list[OperatorProcess], folder: Path) -> OperatorProcess:
    site.served()
    made = site.operator(folder / f"operator-{len(operators)}.log")
    operators.append(made)
    made.start()
    made.wait_ready(60)
    return made


def small(limit: int = 8, **scaling: int) -> dict:
    return manifest(queue={"limit": limit}, scaling={"drainSeconds": 1} | scaling)


def install(site: Site) -> None:
    site.helm("install", "llmtaskpool", str(CHART), "-n", OPERATOR_NAMESPACE)
    site.served()


def uninstall(site: Site) -> None:
    site.helm("uninstall", "llmtaskpool", "-n", OPERATOR_NAMESPACE)


def without_namespace() -> str:
    """install.yaml but for its first object: the namespace is there before and after."""
    return INSTALL.read_text().split("\n---\n", 1)[1]


class Steps:
    """What is taken away, and what happens meanwhile."""

    def __init__(self, site: Site, pools: Pools, operator: OperatorProcess) -> None:
        self.site = site
        self.all_pools = pools
        self.operator = operator

    def release(self) -> None:
        uninstall(self.site)

    def file(self) -> None:
        self.site.delete_file(without_namespace())

    def crd(self) -> None:
        self.site.delete(CRD)

    def pools(self) -> None:
        self.all_pools.delete()

    def namespace(self) -> None:
        self.site.delete(f"/api/v1/namespaces/{self.all_pools.namespace}")

    def operator_dies(self) -> None:
        self.operator.kill()

    def rollout(self) -> None:
        before = self.all_pools.deployment()["metadata"]["generation"]
        self.all_pools.apply(small(limit=9))
        wait_for(
            "the rollout began",
            lambda: self.all_pools.deployment()["metadata"]["generation"] > before,
        )


ORDERS = [
    ("pools", "release"),
    ("release", "pools"),
    ("namespace", "release"),
    ("release", "crd"),
    ("rollout", "operator_dies", "crd", "release"),
    ("rollout", "operator_dies", "file"),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("order", ORDERS, ids=", ".join)
def test_nothing_is_left_in_whatever_order_things_go(
    site: Site,
    pools: Pools,
    operators: list[OperatorProcess],
    tmp_path: Path,
    order: tuple[str, ...],
    say: Callable[[str], None],
) -> None:
    expected = site.everything() - CRD_KEPT
    if "file" in order:
        site.apply_file(without_namespace())
        site.served()
    else:
        install(site)
    if {"crd", "file"} & set(order):
        site.collected(pools)
    else:
        expected |= CRD_KEPT
    if "namespace" in order:
        expected = {one for one in expected if pools.namespace not in one}
    operator = begin(site, operators, tmp_path)
    pools.apply(small())
    pools.wait_ready(1)
    assert site.everything() >= OWN
    steps = Steps(site, pools, operator)
    for name in order:
        getattr(steps, name)()
    began = time.monotonic()
    all_gone(site, expected)
    say(f"{', '.join(order)}: gone after {time.monotonic() - began:.1f} s")
    time.sleep(5)  # an operator that lives on tries to have its lease every 2 s
    assert site.everything() == expected


def all_gone(site: Site, expected: set[str]) -> None:
    deadline = time.monotonic() + GONE_WITHIN
    while left := site.everything() - expected:
        assert time.monotonic() < deadline, f"left: {sorted(left)}"
        time.sleep(0.5)


@pytest.mark.timeout(300)
def test_pools_serve_on_through_an_uninstall_and_are_taken_up_by_the_next_install(
    site: Site,
    pools: Pools,
    operators: list[OperatorProcess],
    tmp_path: Path,
) -> None:
    install(site)
    first = begin(site, operators, tmp_path)
    pools.apply(small())
    pools.wait_ready(1)
    deployment, pods, before = pools.deployment(), pools.pods(), token(pools)
    (address,) = site.kubelet.ready_addresses(pools.namespace)
    with ThreadPoolExecutor(1) as one:
        work = one.submit(ask, address, 20)
        uninstall(site)
        first.terminate()
        wait_for("its Lease and key are gone", lambda: not site.everything() & OWN, 30)
        assert ask(address, 0) == 200
        install(site)
        begin(site, operators, tmp_path)
        wait_for("a new key, so a new token", lambda: token(pools) != before, 60)
        wait_for("the worker is silent: it has the old one", lambda: reports(pools, "False"), 60)
        site.kubelet.refresh_secrets()
        wait_for("the worker reports", lambda: reports(pools, "True"), 60)
        assert work.result() == 200
    assert pools.deployment()["metadata"]["generation"] == deployment["metadata"]["generation"]
    assert uids(pools.pods()) == uids(pods)
    pools.apply(small(minReplicas=2))
    pools.wait_ready(2)


def ask(address: str, seconds: float) -> int:
    """The status of a request that takes a worker so long."""
    body = {"seconds": seconds}
    return httpx.post(
        f"http://{address}:8000/v1/work", json=body, timeout=60, verify=NO_TLS
    ).status_code


def token(pools: Pools) -> str:
    secret = pools.get(f"/api/v1/namespaces/{pools.namespace}/secrets/p-llmtaskpool-control")
    return secret["data"]["token"]


def reports(pools: Pools, status: str) -> bool:
    return pools.condition("MetricsAvailable").get("status") == status


def uids(objects: list[dict[str, Any]]) -> list[str]:
    return [one["metadata"]["uid"] for one in objects]


class Upgrades:
    """Ways to put our objects on a cluster: the next version, and this one again."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site = site
        self.folder = folder

    def helm_this(self) -> None:
        install(self.site)

    def helm_next(self) -> None:
        chart = next_chart(self.folder)
        self.site.helm("upgrade", "llmtaskpool", str(chart), "-n", OPERATOR_NAMESPACE)

    def helm_back(self) -> None:
        self.site.helm("rollback", "llmtaskpool", "1", "-n", OPERATOR_NAMESPACE)

    def helm_away(self) -> None:
        uninstall(self.site)

    def file_this(self) -> None:
        self.site.apply_file(without_namespace())
        self.site.served()

    def file_next(self) -> None:
        self.site.apply_file(next_file())

    file_back = file_this

    def file_away(self) -> None:
        self.site.delete_file(without_namespace())


def knows_next(site: Site) -> bool:
    (version,) = site.get(CRD)["spec"]["versions"]
    fields = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    return NEXT_FIELD in fields


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", ["helm", "file"])
def test_a_crd_goes_to_its_next_version_and_back_and_every_pool_stays_and_serves(
    site: Site,
    pools: Pools,
    operators: list[OperatorProcess],
    tmp_path: Path,
    way: str,
) -> None:
    site.delete(CRD)
    wait_for("no CRD of another test", lambda: not site.get(CRD))
    ways = Upgrades(site, tmp_path)
    getattr(ways, f"{way}_this")()
    site.collected(pools)
    begin(site, operators, tmp_path)
    for name in ("p", "q"):
        pools.apply(small() | {"metadata": {"name": name}})
        pools.wait_ready(1, name)
    made = [pools.pool(name) for name in ("p", "q")]
    running = uids(pools.pods("p") + pools.pods("q"))
    generations = [pools.deployment(name)["metadata"]["generation"] for name in ("p", "q")]

    getattr(ways, f"{way}_next")()
    assert knows_next(site)
    told = small() | {"metadata": {"name": "q"}}
    told["spec"][NEXT_FIELD] = "x"
    wait_for("the field is taken", lambda: applied(pools, told))
    assert pools.pool("q")["spec"][NEXT_FIELD] == "x"
    # This operator is of before, and so may its watch be, which drops the field: the pool runs on.
    pools.wait_ready(1, "q")

    getattr(ways, f"{way}_back")()
    assert not knows_next(site)
    wait_for("the field is gone", lambda: NEXT_FIELD not in pools.pool("q")["spec"])
    pools.wait_ready(1, "q")
    wait_for("Stalled no more", lambda: not pools.condition("Stalled", "q"))
    assert uids([pools.pool(name) for name in ("p", "q")]) == uids(made)
    assert [pools.pool(name)["spec"] for name in ("p", "q")] == [one["spec"] for one in made]
    assert uids(pools.pods("p") + pools.pods("q")) == running
    for name, before in zip(("p", "q"), generations, strict=True):
        assert pools.deployment(name)["metadata"]["generation"] == before
    getattr(ways, f"{way}_away")()


def applied(pools: Pools, body: dict[str, Any]) -> bool:
    """Whether the server takes it; a changed CRD is in force a moment later."""
    try:
        return bool(pools.apply(body))
    except AssertionError:
        return False


@pytest.mark.timeout(300)
def test_applying_the_same_again_and_an_operators_restart_change_nothing(
    site: Site, pools: Pools, operators: list[OperatorProcess], tmp_path: Path
) -> None:
    install(site)
    first = begin(site, operators, tmp_path)
    pools.apply(small())
    pools.wait_ready(1)
    wait_for("its threads are at rest", lambda: at_rest(pools), 60)
    first.terminate()
    made = site.helm("get", "manifest", "llmtaskpool", "-n", OPERATOR_NAMESPACE)
    before, pool = site.versions(made) | children(site, pools), pools.pool()
    site.helm("upgrade", "llmtaskpool", str(CHART), "-n", OPERATOR_NAMESPACE)
    pools.apply(small())
    assert pools.pool() == pool
    assert site.versions(made) | children(site, pools) == before
    second = begin(site, operators, tmp_path)
    wait_for("it led and took turns", lambda: turns(second) >= 3)
    assert site.versions(made) | children(site, pools) == before
    assert pools.pool()["spec"] == pool["spec"]
    assert pools.pool()["metadata"]["generation"] == pool["metadata"]["generation"]
    uninstall(site)


def at_rest(pools: Pools) -> bool:
    """Numbers that move are written every 10 s."""
    before = pools.pool()
    time.sleep(12)
    return pools.pool() == before


def children(site: Site, pools: Pools) -> dict[str, str]:
    """The resource versions of what the operator made for a pool."""
    named = {
        "Deployment": f"/apis/apps/v1/namespaces/{pools.namespace}/deployments/p",
        "Service": f"/api/v1/namespaces/{pools.namespace}/services/p",
        "account": f"/api/v1/namespaces/{pools.namespace}/serviceaccounts/p-worker",
        "token": f"/api/v1/namespaces/{pools.namespace}/secrets/p-llmtaskpool-control",
        "budget": f"/apis/policy/v1/namespaces/{pools.namespace}/poddisruptionbudgets/p-worker",
        "policy": f"/apis/networking.k8s.io/v1/namespaces/{pools.namespace}"
        "/networkpolicies/p-worker",
    }
    return {what: site.get(path)["metadata"]["resourceVersion"] for what, path in named.items()}


def turns(operator: OperatorProcess) -> float:
    lines = operator.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("llmtaskpool_operator_turns_total{")]
    return sum(float(line.split()[-1]) for line in found if 'result="ok"' in line)


USERS_CHART = """\
apiVersion: llmtaskpool.io/v1alpha1
kind: LLMTaskPool
metadata:
  name: p
spec:
  queue: {limit: {{ .Values.limit }}}
  scaling: {mode: {{ .Values.mode }}, minReplicas: 1, maxReplicas: 4, drainSeconds: 1}
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way", ["helm", "apply"])
def test_who_leaves_replicas_out_never_undoes_what_a_scaler_wrote(
    site: Site, pools: Pools, operators: list[OperatorProcess], tmp_path: Path, way: str
) -> None:
    """Helm 4 applies on the server, so a field that two of them write would be a conflict."""
    chart = tmp_path / "users"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("{apiVersion: v2, name: users, version: 0.1.0}")
    (chart / "templates" / "pool.yaml").write_text(USERS_CHART)

    def put(limit: int) -> None:
        if way == "helm":
            values = ["--set", f"limit={limit},mode=External", "-n", pools.namespace]
            site.helm("upgrade", "--install", "users", str(chart), *values)
        else:
            mode = {"mode": "External", "drainSeconds": 1}
            pools.apply(manifest(queue={"limit": limit}, scaling=mode))

    install(site)
    begin(site, operators, tmp_path)
    put(8)
    pools.wait_ready(1)
    pools.scale(2)
    pools.wait_ready(2)
    put(9)
    wait_for("rolled out", lambda: pools.deployment()["metadata"]["generation"] == 3)
    pools.wait_ready(2)
    put(9)
    assert pools.pool()["spec"]["replicas"] == 2
    assert pools.asked_for() == 2
    pools.delete()
    uninstall(site)
