"""What somebody who may make pools would try in order to get more than a pool: none of it works.

Strict clients (kubectl is one) are refused. With validation off, what is not in the CRD is gone
before the operator sees it; what is in it stays within its place in the pod.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from llmtaskpool_operator.api.manifest_file import BadPool, parse_pool
from llmtaskpool_operator.api.names import API_VERSION, KIND
from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.cluster import manifests
from llmtaskpool_operator.cluster.manifests import Surroundings

from .conftest import Cluster

AROUND = Surroundings("registry.local/worker:1", "token", "llmtaskpool-system")
POOLS = "/apis/llmtaskpool.io/v1alpha1/namespaces/{}/llmtaskpools"
EVIL = "evil-4711"
_MODEL = {"name": "m", "source": "pypi:m"}
FIELDS: dict[str, dict[str, Any]] = {
    "host network": {"hostNetwork": True},
    "host processes": {"hostPID": True},
    "host memory": {"hostIPC": True},
    "host users": {"hostUsers": True},
    "host names": {"hostAliases": [{"ip": "1.2.3.4", "hostnames": [EVIL]}]},
    "another account": {"serviceAccountName": EVIL},
    "a token": {"automountServiceAccountToken": True},
    "privileged": {"securityContext": {"privileged": True, "runAsUser": 0}},
    "capabilities": {"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}},
    "root in the pod": {"podSecurityContext": {"runAsUser": 0, "runAsNonRoot": False}},
    "a folder of the node": {"volumes": [{"name": EVIL, "hostPath": {"path": "/"}}]},
    "a mount": {"volumeMounts": [{"name": EVIL, "mountPath": "/host"}]},
    "a projected token": {
        "volumes": [{"name": EVIL, "projected": {"sources": [{"serviceAccountToken": {}}]}}]
    },
    "another container": {"containers": [{"name": EVIL, "image": EVIL}]},
    "a container before": {"initContainers": [{"name": EVIL, "image": EVIL}]},
    "a container for debugging": {"ephemeralContainers": [{"name": EVIL, "image": EVIL}]},
    "another command": {"command": ["/bin/sh", "-c", EVIL]},
    "other arguments": {"args": [EVIL]},
    "a template": {"template": {"spec": {"hostNetwork": True, "nodeName": EVIL}}},
    "a node by name": {"nodeName": EVIL},
    "a shared process tree": {"shareProcessNamespace": True, "note": EVIL},
    "a hook": {"lifecycle": {"preStop": {"exec": {"command": [EVIL]}}}},
    "another namespace": {"namespace": EVIL},
    "code that a model brings": {"models": [{**_MODEL, "trustRemoteCode": True, "code": EVIL}]},
    "a command in a model": {"models": [{**_MODEL, "command": [EVIL]}]},
    "keys of another namespace": {
        "auth": {"apiKeySecretRef": {"name": "keys", "namespace": EVIL}},
    },
    "devices by claim": {"resources": {"claims": [{"name": EVIL}]}},
    "a port of the node": {"ports": [{"hostPort": 22, "name": EVIL}]},
    "a privileged server": {
        "models": [{"name": "m", "source": "openai:http://127.0.0.1:8002/v1"}],
        "upstream": {
            "image": "server:1",
            "securityContext": {"privileged": True, "capabilities": {"add": [EVIL]}},
            "volumeMounts": [{"name": "cache", "mountPath": "/c", "hostPath": EVIL}],
            "lifecycle": {"postStart": {"exec": {"command": [EVIL]}}},
        },
    },
    "a finalizer": {"finalizers": [EVIL]},
    # siblings of fields that there are
    "environment of another namespace": {
        "envFrom": [{"secretRef": {"name": "s", "namespace": EVIL}}]
    },
    "pull secrets of another namespace": {"imagePullSecrets": [{"name": "s", "namespace": EVIL}]},
    "the hub's token of another namespace": {"tokenSecretRef": {"name": "s", "namespace": EVIL}},
    "the queue's server of another namespace": {
        "queue": {"redis": {"secretRef": {"name": "s", "namespace": EVIL}}}
    },
    "a folder of the node for weights": {"cache": {"hostPath": {"path": f"/{EVIL}"}}},
    "a server's folder for weights": {"cache": {"nfs": {"server": EVIL, "path": "/"}}},
    "a driver's volume for weights": {"cache": {"csi": {"driver": EVIL}}},
    "a volume by name": {"cache": {"claimTemplate": {"size": "1Gi", "volumeName": EVIL}}},
    "a copy of another claim": {
        "cache": {"claimTemplate": {"size": "1Gi", "dataSource": {"kind": "PVC", "name": EVIL}}}
    },
    "a token for the pod's account": {
        "serviceAccount": {"automountServiceAccountToken": True, "note": EVIL}
    },
    "a user with powers": {"user": {"privileged": True, "note": EVIL}},
    "a user's namespaces": {"user": {"hostUsers": True, "seccompProfile": {"type": EVIL}}},
    "addresses of others": {"service": {"externalIPs": ["1.2.3.4"], "note": EVIL}},
    "another's pods behind the Service": {"service": {"selector": {"app": EVIL}}},
    "another name behind the Service": {"service": {"externalName": EVIL}},
    "a port of the node by the Service": {"service": {"ports": [{"hostPort": 22, "note": EVIL}]}},
    "a template by the rollout": {"rollout": {"template": {"spec": {"nodeName": EVIL}}}},
    "authorities from the node": {"trustedCaRef": {"name": "c", "hostPath": f"/{EVIL}"}},
    "devices by admin access": {
        "resourceClaims": [
            {"name": "g", "resourceClaimName": "c", "adminAccess": True, "note": EVIL}
        ]
    },
    "a spread of other pods": {
        "topologySpreadConstraints": [
            {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": EVIL}}}
        ]
    },
}
VALUES: dict[str, dict[str, Any]] = {
    "a shell in a model's name": {"models": [{**_MODEL, "name": f"$({EVIL})"}]},
    "a path in a secret's name": {"auth": {"apiKeySecretRef": {"name": f"../{EVIL}"}}},
    "a path in a secret's key": {"auth": {"apiKeySecretRef": {"name": "k", "key": f"../{EVIL}"}}},
    "a task that is none": {"models": [{**_MODEL, "task": f"embed;{EVIL}"}]},
    "an amount that is none": {"resources": {"limits": {"cpu": f"1; {EVIL}"}}},
    "a gain that is none": {"scaling": {"alpha": f"1+{EVIL}"}},
    "a priority class that is none": {"priorityClassName": f"a b {EVIL}"},
    "a million replicas": {"replicas": 1_000_000, "note": EVIL},
    "another account, old name": {"serviceAccount": EVIL},
    "environment": {"env": [{"name": "LD_PRELOAD", "value": EVIL}]},
    "environment that loads code": {"env": [{"name": "PYTHONPATH", "value": f"/{EVIL}"}]},
    "environment of ours": {"env": [{"name": "LLMTASKPOOL_CONTROL_TOKENS", "value": EVIL}]},
    "environment from a secret, by prefix": {
        "envFrom": [{"prefix": "LLMTASKPOOL_", "secretRef": {"name": "s"}}]
    },
    "another scheduler": {"schedulerName": f"../{EVIL}"},
    "another runtime": {"runtimeClassName": f"$({EVIL})"},
    "pull secrets": {"imagePullSecrets": [{"name": f"../{EVIL}"}]},
    "annotations for the pod": {
        "podAnnotations": {"container.apparmor.security.beta.kubernetes.io/worker": "unconfined"}
    },
    "annotations for the pod, seccomp": {
        "podAnnotations": {"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}
    },
    "annotations that mount": {"podAnnotations": {"sidecar.istio.io/userVolume": EVIL}},
    "annotations that choose who goes": {
        "podAnnotations": {"controller.kubernetes.io/pod-deletion-cost": "-1000"}
    },
    "labels that are selected": {"podLabels": {"llmtaskpool.io/pool": EVIL}},
    "labels that monitors select": {"podLabels": {"app.kubernetes.io/name": EVIL}},
    "environment from the pod": {
        "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": EVIL}}}]
    },
    "environment from a file": {
        "env": [{"name": "A", "valueFrom": {"fileKeyRef": {"path": EVIL}}}]
    },
    "root's id": {"user": {"id": 0}},
    "root's group": {"user": {"group": 0}},
    "a Service that leads elsewhere": {"service": {"type": "ExternalName"}},
    "a claim by path": {"cache": {"claimName": f"../{EVIL}"}},
    "a path in the hub token's key": {"tokenSecretRef": {"name": "s", "key": f"../{EVIL}"}},
    "a path in the queue's key": {
        "queue": {"redis": {"secretRef": {"name": "s", "key": f"../{EVIL}"}}}
    },
    "a path in the authorities' key": {"trustedCaRef": {"name": "c", "key": f"../{EVIL}"}},
    "a shell in an alias": {"models": [{**_MODEL, "aliases": [f"$({EVIL})"]}]},
}


@pytest.fixture(scope="module")
def home(api_server: Cluster, crd: None) -> Iterator[str]:
    name = f"danger-{uuid.uuid4().hex[:6]}"
    body = {"metadata": {"name": name}}
    assert (
        api_server.request("POST", "/api/v1/namespaces", body, Content_Type="application/json")[0]
        == 201
    )
    yield name
    api_server.request("DELETE", f"/api/v1/namespaces/{name}")


def make(
    server: Cluster, home: str, spec: dict[str, Any], validation: str
) -> tuple[int, dict[str, Any]]:
    """Dry: what the server would store, defaults and pruning included."""
    path = f"{POOLS.format(home)}?dryRun=All&fieldValidation={validation}"
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "p"}, "spec": spec}
    status, answer = server.request("POST", path, body, Content_Type="application/json")
    return status, json.loads(answer)


@pytest.mark.parametrize("name", FIELDS)
def test_a_strict_client_is_told_that_there_is_no_such_field(
    api_server: Cluster, home: str, name: str
) -> None:
    status, answer = make(api_server, home, FIELDS[name], "Strict")
    assert status == 400, answer
    assert "unknown field" in answer["message"]


@pytest.mark.parametrize("name", FIELDS)
def test_with_validation_off_it_is_gone_before_it_could_reach_a_pod(
    api_server: Cluster, home: str, name: str
) -> None:
    status, stored = make(api_server, home, FIELDS[name], "Ignore")
    assert status == 201, stored
    known = {field.alias for field in LLMTaskPoolSpec.model_fields.values()}
    assert stored["spec"].keys().isdisjoint(set(FIELDS[name]) - known)
    assert EVIL not in json.dumps(stored["spec"])
    try:
        pool = parse_pool({key: stored[key] for key in ("apiVersion", "kind", "metadata", "spec")})
    except BadPool as refused:  # a namespace in a reference, say, is refused by the operator too
        pytest.fail(f"pruned by the server, and then not a pool: {refused}")
    made = json.dumps([manifests.deployment(pool, AROUND, 1), *manifests.children(pool, AROUND)])
    assert EVIL not in made
    for word in ("hostPath", 'hostNetwork": true', "hostPID", "hostIPC", "privileged", "SYS_ADMIN"):
        assert word not in made
    spec = manifests.deployment(pool, AROUND, 1)["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == "p-worker"
    assert spec["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", VALUES)
def test_a_value_of_the_wrong_form_is_refused_whatever_the_client_wants(
    api_server: Cluster, home: str, name: str
) -> None:
    status, answer = make(api_server, home, VALUES[name], "Ignore")
    assert status == 422, answer
    assert "Invalid value" in answer["message"] or "Unsupported value" in answer["message"]
