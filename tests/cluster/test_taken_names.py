"""Somebody else's objects with the names that a pool needs: told, left alone, waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakes.operator_process import OperatorProcess

from .conftest import Broken, wait_for
from .pools import Pools, fixed, own_pools

LABELS = {"app": "theirs"}
_POD = {
    "metadata": {"labels": LABELS},
    "spec": {"containers": [{"name": "c", "image": "localhost/theirs:1"}]},
}
_TEMPLATE = {"replicas": 0, "selector": {"matchLabels": LABELS}, "template": _POD}
FOREIGN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Deployment": ("apis/apps/v1", "deployments", {"spec": _TEMPLATE}),
    "Service": ("api/v1", "services", {"spec": {"selector": LABELS, "ports": [{"port": 80}]}}),
    "ServiceAccount": ("api/v1", "serviceaccounts", {}),
    "Secret": ("api/v1", "secrets", {"data": {"token": "dGhlaXJz"}}),
    "PodDisruptionBudget": (
        "apis/policy/v1",
        "poddisruptionbudgets",
        {"spec": {"maxUnavailable": 1, "selector": {"matchLabels": LABELS}}},
    ),
    "NetworkPolicy": (
        "apis/networking.k8s.io/v1",
        "networkpolicies",
        {"spec": {"podSelector": {"matchLabels": LABELS}}},
    ),
}
SUFFIX = {
    "ServiceAccount": "-worker",
    "Secret": "-llmtaskpool-control",
    "PodDisruptionBudget": "-worker",
    "NetworkPolicy": "-worker",
}


@pytest.fixture
def pools(broken: Broken) -> Iterator[Pools]:
    with own_pools(broken.cluster) as made:
        yield made


def theirs(body: dict[str, Any]) -> dict[str, Any]:
    """All of an object that somebody wrote; not what Kubernetes' own controllers keep."""
    kept = {key: value for key, value in body.items() if key not in ("status", "metadata")}
    moving = ("resourceVersion", "managedFields", "annotations")
    meta = {key: value for key, value in body["metadata"].items() if key not in moving}
    writers = {entry["manager"] for entry in body["metadata"]["managedFields"]}
    return kept | {"metadata": meta, "writers": writers - {"kube-controller-manager"}}


def test_what_has_a_pools_name_and_is_not_its_own_stalls_the_pool_and_is_never_touched(
    broken: Broken, operator: OperatorProcess, pools: Pools, say: Callable[[str], None]
) -> None:
    def path(kind: str) -> str:
        root, plural, _ = FOREIGN[kind]
        return f"/{root}/namespaces/{pools.namespace}/{plural}"

    names = {kind: f"of-{kind.lower()}" for kind in FOREIGN}
    taken = {kind: name + SUFFIX.get(kind, "") for kind, name in names.items()}
    made = {}
    for kind, (_, _, body) in FOREIGN.items():
        meta = {"metadata": {"name": taken[kind], "labels": LABELS}}
        made[kind] = theirs(pools.send("POST", f"{path(kind)}?fieldManager=them", body | meta))
        pools.apply(fixed(1) | {"metadata": {"name": names[kind]}})
    began = time.monotonic()
    for kind, name in names.items():
        wait_for(f"{kind} is told", lambda name=name: pools.condition("Stalled", name), 30)
        stalled = pools.condition("Stalled", name)
        assert stalled["reason"] == "NameTaken"
        assert f"a {kind} {taken[kind]} that is not this LLMTaskPool's" in stalled["message"]
        assert "remove it, or rename the pool" in stalled["message"]
        assert pools.condition("Ready", name)["status"] == "False"
    say(f"{len(names)} names that are taken are told {time.monotonic() - began:.1f} s after")
    time.sleep(20)  # each is looked at again in this time
    for kind in FOREIGN:
        assert theirs(pools.get(f"{path(kind)}/{taken[kind]}")) == made[kind]
    assert "; again in" not in operator.text()  # no turn failed
    for kind in FOREIGN:
        pools.cluster.request("DELETE", f"{path(kind)}/{taken[kind]}")
    began = time.monotonic()
    for kind, name in names.items():
        pools.wait_ready(1, name, within=60)
        owners = pools.get(f"{path(kind)}/{taken[kind]}")["metadata"]["ownerReferences"]
        assert [owner["name"] for owner in owners] == [name]
        assert pools.condition("Stalled", name) == {}
    say(f"all ready {time.monotonic() - began:.1f} s after the names were free")
