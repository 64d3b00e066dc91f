"""What else pods of a pool may be told, each field within its place in a Pod. Pure."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmtaskpool_operator.api.labels import Annotations
from llmtaskpool_operator.api.rules import DNS_LABEL, Name, Rule, Wire

PullPolicy = Literal["Always", "IfNotPresent", "Never"]


class SecretName(Wire):
    """A Secret in the pool's namespace."""

    name: Name
    """Name of the Secret."""


class ResourceClaim(Wire):
    """Devices by Dynamic Resource Allocation, as in a Pod; the worker gets them."""

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL)]
    """Name of the claim within the pod."""
    resource_claim_name: Name | None = None
    """A ResourceClaim that all pods share."""
    resource_claim_template_name: Name | None = None
    """A ResourceClaimTemplate, of which each pod gets a claim of its own."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.resourceClaimName) != has(self.resourceClaimTemplateName)",
            "resourceClaimName",
            "a resource claim names resourceClaimName or resourceClaimTemplateName: give one",
            lambda c: (c.resource_claim_name is None) != (c.resource_claim_template_name is None),
        ),
    )


class Account(Wire):
    """The ServiceAccount that pods run under; none of its tokens is mounted."""

    name: Name | None = None
    """One that is there; none: the operator makes `POOL-worker`."""
    annotations: Annotations = Field(default_factory=dict)
    """Annotations of the one that is made, such as the role of a cloud's identity."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.name) || !has(self.annotations) || self.annotations.size() == 0",
            "annotations",
            "serviceAccount.annotations are for the account that the operator makes: remove name, "
            "or annotate the account itself",
            lambda a: a.name is None or not a.annotations,
        ),
    )


_Id = Annotated[int, Field(ge=1, le=2_147_483_647)]


class User(Wire):
    """Who the worker's process is. Never root."""

    id: _Id | None = None
    """User id. Default: 65532."""
    group: _Id | None = None
    """Group id, and that of what it writes to volumes. Default: 65532."""
    by_platform: bool = False
    """True leaves all ids out, so that the platform gives them (OpenShift's ranges)."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!self.byPlatform || (!has(self.id) && !has(self.group))",
            "byPlatform",
            "user.byPlatform leaves the ids to the platform: remove id and group, or byPlatform",
            lambda u: not u.by_platform or (u.id is None and u.group is None),
        ),
    )


class CaBundle(Wire):
    """Certificates in a ConfigMap of the pool's namespace."""

    name: Name
    """Name of the ConfigMap."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = (
        "ca.crt"
    )
    """Key within it: certificates in PEM form."""
