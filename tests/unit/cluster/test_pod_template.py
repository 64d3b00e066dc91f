"""What a spec says of pods, Services and budgets stands in its place of the manifests."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes.cluster_objects import pool
from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.api.worker_defaults import WorkerDefaults, with_defaults
from llmtaskpool_operator.cluster import manifests
from llmtaskpool_operator.cluster.differences import agrees
from llmtaskpool_operator.cluster.manifests import Surroundings
from llmtaskpool_worker.scheduling.tenants import parse_tenants
from pydantic import ValidationError

AROUND = Surroundings("registry.local/worker:1", "token", "llmtaskpool-system")
_MODEL = {"name": "Qwen/Qwen2.5-7B-Instruct", "source": "hf://Qwen/Qwen2.5-7B-Instruct@main"}


def children(around: Surroundings = AROUND, **spec: Any) -> dict[str, Any]:
    of = pool(**spec)
    made = (*manifests.children(of, around), manifests.deployment(of, around, 1))
    return {one["kind"]: one for one in made}


def own_annotations(child: dict[str, Any]) -> dict[str, str]:
    found = dict(child["metadata"]["annotations"])
    found.pop(manifests.APPLIED)
    return found


def template(around: Surroundings = AROUND, **spec: Any) -> dict[str, Any]:
    return children(around, **spec)["Deployment"]["spec"]["template"]


def pod(**spec: Any) -> dict[str, Any]:
    return template(**spec)["spec"]


def container(**spec: Any) -> dict[str, Any]:
    return pod(**spec)["containers"][0]


def volume(name: str, **spec: Any) -> dict[str, Any]:
    (found,) = [one for one in pod(**spec)["volumes"] if one["name"] == name]
    return found


def variables(**spec: Any) -> dict[str, Any]:
    return {one["name"]: one.get("value") for one in container(**spec)["env"]}


def mount_of(name: str, **spec: Any) -> dict[str, Any]:
    (found,) = [one for one in container(**spec)["volumeMounts"] if one["name"] == name]
    return found


def test_pull_secrets_and_pull_policy_are_the_pods() -> None:
    spec = {"imagePullSecrets": [{"name": "registry"}], "imagePullPolicy": "Always"}
    assert pod(**spec)["imagePullSecrets"] == [{"name": "registry"}]
    assert container(**spec)["imagePullPolicy"] == "Always"
    assert container()["imagePullPolicy"] == "IfNotPresent"


def test_variables_come_from_values_secrets_and_config_maps() -> None:
    env = [
        {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
        {"name": "API", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        {"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
    ]
    found = container(env=env, envFrom=[{"secretRef": {"name": "s"}, "prefix": "S_"}])
    assert found["env"][0] == env[0]
    assert found["env"][1]["valueFrom"]["secretKeyRef"].items() >= {"name": "s", "key": "k"}.items()
    assert found["env"][2]["valueFrom"]["configMapKeyRef"]["name"] == "c"
    assert found["envFrom"][0]["secretRef"]["name"] == "s"
    assert found["envFrom"][0]["prefix"] == "S_"


@pytest.mark.parametrize(
    "name",
    ["LLMTASKPOOL_API_KEYS_FILE", "LLMTASKPOOL_DATA_DIR", "LD_PRELOAD", "PYTHONPATH", "PATH"]
    + ["HOME", "HF_HOME", "HF_TOKEN"],
)
def test_no_variable_of_ours_and_none_that_loads_code_can_be_set(name: str) -> None:
    with pytest.raises(ValidationError, match=r"use the field of spec|leave it out"):
        pool(env=[{"name": name, "value": "x"}])


def test_a_variable_that_sizes_the_math_library_goes_before_ours() -> None:
    spec = {
        "resources": {"limits": {"cpu": "4"}},
        "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
    }
    names = [one["name"] for one in container(**spec)["env"]]
    assert len(names) == len(set(names))
    assert variables(**spec)["OMP_NUM_THREADS"] == "1"
    assert variables(**spec)["MKL_NUM_THREADS"] == "4"


def test_labels_and_annotations_reach_pods_and_never_what_selects_them() -> None:
    made = children(podLabels={"team": "ml"}, podAnnotations={"prometheus.io/scrape": "true"})
    meta = made["Deployment"]["spec"]["template"]["metadata"]
    assert meta["labels"]["team"] == "ml"
    assert meta["annotations"] == {"prometheus.io/scrape": "true"}
    assert "team" not in json.dumps(made["Deployment"]["spec"]["selector"])
    assert "team" not in made["Service"]["spec"]["selector"]


def test_a_service_is_as_the_pool_says() -> None:
    given = {
        "type": "LoadBalancer",
        "ports": [{"name": "http", "port": 8080, "nodePort": 30080}, {"name": "plain", "port": 80}],
        "annotations": {"service.beta.kubernetes.io/aws-load-balancer-internal": "true"},
        "labels": {"team": "ml"},
        "loadBalancerClass": "example.com/lb",
        "loadBalancerSourceRanges": ["10.0.0.0/8"],
        "ipFamilyPolicy": "PreferDualStack",
    }
    made = children(service=given)["Service"]
    spec = made["spec"]
    assert (spec["type"], spec["loadBalancerClass"]) == ("LoadBalancer", "example.com/lb")
    assert spec["loadBalancerSourceRanges"] == ["10.0.0.0/8"]
    assert spec["ipFamilyPolicy"] == "PreferDualStack"
    assert [(p["name"], p["port"], p.get("nodePort")) for p in spec["ports"]] == [
        ("http", 8080, 30080),
        ("plain", 80, None),
    ]
    assert {p["targetPort"] for p in spec["ports"]} == {"data"}
    assert own_annotations(made) == given["annotations"]
    assert made["metadata"]["labels"]["team"] == "ml"
    assert (
        made["metadata"]["labels"].items() > manifests.selector_labels(pool().metadata.name).items()
    )


def test_a_pool_that_says_nothing_of_its_service_has_port_80_within_the_cluster() -> None:
    spec = children()["Service"]["spec"]
    assert spec["type"] == "ClusterIP"
    assert [(p["name"], p["port"]) for p in spec["ports"]] == [("http", 80)]
    assert not {"loadBalancerClass", "ipFamilyPolicy"} & spec.keys()


def test_runtime_scheduler_and_spreading_are_the_pods() -> None:
    found = pod(
        runtimeClassName="nvidia",
        schedulerName="kueue",
        topologySpreadConstraints=[{"topologyKey": "topology.kubernetes.io/zone"}],
    )
    assert (found["runtimeClassName"], found["schedulerName"]) == ("nvidia", "kueue")
    (spread,) = found["topologySpreadConstraints"]
    assert spread["topologyKey"] == "topology.kubernetes.io/zone"
    assert spread["labelSelector"] == {
        "matchLabels": manifests.selector_labels(pool().metadata.name)
    }
    assert spread["matchLabelKeys"] == ["pod-template-hash"]


def test_devices_by_claim_are_the_pods_and_the_workers() -> None:
    spec = {"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}]}
    assert pod(**spec)["resourceClaims"] == spec["resourceClaims"]
    assert container(**spec)["resources"]["claims"] == [{"name": "gpu"}]


def test_shared_memory_has_its_size() -> None:
    found = volume("shm", sharedMemory="2Gi")
    assert found["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
    assert mount_of("shm", sharedMemory="2Gi")["mountPath"] == "/dev/shm"  # noqa: S108  in the pod


def test_the_account_is_ours_with_annotations_or_a_named_one() -> None:
    annotated = children(serviceAccount={"annotations": {"eks.amazonaws.com/role-arn": "arn"}})
    made = own_annotations(annotated["ServiceAccount"])
    assert made == {"eks.amazonaws.com/role-arn": "arn"}
    named = children(serviceAccount={"name": "mine"})
    assert "ServiceAccount" not in named
    spec = named["Deployment"]["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == "mine"
    assert spec["automountServiceAccountToken"] is False


def test_ids_are_ours_the_pools_or_the_platforms_and_never_roots() -> None:
    def ids(**user: Any) -> dict[str, Any]:
        context = pod(user=user)["securityContext"]
        assert context["runAsNonRoot"] is True
        return {k: v for k, v in context.items() if k in ("runAsUser", "runAsGroup", "fsGroup")}

    assert ids() == {"runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532}
    assert ids(id=1000, group=2000) == {"runAsUser": 1000, "runAsGroup": 2000, "fsGroup": 2000}
    assert ids(byPlatform=True) == {}
    with pytest.raises(ValidationError):
        pool(user={"id": 0})


def test_files_of_secrets_can_be_read_whatever_group_the_platform_gives() -> None:
    assert volume("token")["secret"]["defaultMode"] == 0o440
    assert volume("token", user={"byPlatform": True})["secret"]["defaultMode"] == 0o444


def test_authorities_to_trust_come_as_a_file() -> None:
    spec = {"trustedCaRef": {"name": "corporate"}}
    assert volume("trusted-ca", **spec)["configMap"]["name"] == "corporate"
    file = variables(**spec)["LLMTASKPOOL_TRUSTED_CA_FILE"]
    assert file.startswith(mount_of("trusted-ca", **spec)["mountPath"])


def test_a_rollout_is_as_the_pool_says() -> None:
    rollout = {"maxSurge": 0, "maxUnavailable": 1, "startSeconds": 600}
    spec = children(rollout=rollout)["Deployment"]["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert spec["progressDeadlineSeconds"] == 660


@pytest.mark.parametrize(
    ("budget", "found"),
    [
        ({}, {"maxUnavailable": 1}),
        ({"maxUnavailable": 0}, {"maxUnavailable": 0}),
        ({"minAvailable": "50%"}, {"minAvailable": "50%"}),
        ({"mode": "Disabled"}, {"maxUnavailable": "100%"}),
    ],
)
def test_a_disruption_budget_is_off_or_as_strict_as_asked(
    budget: dict[str, Any], found: dict[str, Any]
) -> None:
    spec = children(disruptionBudget=budget)["PodDisruptionBudget"]["spec"]
    assert {k: v for k, v in spec.items() if k in ("maxUnavailable", "minAvailable")} == found


def test_workers_listen_on_every_address_ipv6_too() -> None:
    args = container()["args"]
    assert args[args.index("--host") + 1] == args[args.index("--control-host") + 1] == "::"


def test_keys_of_named_tenants_are_files_of_their_names_and_limits_are_a_setting() -> None:
    given = {
        "auth": {"apiKeySecretRef": {"name": "guests"}},
        "tenants": {
            "each": {"waiting": 20, "weight": 0.5},
            "named": [
                {"name": "a", "apiKeySecretRef": {"name": "of-a"}, "share": 2.5, "running": 4},
                {"name": "b", "apiKeySecretRef": {"name": "of-b", "key": "keys"}},
            ],
        },
    }
    found = variables(**given)
    assert found["LLMTASKPOOL_TENANTS"] == "a,share=2.5,running=4;b;*,waiting=20,weight=0.5"
    read = parse_tenants(found["LLMTASKPOOL_TENANTS"])
    assert (read.of("a").running, read.of("b").share, read.of("key-x").weight) == (4, 1.0, 0.5)
    mounted = mount_of("tenants", **given)
    assert (mounted["mountPath"], mounted["readOnly"]) == (
        found["LLMTASKPOOL_TENANT_KEYS_DIR"],
        True,
    )
    projected = volume("tenants", **given)["projected"]
    assert [source["secret"] for source in projected["sources"]] == [
        {"name": "of-a", "items": [{"key": "key", "path": "a"}]},
        {"name": "of-b", "items": [{"key": "keys", "path": "b"}]},
    ]
    assert "LLMTASKPOOL_TENANTS" not in variables()


def test_what_each_key_may_have_is_a_clusters_default_where_the_pool_says_nothing() -> None:
    defaults = WorkerDefaults.model_validate({"tenants": {"waiting": 7}})
    for own, expected in (({}, 7), ({"each": {"waiting": 3}}, 3)):
        spec = LLMTaskPoolSpec.model_validate(
            {"auth": {"apiKeySecretRef": {"name": "k"}}, "tenants": own}
        )
        assert with_defaults(spec, defaults).tenants.each.waiting == expected


def test_hub_tokens_are_files_of_secrets_the_models_own_before_the_pools() -> None:
    models = [_MODEL | {"tokenSecretRef": {"name": "qwen", "key": "token"}}]
    spec = {"models": models, "tokenSecretRef": {"name": "hub"}}
    sources = volume("hub-tokens", **spec)["projected"]["sources"]
    assert [one["secret"]["name"] for one in sources] == ["hub", "qwen"]
    paths = [one["secret"]["items"][0]["path"] for one in sources]
    assert paths == ["pool", "models/Qwen%2FQwen2.5-7B-Instruct"]
    mounted = mount_of("hub-tokens", **spec)
    assert mounted["readOnly"] is True
    found = variables(**spec)
    assert found["LLMTASKPOOL_HUB_TOKEN_FILE"] == f"{mounted['mountPath']}/pool"
    assert found["LLMTASKPOOL_HUB_TOKENS_DIR"] == f"{mounted['mountPath']}/models"
    assert "HF_TOKEN" not in found


def test_the_shared_queues_url_is_a_file_of_its_secret_and_the_line_has_the_pools_name() -> None:
    redis = {"secretRef": {"name": "queue", "key": "url"}}
    secret = volume("queue", queue={"redis": redis})["secret"]
    assert secret["secretName"] == "queue"
    assert secret["items"] == [{"key": "url", "path": "url"}]
    found = variables(queue={"redis": redis})
    mounted = mount_of("queue", queue={"redis": redis})
    assert mounted["readOnly"] is True
    assert found["LLMTASKPOOL_QUEUE_FILE"] == f"{mounted['mountPath']}/url"
    assert found["LLMTASKPOOL_QUEUE_POOL"] == f"{pool().metadata.namespace}/{pool().metadata.name}"
    assert "LLMTASKPOOL_QUEUE_ALLOW_VOLATILE" not in found
    volatile = variables(queue={"redis": redis | {"allowVolatile": True}})
    assert volatile["LLMTASKPOOL_QUEUE_ALLOW_VOLATILE"] == "true"
    assert not {"LLMTASKPOOL_QUEUE_FILE", "LLMTASKPOOL_QUEUE_POOL"} & variables().keys()


@pytest.mark.parametrize(
    ("cache", "found"),
    [
        ({}, {"emptyDir": {}}),
        ({"claimName": "weights"}, {"persistentVolumeClaim": {"claimName": "weights"}}),
        (
            {"claimTemplate": {"size": "100Gi"}},
            {"persistentVolumeClaim": {"claimName": f"{pool().metadata.name}-cache"}},
        ),
        (
            {"emptyDir": {"sizeLimit": "20Gi", "medium": "Memory"}},
            {"emptyDir": {"sizeLimit": "20Gi", "medium": "Memory"}},
        ),
    ],
)
def test_the_cache_is_the_one_that_was_asked_for(
    cache: dict[str, Any], found: dict[str, Any]
) -> None:
    assert volume("cache", cache=cache) == {"name": "cache", **found}


def test_a_cache_of_bounded_size_tells_the_worker_its_bound() -> None:
    cache = {"emptyDir": {"sizeLimit": "1Gi"}}
    assert variables(cache=cache)["LLMTASKPOOL_CACHE_BYTES"] == str(1024**3)


def test_a_claim_is_made_with_class_size_and_mode_and_goes_with_the_pool() -> None:
    template = {"size": "100Gi", "storageClassName": "nfs", "accessMode": "ReadWriteOnce"}
    claim = children(cache={"claimTemplate": template})["PersistentVolumeClaim"]
    assert claim["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "100Gi"}},
        "storageClassName": "nfs",
    }
    assert claim["metadata"]["ownerReferences"][0]["controller"] is True
    assert "PersistentVolumeClaim" not in children()


def test_a_model_from_an_image_is_a_read_only_volume_and_a_path() -> None:
    spec = {"models": [_MODEL, {"name": "b", "source": "image:quay.io/org/model:1#weights/b"}]}
    image = volume("model-1", **spec)["image"]
    assert image == {"reference": "quay.io/org/model:1", "pullPolicy": "IfNotPresent"}
    mount = mount_of("model-1", **spec)
    assert mount["readOnly"] is True
    assert f"b={mount['mountPath']}/weights/b" in container(**spec)["args"]


def test_names_of_the_hub_and_aliases_reach_the_worker() -> None:
    args = container(models=[_MODEL | {"aliases": ["gpt-4o-mini"]}])["args"]
    assert f"{_MODEL['name']}={_MODEL['source']},alias=gpt-4o-mini" in args


DEFAULTS = WorkerDefaults.model_validate(
    {
        "imagePullSecrets": [{"name": "registry"}],
        "imagePullPolicy": "Always",
        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "envFrom": [{"configMapRef": {"name": "common"}}],
        "podLabels": {"team": "platform", "cost": "1"},
        "podAnnotations": {"a.example/b": "c"},
        "trustedCaRef": {"name": "corporate"},
        "user": {"byPlatform": True},
    }
)
CLUSTER = Surroundings("worker:1", "token", "llmtaskpool-system", workers=DEFAULTS)


def test_defaults_of_the_cluster_hold_where_the_pool_says_nothing() -> None:
    made = template(CLUSTER)
    found, worker = made["spec"], made["spec"]["containers"][0]
    assert found["imagePullSecrets"] == [{"name": "registry"}]
    assert worker["imagePullPolicy"] == "Always"
    assert {"name": "HTTPS_PROXY", "value": "http://proxy:3128"} in worker["env"]
    assert worker["envFrom"][0]["configMapRef"]["name"] == "common"
    assert made["metadata"]["labels"]["team"] == "platform"
    assert made["metadata"]["annotations"] == {"a.example/b": "c"}
    assert "trusted-ca" in [one["name"] for one in found["volumes"]]
    assert "runAsUser" not in found["securityContext"]


def test_the_pools_own_word_goes_before_the_clusters() -> None:
    made = template(
        CLUSTER,
        imagePullSecrets=[{"name": "mine"}],
        imagePullPolicy="Never",
        env=[{"name": "HTTPS_PROXY", "value": "http://mine:1"}],
        podLabels={"team": "ml"},
        user={"id": 1000},
    )
    found, worker = made["spec"], made["spec"]["containers"][0]
    assert found["imagePullSecrets"] == [{"name": "registry"}, {"name": "mine"}]
    assert worker["imagePullPolicy"] == "Never"
    proxies = [one["value"] for one in worker["env"] if one["name"] == "HTTPS_PROXY"]
    assert proxies == ["http://mine:1"]
    assert made["metadata"]["labels"].items() >= {"team": "ml", "cost": "1"}.items()
    assert found["securityContext"]["runAsUser"] == 1000


REMOVABLE: dict[str, tuple[str, Any]] = {
    "nodeSelector": ("Deployment", {"a": "b"}),
    "tolerations": ("Deployment", [{"operator": "Exists"}]),
    "affinity": ("Deployment", {"nodeAffinity": {}}),
    "resources": ("Deployment", {"limits": {"cpu": "1"}}),
    "podLabels": ("Deployment", {"a": "b"}),
    "podAnnotations": ("Deployment", {"a.example/b": "c"}),
    "envFrom": ("Deployment", [{"secretRef": {"name": "s"}}]),
    "imagePullSecrets": ("Deployment", [{"name": "s"}]),
    "runtimeClassName": ("Deployment", "nvidia"),
    "priorityClassName": ("Deployment", "high"),
    "service": ("Service", {"annotations": {"a.example/b": "c"}}),
    "serviceAccount": ("ServiceAccount", {"annotations": {"a.example/b": "c"}}),
}


@pytest.mark.parametrize("field", REMOVABLE)
def test_what_is_taken_out_of_the_spec_is_a_difference(field: str) -> None:
    """Else a toleration or a node selector that a user removes would stay with the pods."""
    kind, value = REMOVABLE[field]
    live, wanted = children(**{field: value})[kind], children()[kind]
    assert not agrees(wanted, live)
    assert agrees(wanted, children()[kind])


def test_replicas_alone_are_no_other_mark() -> None:
    def mark(replicas: int) -> str:
        made = manifests.deployment(pool(), AROUND, replicas)
        return str(made["metadata"]["annotations"][manifests.APPLIED])

    assert mark(1) == mark(7)


def test_a_size_that_the_server_writes_otherwise_is_no_difference() -> None:
    wanted = children(sharedMemory="4096Mi", cache={"emptyDir": {"sizeLimit": "2048Mi"}})
    live = json.loads(
        json.dumps(wanted["Deployment"]).replace("4096Mi", "4Gi").replace("2048Mi", "2Gi")
    )
    assert agrees(wanted["Deployment"], live)
