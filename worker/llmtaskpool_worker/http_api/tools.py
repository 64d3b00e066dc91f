"""Tools of a chat: what is read of them, and what an answer has to be for their sake."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llmtaskpool_worker.http_api.errors import invalid
from llmtaskpool_worker.http_api.structured import Wish
from llmtaskpool_worker.text import grammar
from llmtaskpool_worker.text.tool_calls import CallReader, FreeCalls, ListedCalls, NamedCall

TOOLS_MAX = 128
"""As at OpenAI."""

_Name = Annotated[str, Field(strict=True, pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Function(_Part):
    """A function that may be called; ``parameters`` are a JSON schema."""

    name: _Name
    description: Annotated[str, Field(strict=True)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Part):
    """A tool; there are only functions."""

    type: Literal["function"] = "function"
    function: Function


class _FunctionName(_Part):
    name: _Name


class NamedTool(_Part):
    """The choice of one function."""

    type: Literal["function"] = "function"
    function: _FunctionName


Tools = Annotated[list[Tool], Field(max_length=TOOLS_MAX, fail_fast=True)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool
TOOLS_REMEDY = (
    'a list of objects such as {"type": "function", "function": {"name": "weather", '
    '"parameters": {...}}}'
)
CHOICE_REMEDY = (
    'none, auto, required or an object such as {"type": "function", "function": {"name": "..."}}'
)


@dataclass(frozen=True, slots=True)
class Calling:
    """How an answer's calls are asked for and read.

    ``told`` are the tools for the chat template. ``reader`` makes a reader for each choice.
    ``forced``: one function is named, so the answer ends with ``stop``, as OpenAI's do.
    """

    told: Sequence[Mapping[str, Any]]
    wish: Wish | None
    reader: Callable[[], CallReader]
    forced: bool = False


def calling(tools: Sequence[Tool], choice: ToolChoice | None, *, several: bool) -> Calling | None:
    """What the tools of a request ask for; None when nothing may be called.

    ``several``: whether more than one call is allowed. Raises ApiError 400.
    """
    if not tools:
        if choice not in (None, "none", "auto"):
            raise invalid("tool_choice", "tool_choice asks for a call, and there are no tools.")
        return None
    if choice == "none":
        return None
    told = [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools]
    functions = {tool.function.name: tool.function for tool in tools}
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if name not in functions:
            raise invalid("tool_choice", f"tool_choice names {name}, which is not among tools.")
        schema = _parameters(functions[name])
        wish = Wish(f"tools ({name})", grammar.of_schema(schema))
        return Calling(told, wish, lambda: NamedCall(name), forced=True)
    if choice == "required":
        listed = grammar.of_schema(_list_of(list(functions.values()), several=several))
        return Calling(told, Wish("tools", listed), ListedCalls)
    return Calling(told, None, lambda: FreeCalls(functions))


def _parameters(function: Function) -> dict[str, Any]:
    return function.parameters or {"type": "object", "properties": {}}


def _list_of(functions: Sequence[Function], *, several: bool) -> dict[str, Any]:
    """A schema of a list of calls; definitions of parameters move to the root, where $ref looks."""
    definitions: dict[str, Any] = {}
    calls = []
    for function in functions:
        parameters = dict(_parameters(function))
        for key in ("$defs", "definitions"):
            ours, theirs = definitions.setdefault(key, {}), parameters.pop(key, None) or {}
            if twice := [name for name in theirs if ours.get(name, theirs[name]) != theirs[name]]:
                raise invalid(
                    "tools",
                    f"tools define {twice[0]} under {key} in different ways: give them two names.",
                )
            ours.update(theirs)
        properties = {"name": {"const": function.name}, "arguments": parameters}
        calls.append(
            {
                "type": "object",
                "properties": properties,
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    most = {} if several else {"maxItems": 1}
    known = {key: value for key, value in definitions.items() if value}
    return {"type": "array", "minItems": 1, "items": {"anyOf": calls}} | most | known
