"""LLMTaskPool: the object as people write it (spec) and as the operator answers it (status).

The CRD and the field reference are generated from these models; every field's docstring is its
description there. Pure.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator

from llmtaskpool_operator.api.cache import Cache
from llmtaskpool_operator.api.environment import EnvFrom, EnvVar
from llmtaskpool_operator.api.labels import Annotations, LabelKey, Labels, OwnLabels
from llmtaskpool_operator.api.model_limits import memory_of
from llmtaskpool_operator.api.models import Model, SecretKey
from llmtaskpool_operator.api.names import DNS_1035, NAME_MAX
from llmtaskpool_operator.api.placement import ATOMIC, Affinity, Toleration, TopologySpread
from llmtaskpool_operator.api.pods import (
    Account,
    CaBundle,
    PullPolicy,
    ResourceClaim,
    SecretName,
    User,
)
from llmtaskpool_operator.api.quantities import number
from llmtaskpool_operator.api.queue import Queue, Slo
from llmtaskpool_operator.api.resources import Quantity, Resources
from llmtaskpool_operator.api.rollout import DisruptionBudget, Rollout
from llmtaskpool_operator.api.rules import DNS_LABEL, Name, Rule, Wire, list_map, shared
from llmtaskpool_operator.api.scaling import Scaling, ScalingMode
from llmtaskpool_operator.api.service import Service
from llmtaskpool_operator.api.status import LLMTaskPoolStatus
from llmtaskpool_operator.api.tenants import TenantLimits, Tenants
from llmtaskpool_operator.api.threads import Threads
from llmtaskpool_operator.api.upstream import Upstream

OWN_LABELS = ("llmtaskpool.io/", "app.kubernetes.io/")
ORIGIN = r"^(\*|https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?)$"
"""Of a web page, as a browser tells it."""


class Auth(Wire):
    """Who may use the pool."""

    api_key_secret_ref: SecretKey | None = None
    """The API keys clients must show, one a line of one word; blank lines and lines that begin
    with # are none. Without it the pool's data port is open to whoever reaches it."""
    cors_origins: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=262, pattern=ORIGIN)]],
        Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = Field(default_factory=list)
    """Origins of web pages whose scripts may call the pool, such as `https://chat.example.org`
    (scheme, host and port, no path), or `*` for all; none: browsers keep pages from it. A key is
    asked for all the same."""


class LLMTaskPoolSpec(Wire):
    """What a pool should be."""

    models: Annotated[list[Model], Field(max_length=16, json_schema_extra=list_map("name"))] = (
        Field(default_factory=list)
    )
    """Models that every worker serves, from one queue; none: only io tasks."""
    replicas: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Replicas when `scaling.mode` is Fixed or External; leave it out in the other modes. In
    External leave it out too: whoever scales writes it through `/scale`, and the operator puts the
    number of now there once, so that `/scale` can be read."""
    scaling: Scaling = Field(default_factory=shared(Scaling()))
    """How replicas are decided."""
    threads: Threads = Field(default_factory=shared(Threads()))
    """Threads per lane."""
    queue: Queue = Field(default_factory=shared(Queue()))
    """Limits and order of the queues."""
    slo: Slo = Field(default_factory=shared(Slo()))
    """What users are promised."""
    auth: Auth = Field(default_factory=shared(Auth()))
    """Who may use the pool."""
    tenants: Tenants = Field(default_factory=shared(Tenants()))
    """What those who use the pool may have at once, by their API keys."""
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Image of the worker. Default: the one that the operator was installed with (the chart's
    `workerImage`)."""
    image_pull_policy: PullPolicy | None = None
    """When a node pulls the image. Default: IfNotPresent."""
    image_pull_secrets: Annotated[
        list[SecretName], Field(max_length=16, json_schema_extra=list_map("name"))
    ] = Field(default_factory=list)
    """Secrets for pulling the image, beside those of the operator's defaults."""
    token_secret_ref: SecretKey | None = None
    """The model hub's token (what HF_TOKEN is elsewhere), for models that have none of their
    own."""
    cache: Cache = Field(default_factory=shared(Cache()))
    """Where weights are kept between pods, so that they come once."""
    env: Annotated[list[EnvVar], Field(max_length=64, json_schema_extra=list_map("name"))] = Field(
        default_factory=list
    )
    """Variables of the worker's environment: proxies, `HF_ENDPOINT`, `HF_HUB_OFFLINE`."""
    env_from: Annotated[list[EnvFrom], Field(max_length=16, json_schema_extra=ATOMIC)] = Field(
        default_factory=list
    )
    """Variables from whole Secrets and ConfigMaps; what is set otherwise goes first."""
    trusted_ca_ref: CaBundle | None = None
    """Certificate authorities that the worker trusts beside the public ones: a mirror's, a
    proxy's."""
    resources: Resources = Field(default_factory=shared(Resources()))
    """What each pod asks for."""
    resource_claims: Annotated[
        list[ResourceClaim], Field(max_length=8, json_schema_extra=list_map("name"))
    ] = Field(default_factory=list)
    """Devices by Dynamic Resource Allocation, for each pod."""
    shared_memory: Quantity | None = None
    """Size of /dev/shm, which counts to the pod's memory; none: the runtime's 64Mi."""
    node_selector: Labels = Field(default_factory=dict)
    """Labels of nodes that pods may run on."""
    tolerations: Annotated[list[Toleration], Field(max_length=32, json_schema_extra=ATOMIC)] = (
        Field(default_factory=list)
    )
    """Taints that pods tolerate."""
    affinity: Affinity | None = None
    """Where pods must or should run, by nodes and by other pods."""
    topology_spread_constraints: Annotated[
        list[TopologySpread],
        Field(max_length=8, json_schema_extra=list_map("topologyKey", "whenUnsatisfiable")),
    ] = Field(default_factory=list)
    """How the pool's pods spread over nodes and zones."""
    priority_class_name: Name | None = None
    """Priority class of the pods."""
    runtime_class_name: Name | None = None
    """Runtime class of the pods, such as `nvidia`."""
    scheduler_name: Name | None = None
    """Scheduler of the pods; none: the cluster's default."""
    service_account: Account = Field(default_factory=shared(Account()))
    """Who pods are for a cloud's identity."""
    user: User = Field(default_factory=shared(User()))
    """User and group ids of the worker."""
    pod_labels: OwnLabels = Field(default_factory=dict)
    """More labels of the pods."""
    pod_annotations: Annotations = Field(default_factory=dict)
    """Annotations of the pods."""
    service: Service = Field(default_factory=shared(Service()))
    """How clients reach the pool."""
    rollout: Rollout = Field(default_factory=shared(Rollout()))
    """How pods are replaced when the spec changes."""
    disruption_budget: DisruptionBudget = Field(default_factory=shared(DisruptionBudget()))
    """How many pods a drain of nodes may take at once."""
    upstream: Upstream | None = None
    """A server beside each worker (vLLM, SGLang, llama.cpp), which models whose source is
    `openai:http://127.0.0.1:8002/v1` ask."""
    propagate_labels: Annotated[
        list[LabelKey],
        Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = Field(default_factory=list)
    """Keys of labels of the pool that its Deployment and its pods get too, such as
    `kueue.x-k8s.io/queue-name` or `cost-center`; those that it has not are left out. A change of
    such a label is a rollout. Keys of ours are refused: pods are found by them."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.upstream) || (has(self.models) && "
            "self.models.exists(model, model.source.startsWith('openai:')))",
            "upstream",
            "upstream has a server that no model asks: add one with the source "
            "openai:http://127.0.0.1:8002/v1 to spec.models",
            lambda s: s.upstream is None or any(m.source.startswith("openai:") for m in s.models),
        ),
        Rule(
            "!has(self.tenants) || !has(self.tenants.each) || (!has(self.tenants.each.waiting) && "
            "!has(self.tenants.each.running) && !has(self.tenants.each.weight) && "
            "(!has(self.tenants.each.seesAll) || !self.tenants.each.seesAll) && "
            "(!has(self.tenants.each.share) || self.tenants.each.share == 1.0)) || "
            "(has(self.auth) && has(self.auth.apiKeySecretRef)) || "
            "(has(self.tenants.named) && self.tenants.named.size() > 0)",
            "tenants",
            "tenants are told apart by their API keys, and no key is asked for: set "
            "auth.apiKeySecretRef, or give each of tenants.named its apiKeySecretRef",
            lambda s: (
                s.auth.api_key_secret_ref is not None
                or bool(s.tenants.named)
                or s.tenants.each == TenantLimits()
            ),
        ),
        Rule(
            "!has(self.tenants) || !has(self.tenants.named) || "
            "self.tenants.named.all(tenant, !tenant.name.startsWith('key-'))",
            "tenants",
            "the name of a tenant begins with key-, as those of keys without a name do: give it "
            "another",
            lambda s: not any(one.name.startswith("key-") for one in s.tenants.named),
        ),
        Rule(
            "!has(self.scaling) || self.scaling.mode != 'Fixed' || has(self.replicas)",
            "replicas",
            "scaling.mode is Fixed and replicas is missing: set spec.replicas",
            lambda s: s.scaling.mode is not ScalingMode.FIXED or s.replicas is not None,
        ),
        Rule(
            "!has(self.models) || self.models.all(model, !has(model.aliases) || "
            "model.aliases.all(alias, self.models.filter(other, other.name == alias || "
            "(has(other.aliases) && alias in other.aliases)).size() == 1))",
            "models",
            "an alias is the name or alias of another model: give every model names of its own",
            lambda s: _names_are_clear(s.models),
        ),
        Rule(
            "!has(self.models) || !has(self.resources) || !has(self.resources.limits) || "
            "!('memory' in self.resources.limits) || self.models.map(model, has(model.limits) && "
            "has(model.limits.memory) ? quantity(model.limits.memory).asApproximateFloat()"
            " : 0.0).sum() <= "
            "quantity(string(self.resources.limits['memory'])).asApproximateFloat()",
            "models",
            "limits.memory of the models are together over resources.limits.memory: lower them or "
            "raise it",
            lambda s: (
                "memory" not in s.resources.limits
                or memory_of(s.models) <= (number(s.resources.limits["memory"]) or 0)
            ),
        ),
        Rule(
            "!has(self.propagateLabels) || self.propagateLabels.all(k, "
            "!k.startsWith('llmtaskpool.io/') && !k.startsWith('app.kubernetes.io/'))",
            "propagateLabels",
            "propagateLabels names a label of llmtaskpool.io/ or app.kubernetes.io/, which the "
            "operator sets itself: give the label another key",
            lambda s: not any(key.startswith(OWN_LABELS) for key in s.propagate_labels),
        ),
    )

    @field_validator("models", "env", "image_pull_secrets", "resource_claims")
    @classmethod
    def _names_once(cls, entries: list[Any]) -> list[Any]:
        names = [entry.name for entry in entries]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the name {twice[0]} is used twice: give every entry its own")
        return entries


def _names_are_clear(models: list[Model]) -> bool:
    """Whether each alias leads to one model."""
    every = [name for model in models for name in {model.name, *model.aliases}]
    return all(every.count(alias) == 1 for model in models for alias in model.aliases)


class ObjectMeta(Wire):
    """The metadata that a manifest file of a pool may carry; Kubernetes knows more."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(min_length=1, max_length=NAME_MAX, pattern=DNS_1035)]
    """Name of the pool; its Service has it too."""
    namespace: Annotated[str, Field(max_length=63, pattern=DNS_LABEL)] = "default"
    """Namespace of the pool."""
    generation: Annotated[int, Field(ge=0)] = 1
    """Generation of the spec, counted by the API server."""
    uid: str = ""
    """Its identity, given by the API server."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the object; `spec.propagateLabels` says which of them reach pods."""


class LLMTaskPool(Wire):
    """A whole manifest, as a file or the API server gives it."""

    api_version: Literal["llmtaskpool.io/v1alpha1"]
    """Group and version of the API."""
    kind: Literal["LLMTaskPool"]
    """Kind of the object."""
    metadata: ObjectMeta
    """Name, namespace, labels."""
    spec: LLMTaskPoolSpec
    """What the pool should be."""
    status: LLMTaskPoolStatus | None = None
    """What the operator saw and decided."""
