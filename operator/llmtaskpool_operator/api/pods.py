"""What a pod asks for, as in a Pod: resources and tolerations. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmtaskpool_operator.api.rules import INT_OR_STRING, Wire, Word

Quantity = Annotated[
    str | int,
    Field(
        json_schema_extra={
            **INT_OR_STRING,
            "maxLength": 64,
            "pattern": r"^[0-9]+(\.[0-9]+)?([EPTGMk]i?|m)?$",
        }
    ),
]
Amounts = Annotated[dict[Word, Quantity], Field(max_length=16)]


class Resources(Wire):
    """What a pod asks for, as in a Pod."""

    requests: Amounts = Field(default_factory=dict)
    """The least a pod gets, and what it is scheduled by: `cpu`, `memory`."""
    limits: Amounts = Field(default_factory=dict)
    """The most a pod gets; `nvidia.com/gpu` goes here."""


class Toleration(Wire):
    """One toleration, as in a Pod."""

    key: Annotated[str, Field(max_length=316)] | None = None
    """Key of the taint; none with `operator: Exists` tolerates all."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Equal: `value` must be the taint's. Exists: the key is enough."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; none matches all."""
    toleration_seconds: Annotated[int, Field(ge=0, le=2_147_483_647)] | None = None
    """How long NoExecute is tolerated; none: for ever."""
