"""A model's chat template: compiled in a sandbox, and what it can render is tried out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmtaskpool_worker.text.chat_history import Message, without_calls

_TURNS: Sequence[Message] = (
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
)
_TOOLS: Sequence[Message] = (
    {
        "type": "function",
        "function": {
            "name": "probe-tool",
            "description": "d",
            "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
        },
    },
)
_CALLS: Sequence[Message] = (
    {"role": "user", "content": "a"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "callcall1",
                "type": "function",
                "function": {"name": "probe-name", "arguments": {"key": "probe-argument"}},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "callcall1", "name": "probe-name", "content": "probe-result"},
)


class ChatTemplate:
    """``source`` as transformers documents templates: sandboxed, blocks trimmed.

    ``special`` are the variables such as bos_token. ``turns`` is what it writes around an
    ordinary conversation; ``has_calls`` says whether it knows tool calls and their results,
    ``has_tools`` whether it tells the model of tools.
    """

    def __init__(
        self, source: str, special: Mapping[str, str], now: Callable[[], datetime]
    ) -> None:
        self.source = source
        self._special = dict(special)
        self._render = _compiled(source, now)
        system: Message = {"role": "system", "content": "d"}
        self.turns = self._tried(_TURNS) + self._tried([system, *_TURNS])
        calls = self._tried(_CALLS)
        self.has_tools = "probe-tool" in self._tried(_TURNS, _TOOLS)
        self.has_calls = all(f"probe-{one}" in calls for one in ("name", "argument", "result"))

    def __call__(self, messages: Sequence[Message], tools: Sequence[Message] = ()) -> str:
        """The conversation as one text, ready for an answer.

        ``tools`` are functions in OpenAI's form; a template that knows none leaves them out. Tool
        calls that the template doesn't know, or refuses as they are, are told in words.

        Raises:
            ValueError: the template refuses the messages.
        """
        if self.has_calls:
            try:
                return self._rendered(messages, tools)
            except ValueError:
                if without_calls(messages) == list(messages):
                    raise
        return self._rendered(without_calls(messages), tools)

    def _rendered(self, messages: Sequence[Message], tools: Sequence[Message] = ()) -> str:
        values = {"messages": list(messages), "add_generation_prompt": True, **self._special}
        if tools:
            values["tools"] = list(tools)
        try:
            return self._render(values)
        except TemplateError as error:
            raise ValueError(f"the chat template says: {error.message}") from None
        except Exception as error:  # a template is a program of somebody else
            raise ValueError(f"the chat template fails with {type(error).__name__}") from None

    def _tried(self, messages: Sequence[Message], tools: Sequence[Message] = ()) -> str:
        """What these messages become; nothing where the template refuses them."""
        try:
            return self._rendered(messages, tools)
        except ValueError:
            return ""


def template_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The template of a model's folder, if it has one."""
    file = folder / "chat_template.jinja"
    source = file.read_text() if file.is_file() else config.get("chat_template")
    if isinstance(source, list):  # several named ones
        named = {entry.get("name"): entry.get("template") for entry in source}
        source = named.get("default")
    return source if isinstance(source, str) else None


class _Generation(Extension):
    """``{% generation %}``: marks the model's own words for training; here they are as they are."""

    tags = {"generation"}  # noqa: RUF012  as jinja2 has it

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return Scope(body, lineno=line)


def _compiled(source: str, now: Callable[[], datetime]) -> Callable[[Mapping[str, Any]], str]:
    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, indent: int | None = None, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: now().strftime(form)
    compiled = environment.from_string(source)
    return lambda values: compiled.render(**values)
