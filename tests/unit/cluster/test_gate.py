"""The gate on a cluster: its objects, what the operator writes when, and what it never does."""

from __future__ import annotations

from typing import Any

from fakes.cluster_objects import NAME, NAMESPACE, gate_state, pool, worker_state
from fakes.controller_rig import AT_REST, Rig
from llmtaskpool_operator.cluster import manifests
from llmtaskpool_operator.cluster.identity import gate_labels
from llmtaskpool_operator.cluster.manifests import Surroundings, selector_labels

GATE = f"{NAME}-gate"
SLEEPY: dict[str, Any] = {
    "scaling": {"minReplicas": 0, "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}}
}
AROUND = Surroundings("worker:1", "token", "llmtaskpool-system")


def gates(rig: Rig) -> Any:
    return rig.api.find("Deployment", NAMESPACE, GATE)


def led_to(rig: Rig) -> str:
    led = rig.api.find("Service", NAMESPACE, NAME)["spec"]["selector"]
    return {
        tuple(gate_labels(NAME).items()): "gate",
        tuple(selector_labels(NAME).items()): "workers",
    }[tuple(led.items())]


def again(rig: Rig, turns: int = 1, seconds: float = 5.0) -> float | None:
    wait = None
    for _ in range(turns):
        rig.now += seconds
        wait = rig.turn()
    return wait


def asleep(**spec: Any) -> Rig:
    """A pool that sleeps, and its gate that is ready."""
    rig = Rig(**(SLEEPY | AT_REST | spec))
    rig.turn()
    rig.cluster.gate("g", gate_state("g"))
    again(rig, 2)
    return rig


def worker_comes(rig: Rig, name: str = "a", **state: Any) -> None:
    rig.cluster.pods(name, state=worker_state(name, **state))


def test_a_pool_that_sleeps_has_a_gate_in_its_place_and_is_well() -> None:
    rig = asleep()
    assert gates(rig)["spec"]["replicas"] == 1
    assert rig.cluster.deployment["spec"]["replicas"] == 0
    assert led_to(rig) == "gate"
    assert rig.condition("Ready")["reason"] == "Asleep"
    assert rig.condition("Degraded")["reason"] == "Healthy"
    assert "Warning" not in str(rig.events)


def test_it_is_looked_at_each_second_and_writes_nothing_while_it_sleeps() -> None:
    rig = asleep()
    assert again(rig) == 1.0
    assert rig.writes == []


def test_from_a_request_to_its_worker_and_back_to_sleep() -> None:
    rig = asleep()
    rig.cluster.states["g"] = gate_state("g", held=16)
    again(rig, seconds=1.0)
    assert rig.cluster.deployment["spec"]["replicas"] == 1
    assert rig.condition("Ready")["reason"] == "Waking"
    rig.cluster.pods("a", ready=False)
    again(rig, seconds=1.0)
    assert led_to(rig) == "gate"
    assert rig.cluster.told == []
    worker_comes(rig, active=4)
    again(rig, 2, seconds=1.0)
    assert rig.cluster.told == [("g", ("ip-of-a:8000",))], "once"
    assert led_to(rig) == "workers"
    assert rig.condition("Ready")["reason"] == "AllReady"
    rig.cluster.states["g"] = gate_state("g", workers=("ip-of-a:8000",))
    worker_comes(rig)
    order = []
    for _ in range(20):
        again(rig)
        order += [kind for _, kind, _ in rig.writes if kind in ("Service", "Deployment")]
        if rig.cluster.deployment["spec"]["replicas"] == 0:
            break
    assert order == ["Service", "Deployment"], "the gate is in its place before the worker goes"
    assert led_to(rig) == "gate"


def test_a_request_in_the_moment_of_the_last_worker_keeps_it() -> None:
    rig = asleep()
    rig.cluster.states["g"] = gate_state("g", held=1)
    again(rig)
    worker_comes(rig, active=1)
    again(rig, 2)
    worker_comes(rig)
    rig.cluster.states["g"] = gate_state("g", workers=("ip-of-a:8000",))
    for _ in range(20):
        again(rig)
        if led_to(rig) == "gate":
            break
    assert rig.cluster.deployment["spec"]["replicas"] == 1
    rig.cluster.states["g"] = gate_state("g", recent=1, workers=("ip-of-a:8000",))
    again(rig, 2)
    assert rig.cluster.deployment["spec"]["replicas"] == 1
    assert led_to(rig) == "workers"


def test_another_replica_that_takes_over_leaves_a_sleeping_pool_as_it_is() -> None:
    rig = asleep()
    rig.controller = rig.another()
    again(rig)
    assert [kind for _, kind, _ in rig.writes if kind in ("Service", "Deployment")] == []
    assert led_to(rig) == "gate"


def test_a_worker_that_is_lost_is_stood_in_for_though_nobody_sleeps() -> None:
    rig = asleep()
    rig.cluster.states["g"] = gate_state("g", held=1)
    again(rig)
    worker_comes(rig, active=1)
    again(rig, 2)
    assert led_to(rig) == "workers"
    rig.cluster.pods("a", ready=False)
    again(rig)
    assert led_to(rig) == "gate"
    assert rig.cluster.told[-1] == ("g", ())


def test_a_pool_that_may_not_sleep_has_no_gate_and_one_that_may_no_more_lets_it_go() -> None:
    rig = Rig(**AT_REST).settled()
    assert gates(rig) is None
    assert led_to(rig) == "workers"
    rig = asleep()
    rig.respec(**AT_REST)
    again(rig)
    assert gates(rig)["spec"]["replicas"] == 1, "it may hold something"
    assert led_to(rig) == "gate"
    worker_comes(rig)
    again(rig, 3)
    assert led_to(rig) == "workers"
    assert gates(rig)["spec"]["replicas"] == 0
    rig.api.objects.pop(("Pod", NAMESPACE, "g"))
    again(rig)
    assert rig.condition("Ready")["reason"] == "AllReady"


def test_somebody_elses_deployment_of_the_gates_name_is_left_as_it_is() -> None:
    rig = Rig(**(SLEEPY | AT_REST))
    theirs = {"metadata": {"name": GATE, "namespace": NAMESPACE}, "spec": {"replicas": 3}}
    rig.cluster.put({"apiVersion": "apps/v1", "kind": "Deployment", **theirs})
    again(rig, 2)
    assert gates(rig)["spec"] == {"replicas": 3}
    assert rig.condition("Stalled")["reason"] == "NameTaken"
    assert GATE in rig.condition("Stalled")["message"]


def test_a_gate_that_somebody_deletes_or_changes_is_mended() -> None:
    rig = asleep()
    live = gates(rig)
    live["spec"]["replicas"] = 0
    rig.cluster.put(live)
    again(rig)
    assert gates(rig)["spec"]["replicas"] == 1
    rig.cluster.store.gone("Deployment", rig.api.objects.pop(("Deployment", NAMESPACE, GATE)))
    again(rig)
    assert gates(rig)["spec"]["replicas"] == 1


def test_a_gate_passes_pod_security_restricted_and_has_nothing_of_a_workers() -> None:
    """No GPU, no cache, no model, no hub token, no taint tolerated, no affinity."""
    of = pool(
        scaling={"minReplicas": 0},
        models=[{"name": "smol", "source": "hf://org/smol@main"}],
        auth={"apiKeySecretRef": {"name": "keys", "key": "all"}},
        tokenSecretRef={"name": "hub", "key": "token"},
        queue={"redis": {"secretRef": {"name": "queue", "key": "url"}}, "timeoutSeconds": 90},
        resources={"limits": {"nvidia.com/gpu": 1, "memory": "80Gi"}},
        nodeSelector={"accelerator": "l4", "kubernetes.io/arch": "arm64"},
        tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}],
        env=[{"name": "OTHERS_SECRET", "value": "s"}],
        sharedMemory="1Gi",
        runtimeClassName="nvidia",
        imagePullSecrets=[{"name": "registry"}],
    )
    made = manifests.gate(of, AROUND, 1)
    pod = made["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert made["spec"]["selector"]["matchLabels"] == gate_labels(NAME)
    assert (
        not selector_labels(NAME).items() <= made["spec"]["template"]["metadata"]["labels"].items()
    )
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"] == {
        "requests": {"cpu": "50m", "memory": "128Mi"},
        "limits": {"memory": "512Mi"},
    }
    assert {one["name"] for one in pod["volumes"]} == {"tmp", "token", "keys", "queue"}
    assert {one["name"] for one in container["volumeMounts"]} == {"tmp", "token", "keys", "queue"}
    assert pod["nodeSelector"] == {"kubernetes.io/arch": "arm64"}
    assert not {"tolerations", "affinity", "runtimeClassName", "initContainers"} & pod.keys()
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    environment = {one["name"]: one.get("value") for one in container["env"]}
    assert environment["LLMTASKPOOL_QUEUE_TIMEOUT_SECONDS"] == "90"
    assert environment["LLMTASKPOOL_QUEUE_POOL"] == f"{NAMESPACE}/{NAME}"
    assert "OTHERS_SECRET" not in environment
    assert "--gate" in container["args"]
    assert pod["terminationGracePeriodSeconds"] > 90, "what it holds may take as long"


def test_a_gate_asks_for_the_keys_of_tenants_and_tells_them_apart_as_workers_do() -> None:
    """Where tenants have all the keys that there are it would ask nobody for one."""
    of = pool(
        scaling={"minReplicas": 0},
        tenants={
            "named": [
                {"name": "team", "apiKeySecretRef": {"name": "team", "key": "keys"}, "waiting": 9},
                {"name": "ops", "apiKeySecretRef": {"name": "ops"}, "seesAll": True},
            ]
        },
    )
    gate, worker = (
        made["spec"]["template"]["spec"]
        for made in (manifests.gate(of, AROUND, 1), manifests.deployment(of, AROUND, 1))
    )
    for name in ("LLMTASKPOOL_TENANTS", "LLMTASKPOOL_TENANT_KEYS_DIR"):
        values = [
            {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}[name]
            for pod in (gate, worker)
        ]
        assert values[0] == values[1]
    assert {"name": "LLMTASKPOOL_TENANTS", "value": "team,waiting=9;ops,sees=all"} in gate[
        "containers"
    ][0]["env"]
    keys = [
        next(one for one in pod["volumes"] if one["name"] == "tenants") for pod in (gate, worker)
    ]
    assert keys[0] == keys[1]
    assert "tenants" in {one["name"] for one in gate["containers"][0]["volumeMounts"]}
