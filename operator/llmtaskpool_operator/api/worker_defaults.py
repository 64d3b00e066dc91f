"""What a platform sets once for all workers of its cluster; a pool's own word goes first. Pure.

The chart's value `workers` reaches the operator as JSON (LLMTASKPOOL_OPERATOR_WORKERS).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Protocol, TypeVar

from pydantic import Field

from llmtaskpool_operator.api.environment import EnvFrom, EnvVar
from llmtaskpool_operator.api.labels import Annotations, OwnLabels
from llmtaskpool_operator.api.pods import CaBundle, PullPolicy, SecretName, User
from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.api.rules import Wire
from llmtaskpool_operator.api.tenants import TenantLimits, Tenants


class WorkerDefaults(Wire):
    """Defaults of all pools that an operator serves; the fields are those of `spec`."""

    image_pull_secrets: Annotated[list[SecretName], Field(max_length=16)] = Field(
        default_factory=list
    )
    """Added to each pool's; the Secrets must be in the pools' namespaces."""
    image_pull_policy: PullPolicy | None = None
    """Of pools that say none."""
    env: Annotated[list[EnvVar], Field(max_length=64)] = Field(default_factory=list)
    """Added to each pool's; a pool's variable of the same name goes first."""
    env_from: Annotated[list[EnvFrom], Field(max_length=16)] = Field(default_factory=list)
    """Go before each pool's own, which win."""
    pod_labels: OwnLabels = Field(default_factory=dict)
    """Added to each pool's."""
    pod_annotations: Annotations = Field(default_factory=dict)
    """Added to each pool's."""
    trusted_ca_ref: CaBundle | None = None
    """Of pools that name none; the ConfigMap must be in the pools' namespaces."""
    user: User | None = None
    """Of pools that say nothing of `user`."""
    tenants: TenantLimits | None = None
    """Of each API key in pools that say nothing of `tenants.each`."""


def with_defaults(spec: LLMTaskPoolSpec, defaults: WorkerDefaults) -> LLMTaskPoolSpec:
    """The spec with the cluster's defaults where the pool says nothing."""
    own_user = spec.user != User()
    return spec.model_copy(
        update={
            "image_pull_secrets": _by_name(defaults.image_pull_secrets, spec.image_pull_secrets),
            "image_pull_policy": spec.image_pull_policy or defaults.image_pull_policy,
            "env": _by_name(defaults.env, spec.env),
            "env_from": [*defaults.env_from, *spec.env_from],
            "pod_labels": defaults.pod_labels | spec.pod_labels,
            "pod_annotations": defaults.pod_annotations | spec.pod_annotations,
            "trusted_ca_ref": spec.trusted_ca_ref or defaults.trusted_ca_ref,
            "tenants": _with_limits(spec.tenants, defaults.tenants),
            "user": spec.user if own_user or defaults.user is None else defaults.user,
        }
    )


def _with_limits(tenants: Tenants, each: TenantLimits | None) -> Tenants:
    if each is None or tenants.each != TenantLimits():
        return tenants
    return tenants.model_copy(update={"each": each})


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_N = TypeVar("_N", bound=_Named)


def _by_name(defaults: Sequence[_N], own: Sequence[_N]) -> list[_N]:
    return list(({one.name: one for one in defaults} | {one.name: one for one in own}).values())
