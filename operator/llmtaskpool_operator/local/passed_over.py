"""What a pool's file says and a pool on one machine can't do: refused, or told. Pure.

A field that would be passed over in silence makes another pool than the file's: an open one, one
that forgets its tasks. Where there is a way to have it here it is named; what is of pods alone
(nodes, images, accounts) is told in one line.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmtaskpool_operator.api.models import IMAGE_SOURCE, SecretKey
from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.api.scaling import ScalingMode

USED = frozenset(
    {"models", "replicas", "scaling", "threads", "queue", "slo", "auth", "env", "env_from"}
    | {"trusted_ca_ref", "tenants"}
)
"""Fields of the spec that mean here what they mean on a cluster, or are refused."""
TOLD = frozenset(
    {"image", "image_pull_policy", "image_pull_secrets", "token_secret_ref", "cache", "resources"}
    | {"resource_claims", "shared_memory", "node_selector", "tolerations", "affinity"}
    | {"topology_spread_constraints", "priority_class_name", "runtime_class_name"}
    | {"scheduler_name", "service_account", "user", "pod_labels", "pod_annotations", "service"}
    | {"rollout", "disruption_budget", "upstream", "propagate_labels"}
)
"""Fields that nothing here stands for."""


@dataclass(frozen=True, slots=True)
class Instead:
    """Which options of the command line were given for what a cluster has in its objects."""

    keys: bool = False
    tenants: bool = False
    queue: bool = False
    ca: bool = False


def faults(spec: LLMTaskPoolSpec, given: Instead) -> list[str]:
    """A line for each field without which the pool would be another: field, value, remedy."""
    found = []
    if (keys := spec.auth.api_key_secret_ref) is not None and not given.keys:
        found.append(
            f"spec.auth.apiKeySecretRef: {_shown(keys)}: there are no Secrets on this machine, and "
            "without its keys the pool is open: give them with --api-key-file FILE, or take the "
            "field out"
        )
    if spec.tenants.named and not given.tenants:
        first = spec.tenants.named[0]
        found.append(
            f"spec.tenants.named: {first.name}: there are no Secrets on this machine: give a "
            "folder with a file of keys for each name with --tenant-keys-dir DIR, or take the "
            "field out"
        )
    if (redis := spec.queue.redis) is not None and not given.queue:
        found.append(
            f"spec.queue.redis.secretRef: {_shown(redis.secret_ref)}: there are no Secrets on this "
            "machine: give the server's URL with --queue-url-file FILE, or keep tasks in a file "
            "of this machine with --queue FILE, or take spec.queue.redis out"
        )
    if (bundle := spec.trusted_ca_ref) is not None and not given.ca:
        found.append(
            f"spec.trustedCaRef: {bundle.name}/{bundle.key}: there are no ConfigMaps on this "
            "machine: give the certificates with --trusted-ca-file FILE, or take the field out"
        )
    for number, one in enumerate(spec.env):
        if one.value_from is not None:
            found.append(
                f"spec.env.{number}.valueFrom: {one.name}: there are no Secrets and ConfigMaps on "
                "this machine: set the variable before llmtaskpool, and take the entry out"
            )
    if spec.env_from:
        found.append(
            f"spec.envFrom: {len(spec.env_from)} objects: there are no Secrets and ConfigMaps on "
            "this machine: set their variables before llmtaskpool, and take the field out"
        )
    for number, model in enumerate(spec.models):
        if model.source.startswith(IMAGE_SOURCE):
            found.append(
                f"spec.models.{number}.source: {model.source[:80]!r}: no container is started "
                "here: name a folder with the weights"
            )
    if spec.scaling.mode is ScalingMode.EXTERNAL:
        found.append(
            "spec.scaling.mode: External: nobody else scales a pool on this machine: use Auto, "
            "Fixed or Advise"
        )
    return found


def told(spec: LLMTaskPoolSpec, *, server: bool) -> list[str]:
    """Fields that are set and that nothing here stands for, by their names on the wire.

    ``server``: the command line has the server that stands behind the models.
    """
    names = {name for name in TOLD & spec.model_fields_set if getattr(spec, name)}
    if server:
        names.discard("upstream")
    fields = [f"spec.{type(spec).model_fields[name].alias or name}" for name in names]
    fields += [
        f"spec.models.{number}.tokenSecretRef"
        for number, model in enumerate(spec.models)
        if model.token_secret_ref is not None
    ]
    return sorted(fields)


def _shown(ref: SecretKey) -> str:
    return f"{ref.name}/{ref.key}"
