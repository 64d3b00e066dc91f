"""`spec.rollout` and `spec.disruptionBudget`: how pods change, and how many may be away. Pure."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from llmtaskpool_operator.api.rules import INT_OR_STRING, Rule, Wire

_PERCENT = r"^([0-9]{1,2}|100)%$"


def _share(given: str | int) -> str | int:
    """Refuse what the pattern and the minimum of the schema refuse."""
    good = given >= 0 if isinstance(given, int) else re.match(_PERCENT, given) is not None
    if not good:
        raise PydanticCustomError(
            "share", "{text}", {"text": "is no number of pods and no percentage such as 25%"}
        )
    return given


Share = Annotated[
    str | int,
    Field(json_schema_extra={**INT_OR_STRING, "minimum": 0, "pattern": _PERCENT}),
    AfterValidator(_share),
]
"""A number of pods, or a percentage of them."""


def _is_none(share: str | int) -> bool:
    return re.fullmatch(r"0+%?", str(share)) is not None


_NONE = "(self.{0} == 0 || self.{0} == '0%')"


class Rollout(Wire):
    """How pods are replaced when something of them changes."""

    max_surge: Share = "25%"
    """How many pods more than wanted there may be meanwhile. 0 where no spare GPU is free: then
    old pods go first (`maxUnavailable` 1)."""
    max_unavailable: Share = 0
    """How many pods fewer than wanted there may be meanwhile."""
    start_seconds: Annotated[int, Field(ge=30, le=86_400)] = 1800
    """The time that a new pod has to get ready, downloads included; then the rollout is told to be
    stuck. Nothing is killed for it."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"!({_NONE.format('maxSurge')} && {_NONE.format('maxUnavailable')})",
            "maxUnavailable",
            "rollout.maxSurge and rollout.maxUnavailable are both 0, so that no pod could be "
            "replaced: set maxUnavailable to 1",
            lambda r: not (_is_none(r.max_surge) and _is_none(r.max_unavailable)),
        ),
    )


class DisruptionBudget(Wire):
    """How many pods a drain of nodes may take at once."""

    mode: Literal["Enabled", "Disabled"] = "Enabled"
    """Disabled: no PodDisruptionBudget is there."""
    max_unavailable: Share | None = None
    """The most that may be away. Default, without `minAvailable`: 1."""
    min_available: Share | None = None
    """The least that must be there."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!(has(self.maxUnavailable) && has(self.minAvailable))",
            "minAvailable",
            "disruptionBudget has maxUnavailable or minAvailable: remove one",
            lambda b: b.max_unavailable is None or b.min_available is None,
        ),
    )
