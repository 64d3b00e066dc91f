"""What a body holds is counted before it is validated: a check of each part costs its time.

pydantic stops a list at its first error (``fail_fast``), but tells every key that an object should
not have. So objects are counted, and the parts of all messages together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmtaskpool_worker.http_api.errors import ApiError, invalid

KEYS_MAX = 256
"""Names in one object of a request."""

MESSAGES_MAX = 10_000
PARTS_MAX = 10_000
"""Content parts and tool calls of all messages of a request."""


def count_keys(value: object, path: str) -> None:
    """Refuse an object with more than KEYS_MAX names; ``path`` is what it is called."""
    if isinstance(value, Mapping) and len(value) > KEYS_MAX:
        raise _too_many(path, f"an object of {len(value)} names", KEYS_MAX)


def count_list(value: object, path: str, most: int) -> None:
    """Refuse a list of more than ``most``; ``path`` is what it is called."""
    if isinstance(value, list) and len(value) > most:
        raise _too_many(path, f"a list of {len(value)}", most)


def count_chat(body: Mapping[str, Any]) -> None:
    """Refuse messages that are too many, or hold too many parts. Raises ApiError 400."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        return
    if len(messages) > MESSAGES_MAX:
        raise _too_many("messages", f"a list of {len(messages)}", MESSAGES_MAX)
    parts = 0
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            continue
        calls = message.get("tool_calls")
        parts += len(calls) if isinstance(calls, list) else 0
        if parts > PARTS_MAX:
            path = f"messages[{index}].tool_calls"
            raise _too_many(path, f"with what is before it {parts} parts", PARTS_MAX)
        if not isinstance(message.get("content"), list):
            continue
        content = message["content"]
        parts += len(content)
        if parts > PARTS_MAX:
            path = f"messages[{index}].content"
            raise _too_many(path, f"with those before it {parts} parts", PARTS_MAX)
        for place, part in enumerate(content):
            count_keys(part, f"messages[{index}].content[{place}]")


def _too_many(path: str, what: str, most: int) -> ApiError:
    return invalid(path, f"{path} is {what}: send at most {most}.", code="too_many")
