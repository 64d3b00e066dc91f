"""What breaks between the operator and the API server, and how the pool gets over it.

A proxy sees every request of the operator. Pods are stand-in workers, which start at once. Every
test prints how long recovery took; docs/operations.md states the bounds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import rig
from fakes.api_proxy import ApiProxy, Write, api_proxy, through
from fakes.mini_kubelet import MiniKubelet, mini_kubelet
from fakes.operator_process import OperatorProcess

from .conftest import OPERATOR_NAMESPACE, ROOT, Cluster, connected, wait_for, with_crd
from .pools import Pools, manifest

STAND_IN = (sys.executable, str(ROOT / "tests" / "fakes" / "stand_in_worker.py"))
CONVERGED_WITHIN = 30.0
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{OPERATOR_NAMESPACE}/leases/llmtaskpool-operator"


@dataclass(frozen=True, slots=True)
class Broken:
    """A cluster whose operators go through a proxy."""

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


@pytest.fixture
def pools(broken: Broken) -> Iterator[Pools]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    made = Pools(broken.cluster, name)
    made.send("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    yield made
    for item in made.get(made.path).get("items", ()):
        made.delete(item["metadata"]["name"])


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    def said(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{text}\n")

    return said


def fixed(replicas: int, **spec: Any) -> dict[str, Any]:
    return manifest(replicas=replicas, scaling={"mode": "Fixed", "drainSeconds": 5}, **spec)


def story(pools: Pools, within: float = 60.0) -> None:
    """Create, scale up, update, scale down."""
    pools.apply(fixed(1))
    pools.wait_ready(1, within=within)
    pools.apply(fixed(2))
    pools.wait_ready(2, within=within)
    pools.apply(fixed(2, queue={"limit": 9}))
    wait_for("rolled out", lambda: rolled_out(pools), within)
    pools.apply(fixed(1, queue={"limit": 9}))
    wait_for("one pod", lambda: len(pools.pods()) == 1, within)
    pools.wait_ready(1, within=within)


def rolled_out(pools: Pools) -> bool:
    body = pools.deployment()
    template = json.dumps(body["spec"]["template"])
    status = body.get("status", {})
    current = status.get("observedGeneration") == body["metadata"]["generation"]
    return (
        '"9"' in template
        and current
        and status.get("updatedReplicas") == 2
        and len(pools.pods()) == 2
    )


def children(pools: Pools) -> dict[str, list[str]]:
    """Names of all that the operator made, by kind."""
    ns = f"namespaces/{pools.namespace}"
    paths = {
        "Deployment": f"/apis/apps/v1/{ns}/deployments",
        "Service": f"/api/v1/{ns}/services",
        "ServiceAccount": f"/api/v1/{ns}/serviceaccounts",
        "Secret": f"/api/v1/{ns}/secrets",
        "PodDisruptionBudget": f"/apis/policy/v1/{ns}/poddisruptionbudgets",
        "NetworkPolicy": f"/apis/networking.k8s.io/v1/{ns}/networkpolicies",
    }
    return {
        kind: sorted(item["metadata"]["name"] for item in pools.get(path)["items"])
        for kind, path in paths.items()
    }


EVERY_CHILD = {
    "Deployment": ["p"],
    "Service": ["p"],
    "ServiceAccount": ["default", "p-worker"],
    "Secret": ["p-llmtaskpool-control"],
    "PodDisruptionBudget": ["p-worker"],
    "NetworkPolicy": ["p-worker"],
}
SPEC_CHANGES = 4
"""Generations of the Deployment in the story: made, scaled up, updated, scaled down."""


def ours(broken: Broken, pools: Pools) -> list[Write]:
    return [w for w in broken.proxy.writes if f"/{pools.namespace}/" in w.path]


def test_the_story_without_faults_takes_one_write_for_each_step(
    broken: Broken, operator: OperatorProcess, pools: Pools, say: Callable[[str], None]
) -> None:
    story(pools)
    writes = ours(broken, pools)
    say(f"writes of create, scale up, update, scale down: {len(writes)}")
    steps = [w for w in writes if w.path.endswith("/deployments/p")]
    assert len(steps) == SPEC_CHANGES
    assert pools.deployment()["metadata"]["generation"] == SPEC_CHANGES
    assert children(pools) == EVERY_CHILD


@contextlib.contextmanager
def kept_alive(operator: OperatorProcess) -> Iterator[None]:
    """Start the operator again whenever it is found dead, as a Deployment does."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            if operator.process.poll() is not None:
                operator.start()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(5)


class KillOnce:
    """Kills the operator at each write that it was not killed at before."""

    def __init__(self, operator: OperatorProcess, namespace: str) -> None:
        self._operator = operator
        self._namespace = namespace
        self._known: set[str] = set()
        self.at: list[float] = []

    def __call__(self, write: Write) -> bool:
        if f"/{self._namespace}/" not in write.path:
            return False
        mark = hashlib.sha256(write.path.encode() + _timeless(write.body)).hexdigest()
        if mark in self._known:
            return False
        self._known.add(mark)
        self._operator.kill()
        self.at.append(time.monotonic())
        return True


def _timeless(body: bytes) -> bytes:
    """A status without what moves with time: else each attempt would be a write of its own."""
    value = json.loads(body)

    def strip(part: Any) -> Any:
        if isinstance(part, dict):
            timed = {"lastTransitionTime", "resourceVersion", "message"}
            timed |= {"threads", "lastDecisions", "queued", "utilization"}
            return {k: strip(v) for k, v in part.items() if k not in timed}
        return [strip(one) for one in part] if isinstance(part, list) else part

    return json.dumps(strip(value), sort_keys=True).encode()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_operator_killed_at_every_write_ends_where_one_without_faults_does(
    broken: Broken,
    operator: OperatorProcess,
    pools: Pools,
    when: str,
    say: Callable[[str], None],
) -> None:
    kill = KillOnce(operator, pools.namespace)
    setattr(broken.proxy, when, kill)
    with kept_alive(operator):
        story(pools, within=400)
        settled = time.monotonic()
    say(
        f"killed {when} each of {len(kill.at)} writes; "
        f"settled {settled - kill.at[-1]:.1f} s after the last"
    )
    assert len(kill.at) >= 10
    assert settled - kill.at[-1] < CONVERGED_WITHIN
    assert pools.deployment()["metadata"]["generation"] == SPEC_CHANGES
    assert children(pools) == EVERY_CHILD


def test_answers_that_are_lost_after_the_commit_double_nothing(
    broken: Broken, operator: OperatorProcess, pools: Pools
) -> None:
    known: set[str] = set()

    def first_time(write: Write) -> bool:
        mark = hashlib.sha256(write.path.encode() + _timeless(write.body)).hexdigest()
        return mark not in known and not known.add(mark)

    broken.proxy.after = first_time
    story(pools)
    assert pools.deployment()["metadata"]["generation"] == SPEC_CHANGES
    assert children(pools) == EVERY_CHILD


@pytest.mark.parametrize(
    ("code", "headers"),
    [(409, {}), (429, {"Retry-After": "1"}), (500, {}), (503, {}), (401, {}), (403, {})],
)
def test_a_server_that_refuses_every_write_for_a_while_is_asked_again(
    broken: Broken,
    operator: OperatorProcess,
    pools: Pools,
    code: int,
    headers: dict[str, str],
    say: Callable[[str], None],
) -> None:
    pools.apply(fixed(1))
    pools.wait_ready(1)
    refused: list[float] = []

    def fault(method: str, path: str) -> tuple[int, dict[str, str]] | None:
        if method in {"PATCH", "POST", "PUT"} and f"/{pools.namespace}/" in path:
            refused.append(time.monotonic())
            return code, headers
        return None

    broken.proxy.fault = fault
    pools.apply(fixed(2))
    wait_for("refusals", lambda: len(refused) > 2)
    assert pools.asked_for() == 1
    assert len(broken.kubelet.ready_addresses(pools.namespace)) == 1  # it serves on
    broken.proxy.fresh()
    began = time.monotonic()
    pools.wait_ready(2, within=CONVERGED_WITHIN)
    say(
        f"{code}: {len(refused)} refusals, recovered {time.monotonic() - began:.1f} s after the end"
    )
    assert operator.process.poll() is None


def test_frozen_watches_are_made_good_by_the_resync(
    broken: Broken, operator: OperatorProcess, pools: Pools, say: Callable[[str], None]
) -> None:
    pools.apply(fixed(1))
    pools.wait_ready(1)
    broken.proxy.freeze_watches.set()
    began = time.monotonic()
    pools.apply(fixed(2))
    wait_for("two asked for", lambda: pools.asked_for() == 2, CONVERGED_WITHIN)
    say(f"watches frozen: seen after {time.monotonic() - began:.1f} s (resync 3 s)")
    broken.proxy.freeze_watches.clear()
    pools.wait_ready(2)


def test_watch_events_that_are_all_dropped_are_made_good_by_the_resync(
    broken: Broken, operator: OperatorProcess, pools: Pools
) -> None:
    broken.proxy.drop_event = lambda _path, event: event["type"] != "BOOKMARK"
    story(pools, within=90)
    assert pools.deployment()["metadata"]["generation"] == SPEC_CHANGES


def test_a_watch_that_is_told_410_lists_anew(
    broken: Broken, operator: OperatorProcess, pools: Pools
) -> None:
    pools.apply(fixed(1))
    pools.wait_ready(1)
    gone: set[str] = set()

    def expired_once(path: str, event: dict[str, Any]) -> dict[str, Any]:
        """What the server sends when etcd has compacted the history that a watch needs."""
        if path in gone:
            return event
        gone.add(path)
        return {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}}

    broken.proxy.replace_event = expired_once
    pools.apply(fixed(2))
    pools.wait_ready(2, within=CONVERGED_WITHIN)
    assert gone
    assert operator.process.poll() is None


@pytest.mark.timeout(600)
@pytest.mark.parametrize("role", ["kube-apiserver", "etcd"])
def test_a_control_plane_that_is_down_is_waited_for_and_workers_serve_on(
    broken: Broken,
    operator: OperatorProcess,
    pools: Pools,
    role: str,
    say: Callable[[str], None],
) -> None:
    pools.apply(fixed(1))
    pools.wait_ready(1)
    address = broken.kubelet.ready_addresses(pools.namespace)
    broken.plane.kill(role)
    time.sleep(20)
    assert broken.kubelet.ready_addresses(pools.namespace) == address
    assert operator.process.poll() is None
    broken.plane.start(role)
    broken.plane.wait_ready()
    began = time.monotonic()
    wait_for("the server takes writes", lambda: _applied(pools, 2), 60)
    wait_for("two asked for", lambda: pools.asked_for() == 2, CONVERGED_WITHIN)
    say(f"{role} down for 20 s: acted {time.monotonic() - began:.1f} s after it was back")
    # Kubernetes' own controllers come back with a backoff of theirs.
    pools.wait_ready(2, within=180)


def _applied(pools: Pools, replicas: int) -> bool:
    try:
        pools.apply(fixed(replicas))
    except (AssertionError, OSError):
        return False
    return True


def holder(broken: Broken) -> str:
    status, answer = broken.cluster.request("GET", LEASE)
    return json.loads(answer)["spec"].get("holderIdentity", "") if status == 200 else ""


def test_of_two_operators_one_acts_and_the_other_takes_over_when_it_is_killed_or_frozen(
    broken: Broken, operator: OperatorProcess, pools: Pools, say: Callable[[str], None]
) -> None:
    second = broken.operator("two")
    second.start()
    try:
        second.wait_ready(60)
        pools.apply(fixed(1))
        pools.wait_ready(1)
        assert holder(broken) == "one"
        assert {w.who for w in ours(broken, pools)} == {"one"}

        operator.freeze()
        began = time.monotonic()
        wait_for("two leads", lambda: holder(broken) == "two", 30)
        say(f"leader frozen: the other leads after {time.monotonic() - began:.1f} s")
        pools.apply(fixed(2))
        pools.wait_ready(2)
        broken.proxy.writes.clear()
        operator.thaw()
        pools.apply(fixed(1))
        wait_for("one asked for", lambda: pools.asked_for() == 1, 30)
        assert {w.who for w in ours(broken, pools)} == {"two"}

        second.kill()
        began = time.monotonic()
        wait_for("one leads", lambda: holder(broken) == "one", 30)
        say(f"leader killed: the other leads after {time.monotonic() - began:.1f} s")
        pools.apply(fixed(2))
        pools.wait_ready(2, within=CONVERGED_WITHIN)
    finally:
        second.kill()


def test_an_operator_that_is_told_to_end_gives_its_lease_up_at_once(
    broken: Broken, operator: OperatorProcess
) -> None:
    wait_for("one leads", lambda: holder(broken) == "one")
    assert operator.terminate() == 0
    assert holder(broken) == ""


def test_a_worker_that_hangs_is_named_and_other_pools_go_on(
    broken: Broken, operator: OperatorProcess, pools: Pools
) -> None:
    pools.apply(fixed(1))
    pools.wait_ready(1)
    (hung,) = [p for p in broken.kubelet.pods.values() if p.namespace == pools.namespace]
    broken.kubelet.deaf.add(hung.name)  # its readiness is not looked at: the node seems well
    hung.process.send_signal(19)
    try:
        pools.apply(fixed(1) | {"metadata": {"name": "other"}})
        pools.wait_ready(1, "other")

        def named() -> bool:
            found = pools.condition("MetricsAvailable")
            return found.get("status") == "False" and hung.name in found["message"]

        wait_for("the silent pod is named", named, 60)
        assert pools.asked_for() == 1
    finally:
        hung.process.send_signal(18)
