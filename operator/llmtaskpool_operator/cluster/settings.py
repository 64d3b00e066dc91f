"""The operator's settings: LLMTASKPOOL_OPERATOR_* environment variables, each with its meaning."""

from __future__ import annotations

import json
import re
import socket
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from llmtaskpool_operator.api.rules import DNS_LABEL
from llmtaskpool_operator.api.worker_defaults import WorkerDefaults

LEASE = "llmtaskpool-operator"
PREFIX = "LLMTASKPOOL_OPERATOR_"

Namespace = Annotated[str, Field(pattern=DNS_LABEL, max_length=63)]
PoolName = Annotated[str, Field(pattern=r"^(all|[-a-z0-9]+/[-a-z0-9]+)$", max_length=128)]


class OperatorSettingsError(Exception):
    """A setting can't be used: the message names it, its value and the remedy."""


class OperatorSettings(BaseSettings):
    """All that the operator can be told."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    namespaces: Annotated[tuple[Namespace, ...], NoDecode] = Field(
        (), description="Namespaces whose pools it serves, separated by commas; none: all."
    )
    namespace: Namespace = Field(
        "llmtaskpool-system", description="The operator's own namespace: its Lease and its key."
    )
    lease: Annotated[str, Field(pattern=DNS_LABEL, max_length=63)] = Field(
        LEASE,
        description="Name of its Lease there: replicas that share it are one operator.",
    )
    worker_image: Annotated[str, Field(min_length=1, max_length=512)] = Field(
        "llmtaskpool-worker:latest", description="Image of workers whose pool names none."
    )
    workers: Annotated[WorkerDefaults, NoDecode] = Field(
        default_factory=WorkerDefaults,
        description="What all workers get where their pool says nothing, as JSON with fields of a "
        "pool's spec: imagePullSecrets, imagePullPolicy, env, envFrom, podLabels, podAnnotations, "
        "trustedCaRef, user.",
    )
    identity: Annotated[str, Field(min_length=1, max_length=253)] = Field(
        default_factory=socket.gethostname, description="Name of this replica; the pod's name."
    )
    host: str = Field(
        "::", description="Address of /livez, /readyz and /metrics; :: is all, by IPv6 and IPv4."
    )
    port: Annotated[int, Field(ge=0, le=65_535)] = Field(8080, description="Their port.")
    resync_seconds: Annotated[float, Field(ge=1, le=3600)] = Field(
        60.0, description="Pools and Deployments are listed anew this often; pods five times less."
    )
    concurrency: Annotated[int, Field(ge=1, le=1024)] = Field(
        64, description="Pools that are worked on at one time."
    )
    max_concurrent_rollouts: Annotated[int, Field(ge=1, le=10_000)] = Field(
        5,
        description="Pools whose pods are replaced at one time because the operator, not their "
        "spec, has changed; the others wait.",
    )
    record: Annotated[tuple[PoolName, ...], NoDecode] = Field(
        (),
        description="Pools whose decisions about replicas go to standard output, for llmtaskpool "
        "replay: NAMESPACE/NAME, separated by commas, or all.",
    )
    control_port: Annotated[int, Field(ge=1, le=65_535)] = Field(
        8001, description="The workers' control port; other than 8001 only in tests."
    )

    @field_validator("namespaces", "record", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [n for n in re.split(r"[,\s]+", value) if n] if isinstance(value, str) else value

    @field_validator("workers", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value or "{}")
        except ValueError:
            raise ValueError("it is no JSON: write an object with fields of a spec") from None


def load(**given: Any) -> OperatorSettings:
    """Settings from the environment, ``given`` on top. Raises OperatorSettingsError."""
    try:
        return OperatorSettings(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        inside = first["loc"][1:] if name == "workers" else ()
        inner = "".join(f".{part}" for part in inside)
        field = OperatorSettings.model_fields.get(name)
        hint = f" {field.description}" if field is not None else ""
        shown = repr(first["input"])[:80]
        raise OperatorSettingsError(
            f"{PREFIX}{name.upper()}{inner}: {shown}: {first['msg']}.{hint}"
        ) from None
