"""The messages of a chat: what is read of them, and what a chat template is given."""

from __future__ import annotations

import contextlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

ARGUMENTS_READ = 64 * 1024
"""Longer arguments stay text: read as JSON they would keep the event loop, and are none of ours."""

CALLS_MAX = 128
"""Tool calls in one message, as at OpenAI."""

_Text = Annotated[str, Field(strict=True)]
_Name = Annotated[str, Field(strict=True, min_length=1, max_length=256)]


class TextPart(BaseModel):
    """A part of a message's content; only text can be read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["text"]
    text: _Text


class _Part(BaseModel):
    # What else an answer held (refusal, annotations) comes back when a client sends it again.
    model_config = ConfigDict(frozen=True, extra="ignore")


class FunctionCall(_Part):
    """What an assistant called; ``arguments`` are JSON, as it wrote it."""

    name: _Name
    arguments: _Text = ""

    def as_template(self) -> dict[str, Any]:
        """With the arguments as an object where they are one, as most templates want them."""
        arguments: Any = self.arguments
        if len(self.arguments) <= ARGUMENTS_READ:
            with contextlib.suppress(ValueError, RecursionError):
                arguments = json.loads(self.arguments)
        if not isinstance(arguments, dict):
            arguments = self.arguments
        return {"name": self.name, "arguments": arguments}


class ToolCall(_Part):
    """One of an assistant's calls."""

    id: Annotated[str, Field(strict=True, max_length=256)] | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(_Part):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    tool_calls: Annotated[list[ToolCall], Field(max_length=CALLS_MAX, fail_fast=True)] | None = None
    function_call: FunctionCall | None = None
    tool_call_id: Annotated[str, Field(strict=True, max_length=256)] | None = None
    name: _Name | None = None
    content: _Text | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)] | None = Field(
        None, validate_default=True
    )

    @field_validator("content")
    @classmethod
    def _there(cls, value: Any, info: ValidationInfo) -> Any:
        """Only an assistant that called something may say nothing."""
        called = info.data.get("tool_calls") or info.data.get("function_call")
        if value is None and not (called and info.data.get("role") == "assistant"):
            raise PydanticCustomError("missing", "Field required")
        return value

    def as_template(self) -> dict[str, Any]:
        """As chat templates want it.

        developer is today's name of system; function and function_call are yesterday's of tool and
        tool_calls.
        """
        text = (
            self.content
            if isinstance(self.content, str)
            else "".join(part.text for part in self.content or ())
        )
        role = {"developer": "system", "function": "tool"}.get(self.role, self.role)
        message: dict[str, Any] = {"role": role, "content": text}
        if role == "assistant":
            calls = [
                {"id": call.id or "", "type": "function", "function": call.function.as_template()}
                for call in self.tool_calls or ()
            ]
            if self.function_call is not None:
                function = self.function_call.as_template()
                calls.append({"id": "", "type": "function", "function": function})
            if calls:
                message["tool_calls"] = calls
        if role == "tool":
            if self.tool_call_id is not None:
                message["tool_call_id"] = self.tool_call_id
            if self.name is not None:
                message["name"] = self.name
        return message
