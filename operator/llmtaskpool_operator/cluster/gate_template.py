"""The Deployment of a pool's gate: the worker's image without threads, models and devices. Pure.

It asks for no GPU and tolerates no taint: on a node that is kept for GPUs it would keep that node.
"""

from __future__ import annotations

from math import ceil

from llmtaskpool_worker.contract import CONTROL_PORT, DATA_PORT, LIVEZ, READYZ

from llmtaskpool_operator.api.pool import LLMTaskPool, LLMTaskPoolSpec
from llmtaskpool_operator.cluster.identity import (
    Manifest,
    account_name,
    gate_labels,
    gate_name,
    labels,
    metadata,
)
from llmtaskpool_operator.cluster.pod_template import (
    CLOSING_SECONDS,
    CONTROL,
    DATA,
    POD_NAME,
    RESTRICTED,
    UNROUTE_SECONDS,
    ids,
    probe,
)
from llmtaskpool_operator.cluster.volumes import mounted_by_gate
from llmtaskpool_operator.workers.options import environment_of, options_of

CONTAINER = "gate"
HOLD_SECONDS = 600.0
"""The worker's own default of ``queue.timeoutSeconds``."""
START_SECONDS = 120
"""A gate that has not got ready by then is told of."""
_RESOURCES: Manifest = {
    "requests": {"cpu": "50m", "memory": "128Mi"},
    "limits": {"memory": "512Mi"},
}
_BODIES_BYTES = 192 * 1024 * 1024
"""Of the limit, for the bodies of requests that are held."""
_WELL_KNOWN = ("kubernetes.io/arch", "kubernetes.io/os")
"""Of the pool's nodeSelector: on what the image runs."""


def hold_seconds(spec: LLMTaskPoolSpec) -> float:
    """How long a request is held at most, as it would wait in a worker's queue."""
    return spec.queue.timeout_seconds or HOLD_SECONDS


def gate_deployment(
    pool: LLMTaskPool, spec: LLMTaskPoolSpec, image: str, replicas: int
) -> Manifest:
    """``spec`` is the pool's with the cluster's defaults; ``image`` is for pools that name none.

    A rollout starts the new pod first; the old one goes on holding what it holds.
    """
    name = pool.metadata.name
    whole = metadata(pool, gate_name(pool))
    own = labels(name) | gate_labels(name)
    whole["labels"] = own
    template: Manifest = {"labels": spec.pod_labels | own}
    if spec.pod_annotations:
        template["annotations"] = dict(spec.pod_annotations)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": whole,
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": START_SECONDS,
            "selector": {"matchLabels": gate_labels(name)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "template": {"metadata": template, "spec": _pod(pool, spec, image)},
        },
    }


def _pod(pool: LLMTaskPool, spec: LLMTaskPoolSpec, image: str) -> Manifest:
    held = mounted_by_gate(pool.model_copy(update={"spec": spec}))
    hold = hold_seconds(spec)
    made: Manifest = {
        "serviceAccountName": spec.service_account.name or account_name(pool),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": UNROUTE_SECONDS + ceil(hold) + CLOSING_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            **ids(spec),
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": CONTAINER,
                "image": spec.image or image,
                "imagePullPolicy": spec.image_pull_policy or "IfNotPresent",
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "args": [
                    *("serve", "--gate", "--host", "::", "--control-host", "::"),
                    *("--grace-seconds", f"{hold:g}"),
                    *(option.replace("$", "$$") for option in _options(spec)),
                ],
                "env": [*_environment(spec, held.environment), POD_NAME],
                "ports": [
                    {"name": DATA, "containerPort": DATA_PORT, "protocol": "TCP"},
                    {"name": CONTROL, "containerPort": CONTROL_PORT, "protocol": "TCP"},
                ],
                "securityContext": RESTRICTED,
                "readinessProbe": probe(READYZ, period=2, failures=1, timeout=2),
                "livenessProbe": probe(LIVEZ, period=10, failures=3, timeout=5),
                "startupProbe": probe(LIVEZ, period=1, failures=120, timeout=2),
                "volumeMounts": held.mounts,
                "resources": _RESOURCES,
            }
        ],
        "volumes": held.volumes,
    }
    if spec.image_pull_secrets:
        made["imagePullSecrets"] = [one.wire() for one in spec.image_pull_secrets]
    if chosen := {key: spec.node_selector[key] for key in _WELL_KNOWN if key in spec.node_selector}:
        made["nodeSelector"] = chosen
    if spec.priority_class_name is not None:
        made["priorityClassName"] = spec.priority_class_name
    return made


_KEPT = (
    "LLMTASKPOOL_CORS_ORIGINS",
    "LLMTASKPOOL_TASK_QUEUE_TIMEOUT_SECONDS",
    "LLMTASKPOOL_TENANTS",
)
"""Of the workers' settings those that are about who asks, and what is accepted."""


def _options(spec: LLMTaskPoolSpec) -> list[str]:
    """The bound of the queue, and the models' names, which it tells to who asks: it loads none."""
    options = options_of(spec)
    return options[options.index("--queue-limit") :]


def _environment(spec: LLMTaskPoolSpec, held: dict[str, str]) -> list[Manifest]:
    """Settings and files. A pool's own variables are for models and kinds, which it has none of."""
    values = {name: value for name, value in environment_of(spec).items() if name in _KEPT}
    values |= {
        "LLMTASKPOOL_QUEUE_TIMEOUT_SECONDS": f"{hold_seconds(spec):g}",
        "LLMTASKPOOL_UNROUTE_SECONDS": str(UNROUTE_SECONDS),
        "LLMTASKPOOL_BODIES_BYTES": str(_BODIES_BYTES),
        "HOME": "/tmp",  # noqa: S108  the only place that can be written
        **held,
    }
    return [{"name": name, "value": value} for name, value in values.items()]
