"""What an answer has to be: response_format, vLLM's structured_outputs and guided_* fields.

All become one grammar, which the engine follows token by token. It is made and checked before
the request becomes a task, so that a bad schema is a 400.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llmtaskpool_worker.http_api.errors import invalid
from llmtaskpool_worker.text import grammar

PATTERN_MAX = 16_384
CHOICES_MAX = 1024
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}

_Text = Annotated[str, Field(strict=True)]
Schema = dict[str, Any] | _Text
"""A JSON schema, as an object or as its JSON."""
Pattern = Annotated[str, Field(strict=True, min_length=1, max_length=PATTERN_MAX)]
Choices = Annotated[
    list[Annotated[str, Field(strict=True, min_length=1, max_length=1024)]],
    Field(min_length=1, max_length=CHOICES_MAX, fail_fast=True),
]
FORMAT_REMEDY = (
    'an object such as {"type": "json_object"} or {"type": "json_schema", '
    '"json_schema": {"name": "answer", "schema": {...}}}'
)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NamedSchema(_Part):
    """A schema with its name, as OpenAI's clients send it; every schema is kept strictly."""

    name: Annotated[str, Field(strict=True, max_length=256)] = "answer"
    description: _Text | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Part):
    """OpenAI's response_format."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class StructuredOutputs(_Part):
    """vLLM's structured_outputs: one of these."""

    json_: Schema | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: Pattern | None = None
    choice: Choices | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """A grammar, and the field of the request that asks for it."""

    field: str
    grammar: str


def wish_of(
    response_format: ResponseFormat | None,
    structured: StructuredOutputs | None,
    guided: Mapping[str, Any],
) -> Wish | None:
    """The one grammar that these fields ask for. Raises ApiError 400 when they ask for several."""
    wishes = [*_of_format(response_format), *_of_outputs(structured), *_of_guided(guided)]
    if len(wishes) > 1:
        names = " and ".join(wish.field for wish in wishes)
        raise invalid(wishes[1].field, f"{names} are both given: send one of them.")
    return wishes[0] if wishes else None


async def checked(wish: Wish) -> str:
    """Its grammar. Raises ApiError 400 naming the field, when it can't be followed."""
    try:
        await asyncio.to_thread(grammar.check, wish.grammar)
    except grammar.BadGrammar as bad:
        raise invalid(
            wish.field, f"{wish.field} can't be followed: {bad}. Send a simpler one.",
            code="unsupported_value",
        ) from None  # fmt: skip
    return wish.grammar


def _of_format(given: ResponseFormat | None) -> list[Wish]:
    if given is None or given.type == "text":
        return []
    if given.type == "json_object":
        return [Wish("response_format", grammar.of_schema(_ANY_OBJECT))]
    field = "response_format.json_schema"
    if given.json_schema is None:
        raise invalid(field, f"{field} is missing: send {FORMAT_REMEDY}.")
    return [Wish(f"{field}.schema", grammar.of_schema(given.json_schema.schema_))]


def _of_outputs(given: StructuredOutputs | None) -> list[Wish]:
    if given is None:
        return []
    fields = {"json": given.json_, "regex": given.regex, "choice": given.choice}
    wishes = [
        _wish(f"structured_outputs.{name}", name, value)
        for name, value in fields.items()
        if value is not None
    ]
    if given.json_object:
        wishes.append(Wish("structured_outputs.json_object", grammar.of_schema(_ANY_OBJECT)))
    if not wishes:
        raise invalid(
            "structured_outputs", "structured_outputs is empty: send json, regex or choice."
        )
    return wishes


def _of_guided(guided: Mapping[str, Any]) -> list[Wish]:
    return [
        _wish(field, field.removeprefix("guided_"), value)
        for field, value in guided.items()
        if value is not None
    ]


def _wish(field: str, kind: str, value: Any) -> Wish:
    if kind == "regex":
        return Wish(field, grammar.of_pattern(value))
    if kind == "choice":
        return Wish(field, grammar.of_choice(value))
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, dict):
        raise invalid(field, f"{field} is no JSON schema: send an object.")
    return Wish(field, grammar.of_schema(value))
