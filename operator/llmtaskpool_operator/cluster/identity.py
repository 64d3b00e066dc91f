"""Who a pool's children are: their names, labels and owner. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmtaskpool_operator.api.names import API_VERSION, GROUP, KIND
from llmtaskpool_operator.api.pool import LLMTaskPool

Manifest = dict[str, Any]

POOL_LABEL = f"{GROUP}/pool"


def selector_labels(name: str) -> dict[str, str]:
    """The labels by which a pool's pods are found; fixed for ever, selectors can't change."""
    return {"app.kubernetes.io/name": "llmtaskpool-worker", POOL_LABEL: name}


def selector(name: str) -> str:
    """The same as text, for `/scale` and list requests."""
    return ",".join(f"{key}={value}" for key, value in selector_labels(name).items())


def labels(name: str) -> dict[str, str]:
    """The labels of all children, the pods' too."""
    return selector_labels(name) | {
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/managed-by": "llmtaskpool",
        "app.kubernetes.io/part-of": "llmtaskpool",
    }


def gate_labels(name: str) -> dict[str, str]:
    """The labels by which the pods of a pool's gate are found; fixed for ever, too."""
    return {"app.kubernetes.io/name": "llmtaskpool-gate", POOL_LABEL: name}


def is_gates(given: Mapping[str, str]) -> bool:
    """Whether labels are those of a gate's object."""
    return given.get("app.kubernetes.io/name") == "llmtaskpool-gate"


def metadata(pool: LLMTaskPool, name: str) -> Manifest:
    """The metadata of a child called ``name``."""
    return {
        "name": name,
        "namespace": pool.metadata.namespace,
        "labels": labels(pool.metadata.name),
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


def account_name(pool: LLMTaskPool) -> str:
    """Of the ServiceAccount that the operator makes, and of the policies beside it."""
    return f"{pool.metadata.name}-worker"


def gate_name(pool: LLMTaskPool) -> str:
    """Of the Deployment of the pool's gate."""
    return f"{pool.metadata.name}-gate"


def token_name(pool: LLMTaskPool) -> str:
    """Of the Secret with the token for the workers' control port."""
    return f"{pool.metadata.name}-llmtaskpool-control"


def claim_name(pool: LLMTaskPool) -> str:
    """Of the claim that the operator makes for the cache."""
    return f"{pool.metadata.name}-cache"
