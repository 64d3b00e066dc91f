"""A pool on a real API server: what a user applies comes to be, is scaled, and goes again.

Pods are real worker processes without models (fakes/mini_kubelet.py).
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Iterator

import httpx
import pytest
from fakes.preloaded import llmtaskpool

from .conftest import Operated, wait_for
from .pools import Pools, manifest


@pytest.fixture
def pools(operated: Operated, namespace: str) -> Iterator[Pools]:
    made = Pools(operated.cluster, namespace)
    yield made
    for item in made.get(made.path).get("items", ()):
        made.delete(item["metadata"]["name"])
    wait_for("all pods gone", lambda: not namespaced(operated, namespace), 60)


def namespaced(operated: Operated, namespace: str) -> list[str]:
    return [p.name for p in list(operated.kubelet.pods.values()) if p.namespace == namespace]


def test_an_applied_pool_gets_its_children_and_is_ready(pools: Pools) -> None:
    pools.apply(manifest(scaling={"minReplicas": 2}))
    pools.wait_ready(2)
    uid = pools.pool()["metadata"]["uid"]
    core, ns = "/api/v1", f"namespaces/{pools.namespace}"
    children = {
        "Deployment": f"/apis/apps/v1/{ns}/deployments/p",
        "Service": f"{core}/{ns}/services/p",
        "ServiceAccount": f"{core}/{ns}/serviceaccounts/p-worker",
        "Secret": f"{core}/{ns}/secrets/p-llmtaskpool-control",
        "PodDisruptionBudget": f"/apis/policy/v1/{ns}/poddisruptionbudgets/p-worker",
        "NetworkPolicy": f"/apis/networking.k8s.io/v1/{ns}/networkpolicies/p-worker",
    }
    for kind, path in children.items():
        owners = pools.get(path).get("metadata", {}).get("ownerReferences", [])
        assert [owner["uid"] for owner in owners] == [uid], kind
    assert pools.get(children["ServiceAccount"])["automountServiceAccountToken"] is False
    assert pools.status()["selector"].endswith("llmtaskpool.io/pool=p")
    assert pools.status()["observedGeneration"] == 1


def test_the_users_object_is_left_as_it_was_written(pools: Pools) -> None:
    before = pools.apply(manifest())
    pools.wait_ready(1)
    after = pools.pool()
    server_owned = ("managedFields", "resourceVersion")
    for body in (before, after):
        for name in server_owned:
            body["metadata"].pop(name)
    assert after["metadata"] == before["metadata"]
    assert after["spec"] == before["spec"]


def test_a_deleted_pool_takes_its_children_with_it_and_its_workers_end_in_order(
    operated: Operated, pools: Pools
) -> None:
    pools.apply(manifest())
    pools.wait_ready(1)
    (name,) = namespaced(operated, pools.namespace)
    pools.delete()
    wait_for("the pod ended", lambda: name in operated.kubelet.ended, 60)
    assert operated.kubelet.ended[name] == 0
    assert name not in operated.kubelet.killed
    path = f"/apis/apps/v1/namespaces/{pools.namespace}/deployments/p"
    wait_for("the Deployment gone", lambda: not pools.get(path), 60)


def test_in_mode_fixed_replicas_are_what_the_spec_says(pools: Pools) -> None:
    pools.apply(manifest(replicas=2, scaling={"mode": "Fixed"}))
    pools.wait_ready(2)
    pools.apply(manifest(replicas=1, scaling={"mode": "Fixed"}))
    pools.wait_ready(1)
    wait_for("one pod", lambda: len(pools.pods()) == 1, 60)


def test_in_mode_external_whoever_writes_scale_decides(pools: Pools) -> None:
    pools.apply(manifest(scaling={"mode": "External"}))
    pools.wait_ready(1)
    pools.scale(2)
    pools.wait_ready(2)
    scale = pools.get(f"{pools.path}/p/scale")
    assert scale["status"]["replicas"] == 2
    assert scale["status"]["selector"] == pools.status()["selector"]
    assert not pools.condition("ScalingConflict")


def test_in_mode_auto_a_write_to_scale_is_not_followed_and_its_writer_is_named(
    pools: Pools,
) -> None:
    pools.apply(manifest())
    pools.wait_ready(1)
    pools.scale(3)
    conflict = wait_for("ScalingConflict", lambda: pools.condition("ScalingConflict"))
    assert conflict["status"] == "True"
    assert "External" in conflict["message"]
    assert pools.asked_for() == 1
    # The way out that it says: without the field there is nobody to contradict.
    assert "remove spec.replicas" in conflict["message"]
    pools.send("PATCH", f"{pools.path}/p", {"spec": {"replicas": None}}, "merge")
    wait_for("the conflict's end", lambda: not pools.condition("ScalingConflict"), 15)
    assert pools.asked_for() == 1


def test_a_pool_sleeps_is_woken_by_a_request_and_sleeps_again(
    operated: Operated, pools: Pools
) -> None:
    at_once = {"scaleDown": {"stabilizationWindowSeconds": 0}}
    scaling = {"minReplicas": 0, "averagingSeconds": 5, "drainSeconds": 5, "behavior": at_once}
    pools.apply(manifest(scaling=scaling))
    ns = f"namespaces/{pools.namespace}"
    service = f"/api/v1/{ns}/services/p"

    def led_to() -> str:
        return pools.get(service)["spec"]["selector"]["app.kubernetes.io/name"]

    def reason() -> str | None:
        return pools.condition("Ready").get("reason")

    wait_for("it sleeps", lambda: reason() == "Asleep" and led_to() == "llmtaskpool-gate", 60)
    assert pools.asked_for() == 0
    gate = pools.get(f"/apis/apps/v1/{ns}/deployments/p-gate")
    uid = pools.pool()["metadata"]["uid"]
    assert [owner["uid"] for owner in gate["metadata"]["ownerReferences"]] == [uid]
    (address,) = operated.kubelet.ready_addresses(pools.namespace)
    body = {"model": "none", "messages": [{"role": "user", "content": "hello"}]}
    with httpx.Client(timeout=120) as client:
        answer = client.post(f"http://{address}:8000/v1/chat/completions", json=body)
    # A worker's own word: it has no such model, and the gate knows none.
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert answer.headers["x-llmtaskpool-cold-start"] == "true"
    wait_for("led to the worker", lambda: led_to() == "llmtaskpool-worker", 30)
    decisions = [d for d in pools.status()["lastDecisions"] if d["what"] == "replicas"]
    assert "work has arrived" in decisions[0]["reason"]
    wait_for("it sleeps again", lambda: reason() == "Asleep" and pools.asked_for() == 0, 90)
    assert led_to() == "llmtaskpool-gate"
    pools.apply(manifest(scaling={"minReplicas": 1}))
    pools.wait_ready(1)
    wait_for("its gate goes", lambda: len(pools.pods()) == 1, 60)
    assert led_to() == "llmtaskpool-worker"


def test_a_paused_pool_keeps_its_replicas(pools: Pools) -> None:
    pools.apply(manifest())
    pools.wait_ready(1)
    pools.apply(manifest(scaling={"minReplicas": 3, "paused": True}))
    wait_for("seen", lambda: pools.status().get("observedGeneration") == 2)
    assert pools.condition("ScalingActive")["reason"] == "Paused"
    assert pools.asked_for() == 1
    pools.apply(manifest(scaling={"minReplicas": 3}))
    wait_for("three asked for", lambda: pools.asked_for() == 3)


def test_advise_decides_in_public_and_does_nothing(pools: Pools) -> None:
    pools.apply(manifest())
    pools.wait_ready(1)
    pools.apply(manifest(scaling={"minReplicas": 3, "mode": "Advise"}))
    limited = wait_for(
        "the advice",
        lambda: "3" in (found := pools.condition("ScalingLimited")).get("message", "") and found,
    )
    assert "minimum is 3" in limited["message"]
    assert pools.asked_for() == 1


def test_the_operators_log_tells_replay_what_auto_would_have_done_with_a_pool_that_was_advised(
    operated: Operated, pools: Pools
) -> None:
    pools.apply(manifest(scaling={"mode": "Advise"}))
    pools.wait_ready(1)
    name = f"{pools.namespace}/p"
    log = operated.operator.log
    options = ["--name", name, "--output", "json", "--set", "scaling.minReplicas=3"]
    recorded = f'"pool":"{name}"'
    wait_for("decisions", lambda: operated.operator.text().count(recorded) >= 3)
    done = llmtaskpool("replay", log, *options, environment=os.environ)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["mode"] == "Advise"
    assert told["reproduced"]["same"] == told["reproduced"]["of"] >= 3
    assert told["recorded"]["most_replicas"] == 1
    assert told["replayed"]["most_replicas"] == 3


def test_somebody_elses_object_of_that_name_is_not_touched_and_named(pools: Pools) -> None:
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "p"},
        "spec": {"ports": [{"port": 9, "protocol": "TCP"}], "selector": {"app": "theirs"}},
    }
    path = f"/api/v1/namespaces/{pools.namespace}/services"
    before = pools.send("POST", path, theirs)
    pools.apply(manifest())
    stalled = wait_for("Stalled", lambda: pools.condition("Stalled"))
    assert stalled["reason"] == "NameTaken"
    assert "Service p" in stalled["message"]
    after = pools.get(f"{path}/p")
    assert after["spec"] == before["spec"]
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


def test_somebody_elses_deployment_is_never_scaled(pools: Pools) -> None:
    labels = {"app": "theirs"}
    container = {"name": "main", "image": "example.invalid/none"}
    spec = {
        "replicas": 0,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
    }
    theirs = {"metadata": {"name": "p"}, "spec": spec}
    pools.send("POST", f"/apis/apps/v1/namespaces/{pools.namespace}/deployments", theirs)
    pools.apply(manifest(scaling={"minReplicas": 2}))
    stalled = wait_for("Stalled", lambda: pools.condition("Stalled"))
    assert "Deployment p" in stalled["message"]
    time.sleep(2.5)  # two turns more
    assert pools.asked_for() == 0


def test_a_child_that_somebody_changed_is_mended(pools: Pools) -> None:
    pools.apply(manifest())
    pools.wait_ready(1)
    wanted = copy.deepcopy(pools.deployment()["spec"]["template"])
    path = f"/apis/apps/v1/namespaces/{pools.namespace}/deployments/p?fieldManager=kubectl-edit"
    containers = [{"name": "worker", "image": "example.invalid/other"}]
    bad = {"spec": {"template": {"spec": {"containers": containers}}}}
    status, answer = pools.cluster.request(
        "PATCH", path, bad, Content_Type="application/strategic-merge-patch+json"
    )
    assert status == 200, answer.decode()
    wait_for("mended", lambda: pools.deployment()["spec"]["template"] == wanted)


SAID = {
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}],
    "podLabels": {"team": "ml"},
    "podAnnotations": {"example.com/note": "x"},
    "service": {"annotations": {"example.com/note": "x"}, "labels": {"team": "ml"}},
    "serviceAccount": {"annotations": {"example.com/role": "x"}},
    "sharedMemory": "1024Mi",
    "cache": {"claimTemplate": {"size": "1024Mi"}},
    "disruptionBudget": {"mode": "Disabled"},
}


def test_what_a_spec_says_of_its_children_is_there_once_and_goes_when_it_is_taken_out(
    pools: Pools,
) -> None:
    ns = f"namespaces/{pools.namespace}"

    def said() -> dict[str, object]:
        deployment = pools.deployment().get("spec", {}).get("template", {})
        service = pools.get(f"/api/v1/{ns}/services/p").get("metadata", {})
        account = pools.get(f"/api/v1/{ns}/serviceaccounts/p-worker").get("metadata", {})
        budget = pools.get(f"/apis/policy/v1/{ns}/poddisruptionbudgets/p-worker").get("spec", {})
        pod, meta = deployment.get("spec", {}), deployment.get("metadata", {})
        return {
            "nodeSelector": pod.get("nodeSelector"),
            "tolerations": pod.get("tolerations"),
            "team": meta.get("labels", {}).get("team"),
            "note": meta.get("annotations", {}).get("example.com/note"),
            "service": service.get("annotations", {}).get("example.com/note"),
            "role": account.get("annotations", {}).get("example.com/role"),
            "volumes": "shm" in [volume["name"] for volume in pod.get("volumes", ())],
            "away": budget.get("maxUnavailable"),
        }

    plain = {"nodeSelector": None, "tolerations": None, "team": None, "note": None}
    plain |= {"service": None, "role": None, "volumes": False, "away": 1}
    full = {
        "nodeSelector": SAID["nodeSelector"],
        "tolerations": SAID["tolerations"],
        "team": "ml",
        "note": "x",
        "service": "x",
        "role": "x",
        "volumes": True,
        "away": "100%",
    }
    pools.apply(manifest(**copy.deepcopy(SAID)))
    pools.wait_ready(1)
    assert said() == full
    claim = pools.get(f"/api/v1/{ns}/persistentvolumeclaims/p-cache")
    assert claim["spec"]["resources"]["requests"]["storage"] == "1Gi"
    applied = pools.deployment()["metadata"]["generation"]
    time.sleep(3)  # turns of the operator: sizes that the server writes otherwise are no change
    assert pools.deployment()["metadata"]["generation"] == applied
    pools.apply(manifest())
    wait_for("what was taken out is gone", lambda: said() == plain, 30)
