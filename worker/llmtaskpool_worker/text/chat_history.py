"""Conversations in which tools were called, for templates that know no tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]
"""role and content (a text); an assistant's may have tool_calls, a tool's its tool_call_id."""


def without_calls(messages: Sequence[Message]) -> list[Message]:
    """The same conversation with tool calls and their results told in words.

    A call becomes a line ``[call of NAME: ARGUMENTS]`` of the assistant, its result
    ``[result of NAME: CONTENT]`` of the user. What then are neighbours of one role are joined by
    an empty line, because many templates want user and assistant to alternate.
    """
    names: dict[str, str] = {}
    told: list[Message] = []
    joins = False
    for message in messages:
        joined, joins = joins, False
        if message.get("tool_calls"):
            lines = [str(message["content"])] if message["content"] else []
            for call in message["tool_calls"]:
                function = call["function"]
                names[call.get("id") or ""] = function["name"]
                arguments = function["arguments"]
                if not isinstance(arguments, str):
                    arguments = json.dumps(arguments, ensure_ascii=False)
                lines.append(f"[call of {function['name']}: {arguments}]")
            plain: Message = {"role": "assistant", "content": "\n".join(lines)}
        elif message["role"] == "tool":
            name = message.get("name") or names.get(message.get("tool_call_id") or "", "the call")
            plain = {"role": "user", "content": f"[result of {name}: {message['content']}]"}
            joined = joins = True
        else:
            plain = message
        if joined and told and told[-1]["role"] == plain["role"]:
            before = told.pop()["content"]
            plain = {**plain, "content": f"{before}\n\n{plain['content']}"}
        told.append(plain)
    return told
