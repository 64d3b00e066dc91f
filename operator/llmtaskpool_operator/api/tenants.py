"""`spec.tenants`: what the owners of API keys may have at once, and their shares. Pure."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmtaskpool_operator.api.models import SecretKey
from llmtaskpool_operator.api.rules import Wire, list_map, shared

_TENANT = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
_Tasks = Annotated[int, Field(ge=1, le=1_000_000)]


class TenantLimits(Wire):
    """What one tenant may have: whoever shows its API key."""

    waiting: _Tasks | None = None
    """Tasks of the tenant that may wait; more are answered 429 with Retry-After. Of each worker's
    queue, or of the pool's where workers share one. Default: what the queue holds."""
    running: _Tasks | None = None
    """Tasks of the tenant that are at work at one time, counted in the same way; others of it
    wait, and hold up nobody else. Default: as many as there are threads."""
    weight: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """The largest weight that its requests may have; more is answered 400, and where a request
    says none, 1 is lowered to it. Default: what the API takes."""
    share: Annotated[float, Field(ge=0.001, le=1000)] = 1
    """Its share of the threads, in proportion to the shares of the others that have work. Priority
    goes first: a share is a factor from 1/16 to 16 of weight / load."""
    sees_all: bool = False
    """Whether its keys see, cancel and read also the tasks, files, batches and dead letters of
    others: for who runs the pool. Each sees only its own otherwise."""


class Tenant(TenantLimits):
    """One tenant with a name, its keys, and what it may have."""

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=_TENANT)]
    """Its name in metrics. Names that begin with `key-` are those of keys without a name."""
    api_key_secret_ref: SecretKey
    """Its API keys, one a line, as those of `auth.apiKeySecretRef`: several while they are
    rotated."""


class Tenants(Wire):
    """Limits and shares of those who use the pool, told apart by their API keys."""

    each: TenantLimits = Field(default_factory=shared(TenantLimits()))
    """What holds for each key of `auth.apiKeySecretRef`: it is a tenant of its own, called `key-`
    and eight digits of its digest."""
    named: Annotated[list[Tenant], Field(max_length=64, json_schema_extra=list_map("name"))] = (
        Field(default_factory=list)
    )
    """Tenants with names, limits and keys of their own."""
