"""A pool's children as plain manifests: what `kubectl apply` would be given for them. Pure.

Pods pass Pod Security *restricted*: no privilege, no service-account token, a read-only root.
Nothing of the spec reaches a shell: options and paths are arguments and environment values.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from math import ceil
from typing import Any

from llmtaskpool_worker.contract import CONTROL_PORT, DATA_PORT, LIVEZ, READYZ

from llmtaskpool_operator.api.names import API_VERSION, GROUP, KIND
from llmtaskpool_operator.api.pool import LLMTaskPool, LLMTaskPoolSpec
from llmtaskpool_operator.api.quantities import number
from llmtaskpool_operator.workers.options import environment_of, options_of

Manifest = dict[str, Any]

POOL_LABEL = f"{GROUP}/pool"
OPERATOR = f"{GROUP}/operator"
"""Annotation of the token's Secret: whose pool it is."""
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
CONTAINER = "worker"
DATA, CONTROL = "data", "control"
UNROUTE_SECONDS = 5
"""A pod that is to go takes requests for so long still: until every node has heard of it."""
CLOSING_SECONDS = 10
"""What the worker needs at the end: answers that leave, an engine process that ends."""
MODEL_START_SECONDS = 1800
"""A start may download weights and convert them."""
_USER = 65532
_TOKEN_FOLDER, _KEYS_FOLDER = "/run/llmtaskpool/token", "/run/llmtaskpool/keys"
_CACHE = "/var/cache/llmtaskpool"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What children need beside the pool's spec.

    ``control_token`` is for the workers' control port; ``namespace`` is the operator's own, and
    ``operator`` is NAMESPACE/LEASE of it.
    """

    image: str
    control_token: str
    namespace: str
    operator: str = "llmtaskpool-system/llmtaskpool-operator"


def children(pool: LLMTaskPool, around: Surroundings) -> tuple[Manifest, ...]:
    """All children but the Deployment, in the order in which they should be made."""
    return (
        _token(pool, around),  # the first: with it goes the claim to the pool
        _service_account(pool),
        _network_policy(pool, around),
        _service(pool),
        _disruption_budget(pool),
    )


def deployment(pool: LLMTaskPool, around: Surroundings, replicas: int) -> Manifest:
    """The pool's Deployment, asking for so many replicas.

    A rollout starts a new pod before an old one goes, and an old one drains before it ends.
    """
    meta, passed = _metadata(pool, pool.metadata.name), propagated(pool)
    meta["labels"] = passed | meta["labels"]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta,
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": MODEL_START_SECONDS + 60,
            "selector": {"matchLabels": selector_labels(pool.metadata.name)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0},
            },
            "template": {
                # Nothing of the token is here: workers read a new one from their volume, and a
                # key that was lost must not restart every pod of every pool.
                "metadata": {"labels": passed | _labels(pool.metadata.name)},
                "spec": _pod(pool, around),
            },
        },
    }


def propagated(pool: LLMTaskPool) -> dict[str, str]:
    """Labels of the pool that its pods get too."""
    labels = pool.metadata.labels
    return {key: labels[key] for key in pool.spec.propagate_labels if key in labels}


def left_behind(live: Manifest, name: str) -> bool:
    """Whether an object is a child of a pool of that name which went and left it (orphan).

    Provably: it has our labels with the pool's name, and no owner any more.
    """
    meta = live.get("metadata") or {}
    labels = meta.get("labels") or {}
    return not meta.get("ownerReferences") and _labels(name).items() <= labels.items()


def selector_labels(name: str) -> dict[str, str]:
    """The labels by which a pool's pods are found; fixed for ever, selectors can't change."""
    return {"app.kubernetes.io/name": "llmtaskpool-worker", POOL_LABEL: name}


def selector(name: str) -> str:
    """The same as text, for `/scale` and list requests."""
    return ",".join(f"{key}={value}" for key, value in selector_labels(name).items())


def grace_seconds(spec: LLMTaskPoolSpec) -> int:
    """The time Kubernetes gives a pod: never less than unrouting, draining and closing take."""
    return UNROUTE_SECONDS + ceil(spec.scaling.drain_seconds) + CLOSING_SECONDS


def _labels(name: str) -> dict[str, str]:
    return selector_labels(name) | {
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/managed-by": "llmtaskpool",
        "app.kubernetes.io/part-of": "llmtaskpool",
    }


def _metadata(pool: LLMTaskPool, name: str) -> Manifest:
    return {
        "name": name,
        "namespace": pool.metadata.namespace,
        "labels": _labels(pool.metadata.name),
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": pool.metadata.name,
                "uid": pool.metadata.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def _account_name(pool: LLMTaskPool) -> str:
    return f"{pool.metadata.name}-worker"


def _token_name(pool: LLMTaskPool) -> str:
    return f"{pool.metadata.name}-llmtaskpool-control"


def _service_account(pool: LLMTaskPool) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _metadata(pool, _account_name(pool)),
        "automountServiceAccountToken": False,
    }


def _token(pool: LLMTaskPool, around: Surroundings) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(pool, _token_name(pool))
        | {"annotations": {OPERATOR: around.operator}},
        "type": "Opaque",
        "data": {"token": base64.b64encode(around.control_token.encode()).decode()},
    }


def _network_policy(pool: LLMTaskPool, around: Surroundings) -> Manifest:
    """Clients reach the data port; only the operator's namespace reaches the control port."""
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": around.namespace}}
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(pool, _account_name(pool)),
        "spec": {
            "podSelector": {"matchLabels": selector_labels(pool.metadata.name)},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"ports": [{"protocol": "TCP", "port": DATA_PORT}]},
                {"from": [operator], "ports": [{"protocol": "TCP", "port": CONTROL_PORT}]},
            ],
        },
    }


def _service(pool: LLMTaskPool) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(pool, pool.metadata.name),
        "spec": {
            "type": "ClusterIP",
            "selector": selector_labels(pool.metadata.name),
            "ports": [
                {
                    "name": "http",
                    "protocol": "TCP",
                    "appProtocol": "http",
                    "port": 80,
                    "targetPort": DATA,
                }
            ],
        },
    }


def _disruption_budget(pool: LLMTaskPool) -> Manifest:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(pool, _account_name(pool)),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": selector_labels(pool.metadata.name)},
            # A worker that can't serve holds nothing worth protecting from a node's drain.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def _pod(pool: LLMTaskPool, around: Surroundings) -> Manifest:
    spec = pool.spec
    keys = spec.auth.api_key_secret_ref
    volumes: list[Manifest] = [
        {"name": "cache", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "token", "secret": {"secretName": _token_name(pool), "defaultMode": 0o440}},
    ]
    if keys is not None:
        items = [{"key": keys.key, "path": "keys"}]
        secret = {"secretName": keys.name, "items": items, "defaultMode": 0o440}
        volumes.append({"name": "keys", "secret": secret})
    pod: Manifest = {
        "serviceAccountName": _account_name(pool),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_seconds(spec),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(spec, around, keyed=keys is not None)],
        "volumes": volumes,
    }
    if spec.node_selector:
        pod["nodeSelector"] = dict(spec.node_selector)
    if spec.tolerations:
        pod["tolerations"] = [toleration.wire() for toleration in spec.tolerations]
    if spec.affinity is not None:
        pod["affinity"] = spec.affinity
    if spec.priority_class_name is not None:
        pod["priorityClassName"] = spec.priority_class_name
    return pod


def _container(spec: LLMTaskPoolSpec, around: Surroundings, *, keyed: bool) -> Manifest:
    mounts: list[Manifest] = [
        {"name": "cache", "mountPath": _CACHE},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  the pod's own, in memory of nobody else
        {"name": "token", "mountPath": _TOKEN_FOLDER, "readOnly": True},
    ]
    if keyed:
        mounts.append({"name": "keys", "mountPath": _KEYS_FOLDER, "readOnly": True})
    container: Manifest = {
        "name": CONTAINER,
        "image": spec.image or around.image,
        "imagePullPolicy": "IfNotPresent",
        # The last lines of one that ends with an error are in the pod's status, and then in ours.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "args": [
            "serve",
            *("--host", "0.0.0.0", "--control-host", "0.0.0.0"),  # noqa: S104  the pod's address
            *("--grace-seconds", f"{spec.scaling.drain_seconds:g}"),
            # Kubernetes puts variables in the place of $(NAME) in arguments; $$ stays a $.
            *(option.replace("$", "$$") for option in options_of(spec)),
        ],
        "env": [*_environment(spec, keyed=keyed), _POD_NAME],
        "ports": [
            {"name": DATA, "containerPort": DATA_PORT, "protocol": "TCP"},
            {"name": CONTROL, "containerPort": CONTROL_PORT, "protocol": "TCP"},
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # Ready as soon as the models are in memory; unready while it drains, or while an engine
        # stands still: with the worker's stall_seconds of 10 the first sign comes within 15 s.
        "readinessProbe": _probe(READYZ, period=2, failures=1, timeout=2),
        # The engine goes first, the pod last: the worker kills an engine that stands still after
        # 30 s, and /livez fails after 60, only when that has not helped.
        "livenessProbe": _probe(LIVEZ, period=10, failures=3, timeout=5),
        "startupProbe": _probe(LIVEZ, period=2, failures=150, timeout=2),
        "volumeMounts": mounts,
    }
    resources = spec.resources.wire()
    if resources := {key: value for key, value in resources.items() if value}:
        container["resources"] = resources
    return container


_POD_NAME: Manifest = {
    "name": "LLMTASKPOOL_WORKER_ID",
    "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}},
}


def _environment(spec: LLMTaskPoolSpec, *, keyed: bool) -> list[Manifest]:
    values = environment_of(spec) | {
        "LLMTASKPOOL_CONTROL_TOKENS_FILE": f"{_TOKEN_FOLDER}/token",
        "LLMTASKPOOL_CACHE_DIR": _CACHE,
        "LLMTASKPOOL_UNROUTE_SECONDS": str(UNROUTE_SECONDS),
        "HF_HOME": f"{_CACHE}/huggingface",
        "HOME": "/tmp",  # noqa: S108  the only place beside the cache that can be written
    }
    if keyed:
        values["LLMTASKPOOL_API_KEYS_FILE"] = f"{_KEYS_FOLDER}/keys"
    cores = _cores(spec)
    if cores is not None:
        # torch counts the node's cores; more threads than the limit allows would be throttled.
        values |= {"OMP_NUM_THREADS": str(cores), "MKL_NUM_THREADS": str(cores)}
    return [{"name": name, "value": value} for name, value in values.items()]


def _cores(spec: LLMTaskPoolSpec) -> int | None:
    given = spec.resources.limits.get("cpu", spec.resources.requests.get("cpu"))
    cores = None if given is None else number(given)
    return None if cores is None else max(1, ceil(cores))


def _probe(path: str, *, period: int, failures: int, timeout: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": DATA},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": timeout,
    }
