"""The operator's rights, against what it does: nothing is forbidden to it, nothing is unused.

The rules are those that deploy/install.yaml installs; what it does is what the server audits.
"""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
import rig
from fakes.mini_kubelet import mini_kubelet
from fakes.operator_process import OperatorProcess
from fakes.read_yaml import documents

from .conftest import OPERATOR_NAMESPACE, ROOT, connected, wait_for, with_crd
from .pools import Pools, manifest

OPERATOR = "llmtaskpool-operator"
USER = "operator-of-the-chart"
STAND_IN = (sys.executable, str(ROOT / "tests" / "fakes" / "stand_in_worker.py"))
KEPT_UNUSED = {
    # Asked for by the admission plugin OwnerReferencesPermissionEnforcement, off by default.
    ("llmtaskpool.io", "llmtaskpools/finalizers", "update"),
    # Asked for where a pod waits for a volume: test_what_people_are_told.py has one that does.
    ("events.k8s.io", "events", "list"),
}
Right = tuple[str, str, str]


def installed(kind: str) -> list[dict[str, Any]]:
    text = (ROOT / "deploy" / "install.yaml").read_text()
    return [one for one in documents(text) if one["kind"] == kind]


def installed_for_it() -> tuple[dict[str, Any], dict[str, Any]]:
    """Its rights in all namespaces, and in its own; not what others may see of it."""
    (cluster_role,) = [r for r in installed("ClusterRole") if r["metadata"]["name"] == OPERATOR]
    (own_role,) = [r for r in installed("Role") if r["metadata"]["name"] == f"{OPERATOR}-own"]
    return cluster_role, own_role


def rights(rules: list[dict[str, Any]]) -> set[Right]:
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.fixture(scope="module")
def plane(own_control_plane: rig.ControlPlane) -> rig.ControlPlane:
    return own_control_plane


@pytest.fixture
def ran(plane: rig.ControlPlane, tmp_path: Path) -> list[dict[str, Any]]:
    """The audit events of an operator with the installed rights, over a pool's whole life."""
    cluster = connected(plane.kubeconfig)
    namespace = f"rbac-{uuid.uuid4().hex[:6]}"
    with_crd(cluster, OPERATOR_NAMESPACE, namespace)
    pools = Pools(cluster, namespace)
    cluster_role, own_role = installed_for_it()
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    subject = {"kind": "User", "name": USER, "apiGroup": "rbac.authorization.k8s.io"}
    for role, path in (
        (cluster_role, f"{rbac}/clusterroles"),
        (own_role, f"{rbac}/namespaces/{OPERATOR_NAMESPACE}/roles"),
    ):
        kind, name = role["kind"], role["metadata"]["name"]
        pools.send("POST", path, {"metadata": {"name": name}, "rules": role["rules"]})
        reference = {"kind": kind, "name": name, "apiGroup": "rbac.authorization.k8s.io"}
        binding = {"metadata": {"name": name}, "roleRef": reference, "subjects": [subject]}
        pools.send("POST", path.replace("roles", "rolebindings"), binding)
    config = plane.user_kubeconfig(USER)
    operator = OperatorProcess(config, tmp_path / "operator.log", identity="rbac")
    with mini_kubelet(cluster.request, tmp_path / "pods", program=STAND_IN):
        operator.start()
        try:
            operator.wait_ready(60)
            # Without a number in the spec, /scale gets one; it is deleted before it has a pod.
            pools.apply(manifest("external", scaling={"mode": "External"}))
            of_scale = f"{pools.path}/external/scale"
            wait_for("/scale", lambda: pools.get(of_scale).get("spec", {}).get("replicas"), 30)
            pools.delete("external")
            scaling = {"mode": "Fixed", "drainSeconds": 1}
            cache = {"claimTemplate": {"size": "1Gi"}}
            for replicas in (2, 1):
                pools.apply(manifest(scaling=scaling, replicas=replicas, cache=cache))
                pools.wait_ready(replicas)
            # Somebody deletes the Deployment: it is looked for before it is made again.
            old = pools.deployment()["metadata"]
            path = f"/apis/apps/v1/namespaces/{namespace}/deployments/{old['name']}"
            pools.send("DELETE", path, {})
            wait_for("another Deployment", lambda: _uid(pools) not in {None, old["uid"]}, 60)
            pools.wait_ready(1)
            pools.delete()
            wait_for("pods gone", lambda: not pools.pods(), 60)
            assert operator.terminate() == 0
        finally:
            operator.kill()
    events = [json.loads(line) for line in plane.audit_log.read_text().splitlines()]
    return [e for e in events if e["user"]["username"] == USER and e.get("objectRef")]


def _uid(pools: Pools) -> str | None:
    return pools.deployment().get("metadata", {}).get("uid")


def used(event: dict[str, Any]) -> set[Right]:
    """The rights that a request took; an apply that makes an object needs `create` too."""
    of = event["objectRef"]
    resource = of["resource"] + (f"/{of['subresource']}" if of.get("subresource") else "")
    made = event["verb"] == "patch" and event.get("responseStatus", {}).get("code") == 201
    verbs = {event["verb"]} | ({"create"} if made else set())
    return {(of.get("apiGroup", ""), resource, verb) for verb in verbs}


def all_of(events: list[dict[str, Any]]) -> set[Right]:
    return set().union(*(used(event) for event in events))


@pytest.mark.timeout(240)
def test_the_operator_may_do_what_it_does_and_nothing_else(ran: list[dict[str, Any]]) -> None:
    forbidden = [e for e in ran if e.get("responseStatus", {}).get("code") == 403]
    assert [used(e) for e in forbidden] == []
    own = [e for e in ran if e["objectRef"].get("namespace") == OPERATOR_NAMESPACE]
    pools = [e for e in ran if e["objectRef"].get("namespace") != OPERATOR_NAMESPACE]
    cluster_role, own_role = installed_for_it()
    unused = rights(cluster_role["rules"]) - all_of(pools) - KEPT_UNUSED
    assert unused == set()
    assert rights(own_role["rules"]) - all_of(own) == set()
