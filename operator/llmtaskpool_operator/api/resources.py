"""`spec.resources`: what each pod asks for, as a Pod would be given it. Pure.

What Kubernetes would refuse of a pod is refused here: k8s.io/kubernetes/pkg/apis/core/validation,
ValidateContainerResourceRequirements.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from functools import partial
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from llmtaskpool_operator.api.labels import IS_KEY, is_key
from llmtaskpool_operator.api.quantities import PATTERN, number
from llmtaskpool_operator.api.rules import INT_OR_STRING, Rule, Wire


def _amount(given: str | int) -> str | int:
    """Refuse what the pattern and the minimum of the schema refuse."""
    if re.fullmatch(PATTERN.strip("^$"), str(given), re.ASCII) is None:
        raise PydanticCustomError(
            "quantity", "{text}", {"text": "is no amount: write 500m, 2 or 16Gi as in a Pod"}
        )
    return given


Quantity = Annotated[
    str | int,
    Field(
        json_schema_extra={**INT_OR_STRING, "maxLength": 64, "pattern": PATTERN, "minimum": 0},
    ),
    AfterValidator(_amount),
]
Amounts = Annotated[dict[Annotated[str, Field(max_length=317)], Quantity], Field(max_length=10)]

_PLAIN = ("cpu", "memory", "ephemeral-storage")
_HUGE = "hugepages-"
_IS_KNOWN = (
    f"key in ['cpu', 'memory', 'ephemeral-storage'] || key.startsWith('{_HUGE}') "
    f"|| (key.contains('/') && {IS_KEY})"
)
# Kubernetes' own rule, in thousandths; twice as dear a rule is over its budget.
_IS_WHOLE = "int(quantity(string(self.limits[key])).asApproximateFloat() * 1000.0) % 1000 == 0"


def _known(amounts: Mapping[str, object]) -> bool:
    return all(
        key in _PLAIN or key.startswith(_HUGE) or ("/" in key and is_key(key)) for key in amounts
    )


def _value(amount: object) -> Decimal:
    return number(amount) or Decimal(0)


def _within(name: str, resources: Resources) -> bool:
    asked, most = resources.requests.get(name), resources.limits.get(name)
    return asked is None or most is None or _value(asked) <= _value(most)


def _firm(key: str) -> bool:
    """No more may be used than was asked for: extended resources and huge pages."""
    return "/" in key or key.startswith(_HUGE)


class Resources(Wire):
    """What a pod asks for, as in a Pod."""

    requests: Amounts = Field(default_factory=dict)
    """The least a pod gets, and what it is scheduled by: `cpu`, `memory`, `ephemeral-storage`."""
    limits: Amounts = Field(default_factory=dict)
    """The most a pod gets. `nvidia.com/gpu` and other extended resources go here, whole."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"(!has(self.requests) || self.requests.all(key, {_IS_KNOWN}))",
            "requests",
            "resources.requests has a name that Kubernetes doesn't know: use cpu, memory, "
            "ephemeral-storage, hugepages-SIZE or an extended one with its domain, such as "
            "nvidia.com/gpu",
            lambda r: _known(r.requests),
        ),
        Rule(
            f"(!has(self.limits) || self.limits.all(key, {_IS_KNOWN}))",
            "limits",
            "resources.limits has a name that Kubernetes doesn't know: use cpu, memory, "
            "ephemeral-storage, hugepages-SIZE or an extended one with its domain, such as "
            "nvidia.com/gpu",
            lambda r: _known(r.limits),
        ),
        *(
            Rule(
                f"!has(self.requests) || !has(self.limits) || !('{name}' in self.requests) "
                f"|| !('{name}' in self.limits) || quantity(string(self.requests['{name}']))"
                f".compareTo(quantity(string(self.limits['{name}']))) <= 0",
                "requests",
                f"resources.requests.{name} is over resources.limits.{name}: lower the request or "
                "raise the limit",
                partial(_within, name),
            )
            for name in _PLAIN
        ),
        Rule(
            f"!has(self.requests) || self.requests.all(key, !(key.contains('/') || "
            f"key.startsWith('{_HUGE}')) || (has(self.limits) && key in self.limits && "
            "string(self.requests[key]) == string(self.limits[key])))",
            "requests",
            "an extended resource (a GPU, say) or huge pages are in resources.requests and not the "
            "same in resources.limits: write them under limits alone",
            lambda r: all(
                key in r.limits and str(amount) == str(r.limits[key])
                for key, amount in r.requests.items()
                if _firm(key)
            ),
        ),
        Rule(
            f"!has(self.limits) || self.limits.all(key, !key.contains('/') || {_IS_WHOLE})",
            "limits",
            "an extended resource in resources.limits is not whole: devices can't be shared by "
            "fractions, write 1 or more",
            lambda r: all(
                _value(amount) * 1000 % 1000 < 1 for key, amount in r.limits.items() if "/" in key
            ),
        ),
        Rule(
            f"!has(self.limits) || !self.limits.exists(key, key.startsWith('{_HUGE}')) "
            "|| 'cpu' in self.limits || 'memory' in self.limits "
            "|| (has(self.requests) && ('cpu' in self.requests || 'memory' in self.requests))",
            "limits",
            "huge pages need cpu or memory beside them: add resources.requests.memory",
            lambda r: (
                not any(key.startswith(_HUGE) for key in r.limits)
                or bool({"cpu", "memory"} & (r.limits.keys() | r.requests.keys()))
            ),
        ),
    )
