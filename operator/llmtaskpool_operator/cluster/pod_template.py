"""What a pool's pods are made of. Pure.

Pods pass Pod Security *restricted*: no privilege, no service-account token, a read-only root.
Nothing of the spec reaches a shell: options and paths are arguments and environment values.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from llmtaskpool_worker.contract import CONTROL_PORT, DATA_PORT, LIVEZ, READYZ

from llmtaskpool_operator.api.pool import LLMTaskPool, LLMTaskPoolSpec
from llmtaskpool_operator.api.quantities import number
from llmtaskpool_operator.api.rules import Wire
from llmtaskpool_operator.cluster.identity import Manifest, account_name, selector_labels
from llmtaskpool_operator.cluster.sidecar import sidecar, sidecar_volumes
from llmtaskpool_operator.cluster.volumes import CACHE, Mounted, mounted
from llmtaskpool_operator.workers.options import environment_of, options_of

CONTAINER = "worker"
DATA, CONTROL = "data", "control"
UNROUTE_SECONDS = 5
"""A pod that is to go takes requests for so long still: until every node has heard of it."""
CLOSING_SECONDS = 10
"""What the worker needs at the end: answers that leave, an engine process that ends."""
_USER = 65532


def grace_seconds(spec: LLMTaskPoolSpec) -> int:
    """The time Kubernetes gives a pod: never less than unrouting, draining and closing take."""
    return UNROUTE_SECONDS + ceil(spec.scaling.drain_seconds) + CLOSING_SECONDS


def pod(pool: LLMTaskPool, image: str) -> Manifest:
    """The pod's spec; ``image`` is for pools that name none."""
    spec = pool.spec
    held = mounted(pool)
    made: Manifest = {
        "serviceAccountName": spec.service_account.name or account_name(pool),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_seconds(spec),
        "securityContext": {
            "runAsNonRoot": True,
            **ids(spec),
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(spec, held, image)],
        "volumes": held.volumes,
    }
    lists: dict[str, Sequence[Wire]] = {
        "imagePullSecrets": spec.image_pull_secrets,
        "tolerations": spec.tolerations,
        "resourceClaims": spec.resource_claims,
    }
    made |= {name: [one.wire() for one in given] for name, given in lists.items() if given}
    if spec.upstream is not None:
        shared = spec.shared_memory is not None
        made["initContainers"] = [sidecar(spec.upstream, shared_memory=shared)]
        made["volumes"] = [*held.volumes, *sidecar_volumes()]
    if spec.node_selector:
        made["nodeSelector"] = dict(spec.node_selector)
    if spec.affinity is not None:
        made["affinity"] = spec.affinity.wire()
    if spec.topology_spread_constraints:
        # A rollout's new pods are spread for themselves, not against those that go.
        chosen = {"matchLabels": selector_labels(pool.metadata.name)}
        made["topologySpreadConstraints"] = [
            one.wire() | {"labelSelector": chosen, "matchLabelKeys": ["pod-template-hash"]}
            for one in spec.topology_spread_constraints
        ]
    words = {
        "priorityClassName": spec.priority_class_name,
        "runtimeClassName": spec.runtime_class_name,
        "schedulerName": spec.scheduler_name,
    }
    return made | {name: word for name, word in words.items() if word is not None}


def ids(spec: LLMTaskPoolSpec) -> Manifest:
    """Who the pod's processes run as."""
    if spec.user.by_platform:
        return {}
    group = spec.user.group or _USER
    return {"runAsUser": spec.user.id or _USER, "runAsGroup": group, "fsGroup": group}


def _container(spec: LLMTaskPoolSpec, held: Mounted, image: str) -> Manifest:
    container: Manifest = {
        "name": CONTAINER,
        "image": spec.image or image,
        "imagePullPolicy": spec.image_pull_policy or "IfNotPresent",
        # The last lines of one that ends with an error are in the pod's status, and then in ours.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "args": [
            "serve",
            # All addresses of the pod, IPv6 and IPv4.
            *("--host", "::", "--control-host", "::"),
            *("--grace-seconds", f"{spec.scaling.drain_seconds:g}"),
            # Kubernetes puts variables in the place of $(NAME) in arguments; $$ stays a $.
            *(option.replace("$", "$$") for option in options_of(held.spec)),
        ],
        "env": [*_environment(spec, held), POD_NAME],
        "ports": [
            {"name": DATA, "containerPort": DATA_PORT, "protocol": "TCP"},
            {"name": CONTROL, "containerPort": CONTROL_PORT, "protocol": "TCP"},
        ],
        "securityContext": RESTRICTED,
        # Ready as soon as the models are in memory; unready while it drains, or while an engine
        # stands still: with the worker's stall_seconds of 10 the first sign comes within 15 s.
        "readinessProbe": probe(READYZ, period=2, failures=1, timeout=2),
        # The engine goes first, the pod last: the worker kills an engine that stands still after
        # 30 s, and /livez fails after 60, only when that has not helped.
        "livenessProbe": probe(LIVEZ, period=10, failures=3, timeout=5),
        "startupProbe": probe(LIVEZ, period=2, failures=150, timeout=2),
        "volumeMounts": held.mounts,
    }
    if spec.env_from:
        container["envFrom"] = [one.wire() for one in spec.env_from]
    resources: Manifest = {key: value for key, value in spec.resources.wire().items() if value}
    if spec.resource_claims:
        resources["claims"] = [{"name": claim.name} for claim in spec.resource_claims]
    if resources:
        container["resources"] = resources
    return container


RESTRICTED: Manifest = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
POD_NAME: Manifest = {
    "name": "LLMTASKPOOL_WORKER_ID",
    "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}},
}


def _environment(spec: LLMTaskPoolSpec, held: Mounted) -> list[Manifest]:
    values = environment_of(spec) | {
        "LLMTASKPOOL_CACHE_DIR": CACHE,
        "LLMTASKPOOL_UNROUTE_SECONDS": str(UNROUTE_SECONDS),
        "HF_HOME": f"{CACHE}/huggingface",
        "HOME": "/tmp",  # noqa: S108  the only place beside the cache that can be written
        **held.environment,
    }
    cores = _cores(spec)
    if cores is not None:
        # torch counts the node's cores; more threads than the limit allows would be throttled.
        values |= {"OMP_NUM_THREADS": str(cores), "MKL_NUM_THREADS": str(cores)}
    given = [_variable(one.wire()) for one in spec.env]
    named = {one["name"] for one in given}
    own = [{"name": name, "value": value} for name, value in values.items() if name not in named]
    return [*given, *own]


def _variable(given: Manifest) -> Manifest:
    """As it is written: Kubernetes would put variables in the place of $(NAME)."""
    return given | {"value": given["value"].replace("$", "$$")} if "value" in given else given


def _cores(spec: LLMTaskPoolSpec) -> int | None:
    given = spec.resources.limits.get("cpu", spec.resources.requests.get("cpu"))
    cores = None if given is None else number(given)
    return None if cores is None else max(1, ceil(cores))


def probe(path: str, *, period: int, failures: int, timeout: int) -> Manifest:
    """A probe of the data port."""
    return {
        "httpGet": {"path": path, "port": DATA},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": timeout,
    }
