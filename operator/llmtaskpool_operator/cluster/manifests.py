"""A pool's children as plain manifests: what `kubectl apply` would be given for them. Pure.

The pods themselves are in pod_template.py.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field

from llmtaskpool_worker.contract import CONTROL_PORT, DATA_PORT

from llmtaskpool_operator.api.names import GROUP
from llmtaskpool_operator.api.pool import LLMTaskPool, LLMTaskPoolSpec
from llmtaskpool_operator.api.worker_defaults import WorkerDefaults, with_defaults
from llmtaskpool_operator.cluster.gate_template import gate_deployment
from llmtaskpool_operator.cluster.identity import (
    POOL_LABEL,
    Manifest,
    account_name,
    claim_name,
    gate_labels,
    is_gates,
    labels,
    metadata,
    selector,
    selector_labels,
    token_name,
)
from llmtaskpool_operator.cluster.pod_template import CONTAINER, DATA, pod

__all__ = [
    "APPLIED",
    "CONTAINER",
    "DATA",
    "DELETION_COST",
    "OPERATOR",
    "POOL_LABEL",
    "Manifest",
    "Surroundings",
    "children",
    "deployment",
    "left_behind",
    "propagated",
    "selector",
    "selector_labels",
]

OPERATOR = f"{GROUP}/operator"
"""Annotation of the token's Secret: whose pool it is."""
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
APPLIED = f"{GROUP}/applied"
"""Annotation of children: a mark of what was applied."""
STUCK_AFTER_SECONDS = 60
"""A rollout is told to be stuck so long after the pods' own time to start."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What children need beside the pool's spec.

    ``control_token`` is for the workers' control port; ``namespace`` is the operator's own, and
    ``operator`` is NAMESPACE/LEASE of it; ``workers`` are the defaults of the cluster.
    """

    image: str
    control_token: str
    namespace: str
    operator: str = "llmtaskpool-system/llmtaskpool-operator"
    workers: WorkerDefaults = field(default_factory=WorkerDefaults)


def children(
    pool: LLMTaskPool, around: Surroundings, *, to_gate: bool = False
) -> tuple[Manifest, ...]:
    """All children but the Deployments, in the order in which they should be made.

    ``to_gate``: the Service leads to the gate, and not to the workers.
    """
    made = [
        _token(pool, around),  # the first: with it goes the claim to the pool
        _network_policy(pool, around),
        _service(pool, to_gate=to_gate),
        _disruption_budget(pool),
    ]
    if pool.spec.service_account.name is None:
        made.insert(1, _service_account(pool))
    if pool.spec.cache.claim_template is not None:
        made.insert(1, _claim(pool))
    return tuple(one if one["kind"] == "Secret" else _stamped(one) for one in made)


def _start_seconds(spec: LLMTaskPoolSpec) -> int:
    """The time that a new pod has to get ready: its server first, and then the worker."""
    server = 0 if spec.upstream is None else spec.upstream.startup_seconds
    return max(spec.rollout.start_seconds, server)


def deployment(pool: LLMTaskPool, around: Surroundings, replicas: int) -> Manifest:
    """The pool's Deployment, asking for so many replicas.

    By default a rollout starts a new pod before an old one goes, and an old one drains before it
    ends.
    """
    name, rollout, passed = pool.metadata.name, pool.spec.rollout, propagated(pool)
    spec = with_defaults(pool.spec, around.workers)
    whole = metadata(pool, name)
    whole["labels"] = passed | whole["labels"]
    meta: Manifest = {"labels": spec.pod_labels | passed | labels(name)}
    if spec.pod_annotations:
        meta["annotations"] = dict(spec.pod_annotations)
    made = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": whole,
        "spec": {
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": _start_seconds(spec) + STUCK_AFTER_SECONDS,
            "selector": {"matchLabels": selector_labels(name)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {
                    "maxSurge": rollout.max_surge,
                    "maxUnavailable": rollout.max_unavailable,
                },
            },
            "template": {
                # Nothing of the token is here: workers read a new one from their volume, and a
                # key that was lost must not restart every pod of every pool.
                "metadata": meta,
                "spec": pod(pool.model_copy(update={"spec": spec}), around.image),
            },
        },
    }
    _stamped(made)["spec"]["replicas"] = replicas
    return made


def gate(pool: LLMTaskPool, around: Surroundings, replicas: int) -> Manifest:
    """The Deployment of the pool's gate."""
    spec = with_defaults(pool.spec, around.workers)
    return _stamped(gate_deployment(pool, spec, around.image, replicas))


def service(pool: LLMTaskPool, *, to_gate: bool) -> Manifest:
    """The pool's Service, as among its children."""
    return _stamped(_service(pool, to_gate=to_gate))


def _stamped(wanted: Manifest) -> Manifest:
    """With a mark of all that it says, so that what it says no longer is a difference, too.

    Only then is it applied anew, and the server takes away what is left out.
    """
    text = json.dumps(wanted, sort_keys=True)
    mark = hashlib.sha256(text.encode()).hexdigest()[:16]
    meta = wanted["metadata"]
    meta["annotations"] = meta.get("annotations", {}) | {APPLIED: mark}
    return wanted


def propagated(pool: LLMTaskPool) -> dict[str, str]:
    """Labels of the pool that its pods get too."""
    given = pool.metadata.labels
    return {key: given[key] for key in pool.spec.propagate_labels if key in given}


def left_behind(live: Manifest, name: str) -> bool:
    """Whether an object is a child of a pool of that name which went and left it (orphan).

    Provably: it has our labels with the pool's name, and no owner any more.
    """
    meta = live.get("metadata") or {}
    given = meta.get("labels") or {}
    own = labels(name) | (gate_labels(name) if is_gates(given) else {})
    return not meta.get("ownerReferences") and own.items() <= given.items()


def _claim(pool: LLMTaskPool) -> Manifest:
    """Room for the weights, shared by the pool's pods; it goes with the pool."""
    template = pool.spec.cache.claim_template
    assert template is not None  # noqa: S101  for mypy: children() asked
    spec: Manifest = {
        "accessModes": [template.access_mode],
        "resources": {"requests": {"storage": template.size}},
    }
    if template.storage_class_name is not None:
        spec["storageClassName"] = template.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(pool, claim_name(pool)),
        "spec": spec,
    }


def _service_account(pool: LLMTaskPool) -> Manifest:
    meta = metadata(pool, account_name(pool))
    if given := pool.spec.service_account.annotations:
        meta["annotations"] = dict(given)
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": meta,
        "automountServiceAccountToken": False,
    }


def _token(pool: LLMTaskPool, around: Surroundings) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(pool, token_name(pool)) | {"annotations": {OPERATOR: around.operator}},
        "type": "Opaque",
        "data": {"token": base64.b64encode(around.control_token.encode()).decode()},
    }


def _network_policy(pool: LLMTaskPool, around: Surroundings) -> Manifest:
    """Clients reach the data port; only the operator's namespace reaches the control port.

    Of workers and of the gate, which have no other label in common.
    """
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": around.namespace}}
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(pool, account_name(pool)),
        "spec": {
            "podSelector": {"matchLabels": {POOL_LABEL: pool.metadata.name}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"ports": [{"protocol": "TCP", "port": DATA_PORT}]},
                {"from": [operator], "ports": [{"protocol": "TCP", "port": CONTROL_PORT}]},
            ],
        },
    }


def _service(pool: LLMTaskPool, *, to_gate: bool) -> Manifest:
    given, led = pool.spec.service, gate_labels if to_gate else selector_labels
    meta = metadata(pool, pool.metadata.name)
    meta["labels"] = given.labels | meta["labels"]
    if given.annotations:
        meta["annotations"] = dict(given.annotations)
    spec: Manifest = {
        "type": given.type,
        "selector": led(pool.metadata.name),
        "ports": [
            {
                **port.wire(),
                "protocol": "TCP",
                "appProtocol": "http",
                "targetPort": DATA,
            }
            for port in given.ports
        ],
    }
    if given.load_balancer_class is not None:
        spec["loadBalancerClass"] = given.load_balancer_class
    if given.load_balancer_source_ranges:
        spec["loadBalancerSourceRanges"] = list(given.load_balancer_source_ranges)
    if given.ip_family_policy is not None:
        spec["ipFamilyPolicy"] = given.ip_family_policy
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}


def _disruption_budget(pool: LLMTaskPool) -> Manifest:
    budget = pool.spec.disruption_budget
    if budget.mode == "Disabled":
        # An object that allows all: the operator has no right to delete one.
        away: Manifest = {"maxUnavailable": "100%"}
    elif budget.min_available is not None:
        away = {"minAvailable": budget.min_available}
    elif budget.max_unavailable is not None:
        away = {"maxUnavailable": budget.max_unavailable}
    else:
        away = {"maxUnavailable": 1}
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(pool, account_name(pool)),
        "spec": {
            **away,
            "selector": {"matchLabels": selector_labels(pool.metadata.name)},
            # A worker that can't serve holds nothing worth protecting from a node's drain.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
