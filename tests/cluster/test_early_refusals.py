"""What a pool may say of its pods: refused at apply where Kubernetes would refuse the pods later.

Each row is asked of the real API server as a dry run. REFUSED: what is set, and what the answer
must say. ACCEPTED: what is set; all children that come of it are taken by the same server, too.
To add a case, add a row.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from llmtaskpool_operator.api.manifest_file import BadPool, parse_pool, parse_spec
from llmtaskpool_operator.api.names import API_VERSION, KIND
from llmtaskpool_operator.cluster import manifests
from llmtaskpool_operator.cluster.api_client import _PATHS
from llmtaskpool_operator.cluster.manifests import Surroundings

from .conftest import Cluster

AROUND = Surroundings("registry.local/worker:1", "token", "llmtaskpool-system")
POOLS = "/apis/llmtaskpool.io/v1alpha1/namespaces/{}/llmtaskpools"
MODEL = {"name": "m", "source": "pypi:m"}
Spec = dict[str, Any]


def requests(**amounts: Any) -> Spec:
    return {"resources": {"requests": {key.replace("_", "-"): v for key, v in amounts.items()}}}


def limits(**amounts: Any) -> Spec:
    return {"resources": {"limits": {key.replace("_", "-"): v for key, v in amounts.items()}}}


def gpus(**of: Any) -> Spec:
    return {"resources": {kind: {"nvidia.com/gpu": amount} for kind, amount in of.items()}}


def node(*expressions: Spec) -> Spec:
    terms = [{"matchExpressions": list(expressions)}]
    choice = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"affinity": {"nodeAffinity": choice}}


def near(**term: Any) -> Spec:
    return {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}


def model(**more: Any) -> Spec:
    return {"models": [MODEL | more]}


def named(name: str) -> Spec:
    return {"models": [MODEL | {"name": name}]}


REFUSED: dict[str, tuple[Spec, str]] = {
    # quantities, as Kubernetes parses them
    "ki is no suffix": (requests(memory="4096ki"), "spec.resources.requests"),
    "mi is no suffix": (limits(memory="1mi"), "spec.resources.limits"),
    "no number": (limits(cpu="two"), "spec.resources.limits"),
    "a space": (limits(memory="1 Gi"), "spec.resources.limits"),
    "less than nothing": (limits(cpu="-1"), "spec.resources.limits"),
    "less than nothing, as a number": (limits(cpu=-1), "spec.resources.limits"),
    # what models may have of a pod
    "a limit and its option": (
        model(limits={"threads": 8}, options={"max_threads": "9"}),
        "keep limits.threads and take max_threads out of options",
    ),
    "a limit and its option, in other units": (
        model(limits={"memory": "1Gi"}, options={"memory_bytes": "1000000000"}),
        "limits.memory and options.memory_bytes of a model say different things",
    ),
    "a limit and an option that is no amount": (
        model(limits={"cache": "1Gi"}, options={"cache_bytes": "all"}),
        "limits.cache and options.cache_bytes of a model say different things",
    ),
    "a memory without its unit": (
        model(limits={"memory": "2"}),
        "limits.memory is less than 1Mi: write an amount with its unit, such as 2Gi",
    ),
    "a cache of what keeps nothing": (
        model(limits={"cache": "1Gi"}, task="embed"),
        "limits.cache is of models that write",
    ),
    "an answer of what answers no text": (
        model(limits={"maxTokens": 9}, task="classify"),
        "limits.maxTokens is of models that write texts",
    ),
    "a context of what reads no text": (
        model(limits={"contextLength": 9}, task="detect"),
        "limits.contextLength is of models that read texts",
    ),
    "memory of a server's model": (
        model(limits={"memory": "1Gi"}, source="openai:http://127.0.0.1:8002/v1"),
        "limits.memory, cache and cores are of engines of this pool",
    ),
    "memory as a number": (model(limits={"memory": 2**30}), "spec.models[0].limits.memory"),
    "no places for a model": (model(limits={"threads": 0}), "spec.models[0].limits.threads"),
    "more memory for models than the pod has": (
        {
            "models": [MODEL | {"name": n, "limits": {"memory": "1100Mi"}} for n in "ab"],
            "resources": {"limits": {"memory": "2Gi"}},
        },
        "limits.memory of the models are together over resources.limits.memory",
    ),
    # requests and limits
    "cpu over its limit": (
        {"resources": {"requests": {"cpu": "4"}, "limits": {"cpu": "2"}}},
        "resources.requests.cpu is over resources.limits.cpu: lower the request or raise the limit",
    ),
    "memory over its limit, in other words": (
        {"resources": {"requests": {"memory": "2049Mi"}, "limits": {"memory": "2Gi"}}},
        "resources.requests.memory is over resources.limits.memory",
    ),
    "a disk over its limit": (
        {
            "resources": {
                "requests": {"ephemeral-storage": "3G"},
                "limits": {"ephemeral-storage": "2G"},
            }
        },
        "resources.requests.ephemeral-storage is over",
    ),
    "gpu without its domain": (requests(gpu=1), "such as nvidia.com/gpu"),
    "gpu without its domain, as a limit": (limits(gpu=1), "such as nvidia.com/gpu"),
    "a resource's name that is none": (
        {"resources": {"limits": {"nvidia.com/-gpu": 1}}},
        "a name that Kubernetes doesn't know",
    ),
    "a GPU in requests alone": (gpus(requests=1), "write them under limits alone"),
    "GPUs that differ": (gpus(requests=1, limits=2), "write them under limits alone"),
    "half a GPU": (gpus(limits="500m"), "is not whole"),
    "half a GPU, with a point": (gpus(limits="0.5"), "is not whole"),
    "huge pages in requests alone": (
        requests(hugepages_2Mi="64Mi", memory="1Gi"),
        "write them under limits alone",
    ),
    "huge pages and nothing else": (limits(hugepages_2Mi="64Mi"), "need cpu or memory"),
    # labels
    "a node label's value with a space": ({"nodeSelector": {"a": "b c"}}, "spec.nodeSelector"),
    "a node label's value that ends with a dash": (
        {"nodeSelector": {"a": "b-"}},
        "spec.nodeSelector",
    ),
    "a node label's key with two slashes": (
        {"nodeSelector": {"a/b/c": "d"}},
        "a key is no label: use [prefix/]name",
    ),
    "a node label's key with a space": ({"nodeSelector": {"a b": "c"}}, "a key is no label"),
    "a node label's key in capitals before the slash": (
        {"nodeSelector": {"Example.com/a": "b"}},
        "a key is no label",
    ),
    "a node label's key of 64": ({"nodeSelector": {"a" * 64: "b"}}, "a key is no label"),
    "a pod label's value that is none": ({"podLabels": {"a": "b/c"}}, "spec.podLabels"),
    "a pod label of the operator's": (
        {"podLabels": {"llmtaskpool.io/pool": "other"}},
        "one of the operator's own",
    ),
    "a pod label by which Services select": (
        {"podLabels": {"app.kubernetes.io/name": "other"}},
        "one of the operator's own",
    ),
    "an annotation's key that is none": ({"podAnnotations": {"a b": "c"}}, "a key is no label"),
    # tolerations
    "a toleration of nothing": ({"tolerations": [{}]}, "set operator to Exists, or name a key"),
    "a toleration without key": (
        {"tolerations": [{"operator": "Equal", "value": "a"}]},
        "set operator to Exists, or name a key",
    ),
    "a toleration that exists with a value": (
        {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]},
        "has no value: remove value, or use Equal",
    ),
    "seconds of another effect": (
        {"tolerations": [{"key": "a", "effect": "NoSchedule", "tolerationSeconds": 5}]},
        "is for the effect NoExecute",
    ),
    "an effect that is none": (
        {"tolerations": [{"key": "a", "effect": "NoRun"}]},
        "spec.tolerations[0].effect",
    ),
    "a toleration's value that is no label": (
        {"tolerations": [{"key": "a", "value": "b c"}]},
        "spec.tolerations[0].value",
    ),
    "a toleration's key that is none": (
        {"tolerations": [{"key": "a b", "operator": "Exists"}]},
        "spec.tolerations[0].key",
    ),
    # affinity, as in a Pod
    "affinity without terms": (
        {
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}
                }
            }
        },
        "nodeSelectorTerms",
    ),
    "affinity as a list": ({"affinity": []}, "spec.affinity"),
    "a node expression without values": (
        node({"key": "zone", "operator": "In"}),
        "In and NotIn need values",
    ),
    "a node expression with values too many": (
        node({"key": "zone", "operator": "Exists", "values": ["a"]}),
        "Exists and DoesNotExist none",
    ),
    "a node expression over two numbers": (
        node({"key": "cores", "operator": "Gt", "values": ["1", "2"]}),
        "Gt and Lt one",
    ),
    "a node expression with another operator": (
        node({"key": "zone", "operator": "Equals", "values": ["a"]}),
        "operator",
    ),
    "pods without a place": (near(labelSelector={}), "topologyKey"),
    "a place that is no label": (near(topologyKey="a b"), "topologyKey"),
    "a weight of nothing": (
        {
            "affinity": {
                "nodeAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {
                            "weight": 0,
                            "preference": {
                                "matchExpressions": [{"key": "a", "operator": "Exists"}]
                            },
                        }
                    ]
                }
            }
        },
        "weight",
    ),
    "places fewer than they can be": (
        {"topologySpreadConstraints": [{"topologyKey": "zone", "minDomains": 2}]},
        "set that, or remove minDomains",
    ),
    # what models are for
    "a task that no model is for": (model(task="dance"), "spec.models[0].task"),
    "a task that no server has a route for": (
        model(source="openai:http://127.0.0.1:8002/v1#m", task="tag"),
        "spec.models[0].task",
    ),
    "a task that writes, of a server that has no route for it": (
        model(source="openai:http://127.0.0.1:8002/v1#m", task="translate"),
        "spec.models[0].task",
    ),
    # names of models
    "a model's name with a space": (named("my model"), "spec.models[0].name"),
    "a model's name that begins with a dash": (named("-m"), "spec.models[0].name"),
    "a model's name with a comma": (named("a,b"), "spec.models[0].name"),
    "a model's name with an equals sign": (named("a=b"), "spec.models[0].name"),
    "an alias of two models": (
        {"models": [MODEL | {"aliases": ["x"]}, MODEL | {"name": "n", "aliases": ["x"]}]},
        "give every model names of its own",
    ),
    "an alias that is another model": (
        {"models": [MODEL | {"aliases": ["n"]}, MODEL | {"name": "n"}]},
        "give every model names of its own",
    ),
    "an alias that is no name": (model(aliases=["a b"]), "spec.models[0].aliases"),
    "a queue's server without its Secret": (
        {"queue": {"redis": {"allowVolatile": True}}},
        "spec.queue.redis.secretRef",
    ),
    "limits of keys where no key is asked for": (
        {"tenants": {"each": {"waiting": 10}}},
        "set auth.apiKeySecretRef",
    ),
    "keys of who runs the pool where no key is asked for": (
        {"tenants": {"each": {"seesAll": True}}},
        "set auth.apiKeySecretRef",
    ),
    "a tenant without keys": (
        {"tenants": {"named": [{"name": "team"}]}},
        "spec.tenants.named[0].apiKeySecretRef",
    ),
    "a tenant that is called like a key": (
        {"tenants": {"named": [{"name": "key-1", "apiKeySecretRef": {"name": "t"}}]}},
        "the name of a tenant begins with key-",
    ),
    "a tenant that may have nothing": (
        {"tenants": {"named": [{"name": "t", "apiKeySecretRef": {"name": "t"}, "running": 0}]}},
        "spec.tenants.named[0].running",
    ),
    # variables
    "a setting of the worker": (
        {"env": [{"name": "LLMTASKPOOL_DATA_DIR", "value": "/"}]},
        "use the field of spec that is for it",
    ),
    "the hub's token as a variable": (
        {"env": [{"name": "HF_TOKEN", "value": "x"}]},
        "models[].tokenSecretRef",
    ),
    "a variable twice": (
        {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]},
        "Duplicate value",
    ),
    "a variable with two values": (
        {
            "env": [
                {
                    "name": "A",
                    "value": "1",
                    "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}},
                }
            ]
        },
        "a variable has value or valueFrom: remove one",
    ),
    "a variable from two sources": (
        {
            "env": [
                {
                    "name": "A",
                    "valueFrom": {
                        "secretKeyRef": {"name": "s", "key": "k"},
                        "configMapKeyRef": {"name": "s", "key": "k"},
                    },
                }
            ]
        },
        "valueFrom names one source",
    ),
    "variables from nowhere": ({"envFrom": [{"prefix": "A_"}]}, "names one object"),
    # the rest
    "two caches": (
        {"cache": {"claimName": "a", "emptyDir": {}}},
        "cache is one of claimName, claimTemplate and emptyDir",
    ),
    "a claim without a size": ({"cache": {"claimTemplate": {}}}, "size"),
    "a claim of devices without a name": (
        {"resourceClaims": [{"name": "gpu"}]},
        "resourceClaimName or resourceClaimTemplateName",
    ),
    "a rollout that can't move": (
        {"rollout": {"maxSurge": 0, "maxUnavailable": 0}},
        "set maxUnavailable to 1",
    ),
    "a rollout that can't move, in per cent": (
        {"rollout": {"maxSurge": "0%"}},
        "set maxUnavailable to 1",
    ),
    "a share of more than all": ({"rollout": {"maxSurge": "101%"}}, "spec.rollout.maxSurge"),
    "a share below nothing": ({"rollout": {"maxSurge": -1}}, "spec.rollout.maxSurge"),
    "a budget of both": (
        {"disruptionBudget": {"maxUnavailable": 1, "minAvailable": 1}},
        "maxUnavailable or minAvailable",
    ),
    "a class of load balancers for none": (
        {"service": {"loadBalancerClass": "example.com/lb"}},
        "are for type LoadBalancer",
    ),
    "a node's port for none": (
        {"service": {"ports": [{"name": "http", "port": 80, "nodePort": 30080}]}},
        "a nodePort is for type NodePort or LoadBalancer",
    ),
    "two ports of one number": (
        {"service": {"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 80}]}},
        "have the same number",
    ),
    "annotations of an account that isn't ours": (
        {"serviceAccount": {"name": "mine", "annotations": {"a.example/b": "c"}}},
        "are for the account that the operator makes",
    ),
    "ids, and the platform's too": (
        {"user": {"id": 1000, "byPlatform": True}},
        "leaves the ids to the platform",
    ),
}
ACCEPTED: dict[str, Spec] = {
    "memory as kubectl top prints it": limits(memory="16777216Ki"),
    "every suffix": limits(memory="1E", cpu="1500m", ephemeral_storage="1e9"),
    "a point and nothing before it": limits(cpu=".5"),
    "a point and nothing after it": limits(cpu="1."),
    "an exponent": limits(memory="12E6"),
    "nano and micro": limits(cpu="100000000n", memory="1000000000u"),
    "as much as the limit, in other words": {
        "resources": {"requests": {"memory": "2048Mi"}, "limits": {"memory": "2Gi"}}
    },
    "requests without limits": requests(cpu="1", memory="1Gi"),
    "a GPU as a number": gpus(limits=1),
    "a GPU in both": gpus(requests="1", limits=1),
    "a part of a GPU": {"resources": {"limits": {"nvidia.com/mig-1g.10gb": 1}}},
    "models that read and then write": {
        "models": [
            MODEL | {"name": task, "task": task}
            for task in ("translate", "summarize", "transcribe")
        ]
    },
    "limits of models": {
        "models": [
            MODEL
            | {
                "limits": {"threads": 8, "waiting": 9, "cores": 2, "memory": "1Gi", "cache": "9Mi"}
                | {"contextLength": 99, "maxTokens": 9},
                "options": {"max_threads": "8", "memory_bytes": "1073741824"},
            },
            MODEL | {"name": "n", "limits": {"memory": "1073741824"}, "task": "tensor"},
        ],
        "resources": {"limits": {"memory": "2Gi"}},
    },
    "a bound by SM activity": {"threads": {"compute": {"smActivityTarget": 0.9}}},
    "huge pages": limits(hugepages_2Mi="64Mi", memory="1Gi"),
    "labels of nodes": {
        "nodeSelector": {"kubernetes.io/arch": "amd64", "a_b.c": "", "example.com/x": "A.b_c-1"}
    },
    "tolerations of all kinds": {
        "tolerations": [
            {"operator": "Exists"},
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
            {"key": "a", "value": "", "effect": "NoExecute", "tolerationSeconds": 0},
        ]
    },
    "node affinity": node(
        {"key": "zone", "operator": "In", "values": ["a", "b"]},
        {"key": "cores", "operator": "Gt", "values": ["8"]},
        {"key": "spot", "operator": "DoesNotExist"},
    ),
    "pod affinity": near(
        labelSelector={
            "matchLabels": {"app": "x"},
            "matchExpressions": [{"key": "a", "operator": "Exists"}],
        },
        topologyKey="kubernetes.io/hostname",
        namespaces=["other"],
    ),
    "preferences": {
        "affinity": {
            "podAntiAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "weight": 100,
                        "podAffinityTerm": {
                            "labelSelector": {"matchLabels": {"a": "b"}},
                            "topologyKey": "zone",
                        },
                    }
                ]
            }
        }
    },
    "spreading": {
        "topologySpreadConstraints": [
            {"topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"},
            {"topologyKey": "kubernetes.io/hostname", "nodeTaintsPolicy": "Honor"},
        ]
    },
    "a hub's name": named("Qwen/Qwen2.5-7B-Instruct"),
    "a name with a point": named("llama-3.1-8b"),
    "a name with an underscore": named("my_model"),
    "a name with a tag": named("qwen2.5:7b"),
    "aliases": model(aliases=["gpt-4o-mini", "m-latest"]),
    "tokens of a hub": {
        "tokenSecretRef": {"name": "hub"},
        **model(tokenSecretRef={"name": "hub-of-m", "key": "token"}),
    },
    "a queue that workers share": {"queue": {"redis": {"secretRef": {"name": "q", "key": "url"}}}},
    "tenants": {
        "auth": {"apiKeySecretRef": {"name": "keys"}},
        "tenants": {
            "each": {"waiting": 20, "weight": 1, "seesAll": True},
            "named": [
                {"name": "team-a", "apiKeySecretRef": {"name": "team-a"}, "share": 2.5},
                {"name": "team-b", "apiKeySecretRef": {"name": "team-b"}, "running": 4},
            ],
        },
    },
    "tenants with names alone": {
        "tenants": {"named": [{"name": "t", "apiKeySecretRef": {"name": "t", "key": "keys"}}]}
    },
    "tenants without limits": {"tenants": {}},
    "a model from an image": model(source="image:quay.io/org/model:1#weights"),
    "pulling": {
        "image": "registry.example:5000/worker@sha256:" + "a" * 64,
        "imagePullPolicy": "Always",
        "imagePullSecrets": [{"name": "registry"}],
    },
    "variables": {
        "env": [
            {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
            {"name": "EMPTY"},
            {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {
                "name": "B",
                "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k", "optional": True}},
            },
        ],
        "envFrom": [{"prefix": "S_", "secretRef": {"name": "s", "optional": True}}],
    },
    "labels and annotations": {
        "podLabels": {"team": "ml", "kueue.x-k8s.io/queue-name": "q"},
        "podAnnotations": {"prometheus.io/scrape": "true", "note": "x"},
    },
    "a claim that is there": {"cache": {"claimName": "weights"}},
    "a claim that is made": {"cache": {"claimTemplate": {"size": "100Gi"}}},
    "a cache in memory": {"cache": {"emptyDir": {"medium": "Memory", "sizeLimit": "20Gi"}}},
    "a load balancer": {
        "service": {
            "type": "LoadBalancer",
            "ports": [{"name": "http", "port": 8080}, {"name": "plain", "port": 80}],
            "loadBalancerClass": "example.com/lb",
            "loadBalancerSourceRanges": ["10.0.0.0/8"],
            "annotations": {"service.beta.kubernetes.io/aws-load-balancer-type": "external"},
            "labels": {"team": "ml"},
        }
    },
    "a node's port": {"service": {"type": "NodePort", "ports": [{"nodePort": 30081}]}},
    "runtime, scheduler, priority": {
        "runtimeClassName": "nvidia",
        "schedulerName": "volcano",
        "priorityClassName": "high",
    },
    "devices by claim": {
        "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}],
        "resources": {"limits": {"memory": "1Gi"}},
    },
    "shared memory": {"sharedMemory": "2Gi"},
    "an account of a cloud": {
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}}
    },
    "a named account": {"serviceAccount": {"name": "mine"}},
    "ids": {"user": {"id": 1000, "group": 1000}},
    "ids of the platform": {"user": {"byPlatform": True}},
    "authorities": {"trustedCaRef": {"name": "corporate"}},
    "a rollout without a spare": {"rollout": {"maxSurge": 0, "maxUnavailable": 1}},
    "a rollout by shares": {"rollout": {"maxSurge": "100%", "maxUnavailable": "50%"}},
    "no budget": {"disruptionBudget": {"mode": "Disabled"}},
    "a strict budget": {"disruptionBudget": {"minAvailable": "100%"}},
}


@pytest.fixture(scope="module")
def home(api_server: Cluster, crd: None) -> Iterator[str]:
    name = f"early-{uuid.uuid4().hex[:6]}"
    assert ask(api_server, "/api/v1/namespaces", {"metadata": {"name": name}})[0] == 201
    yield name
    api_server.request("DELETE", f"/api/v1/namespaces/{name}")


def ask(server: Cluster, path: str, body: Spec) -> tuple[int, Spec]:
    status, answer = server.request("POST", path, body, Content_Type="application/json")
    return status, json.loads(answer)


def dry(server: Cluster, home: str, spec: Spec) -> tuple[int, Spec]:
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "p"}, "spec": spec}
    path = f"{POOLS.format(home)}?dryRun=All&fieldValidation=Strict"
    return ask(server, path, body)


@pytest.mark.parametrize(("spec", "words"), REFUSED.values(), ids=REFUSED)
def test_what_pods_would_be_refused_for_is_refused_at_apply(
    api_server: Cluster, home: str, spec: Spec, words: str
) -> None:
    status, answer = dry(api_server, home, spec)
    assert status == 422, answer
    assert words in answer["message"]


@pytest.mark.parametrize("spec", [spec for spec, _ in REFUSED.values()], ids=REFUSED)
def test_it_is_refused_without_a_server_too(spec: Spec) -> None:
    with pytest.raises(BadPool):
        parse_spec(spec)


@pytest.mark.parametrize("spec", ACCEPTED.values(), ids=ACCEPTED)
def test_what_is_taken_at_apply_makes_children_that_the_server_takes(
    api_server: Cluster, home: str, spec: Spec
) -> None:
    status, stored = dry(api_server, home, spec)
    assert status == 201, stored
    pool = parse_pool({key: stored[key] for key in ("apiVersion", "kind", "metadata", "spec")})
    assert parse_spec(spec) == pool.spec, "defaults of the server change its meaning"
    for child in (*manifests.children(pool, AROUND), manifests.deployment(pool, AROUND, 1)):
        path = f"/{_PATHS[child['kind']].format(f'namespaces/{home}')}"
        status, answer = ask(api_server, f"{path}?dryRun=All&fieldValidation=Strict", child)
        assert status == 201, (child["kind"], answer)
