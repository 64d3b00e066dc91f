"""What the fields of the API share: camelCase names, and rules that hold on both sides.

A rule is written once as a CEL expression for the API server and once as a Python predicate for
`llmtaskpool local`, with one message. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition between fields; ``message`` names the field and the remedy."""

    cel: str
    field: str
    message: str
    holds: Callable[[Any], bool]

    def as_schema(self) -> dict[str, str]:
        """The rule as an entry of ``x-kubernetes-validations``."""
        return {"rule": self.cel, "message": self.message, "fieldPath": f".{self.field}"}


class Wire(BaseModel):
    """An object of the API: camelCase on the wire, unknown fields refused, frozen here."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _follows_rules(self) -> Self:
        for rule in self.rules:
            if not rule.holds(self):
                raise PydanticCustomError("rule", "{text}", {"text": rule.message})
        return self

    def wire(self) -> dict[str, Any]:
        """The object as JSON values with the names of the wire, unset fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


_Part = TypeVar("_Part", bound=Wire)


def shared(default: _Part) -> Callable[[], _Part]:
    """One object for all pools that say nothing: they are frozen, and there may be thousands."""
    return lambda: default


def rules_by_object() -> dict[str, tuple[Rule, ...]]:
    """The rules of every object of the API that has any, by the object's name."""
    found: dict[str, tuple[Rule, ...]] = {}
    to_see = [Wire]
    while to_see:
        model = to_see.pop()
        to_see += model.__subclasses__()
        if model.rules:
            found[model.__name__] = model.rules
    return found


DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"

Name = Annotated[str, Field(min_length=1, max_length=253, pattern=DNS_NAME)]
Text = Annotated[str, Field(max_length=1024)]
Word = Annotated[str, Field(min_length=1, max_length=253)]
"""A free word, such as the name of an option."""


def list_map(*keys: str) -> dict[str, Any]:
    """Marks of a list whose entries are told apart by ``keys`` (merged by server-side apply)."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


INT_OR_STRING: dict[str, Any] = {"x-kubernetes-int-or-string": True}
