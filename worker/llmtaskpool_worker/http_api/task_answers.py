"""What the task routes tell of events and results, as plain JSON-able values."""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from llmtaskpool_worker.http_api.one_pass_api import evaluated_json
from llmtaskpool_worker.scheduling.task import (
    ChoiceDelta,
    Embedded,
    Evaluated,
    Forwarded,
    Generated,
    Result,
    Returned,
    StateChanged,
    TaskEvent,
    TextDelta,
)


def event_json(happened: TaskEvent) -> tuple[str, dict[str, Any]]:
    """The name of a server-sent event, and its data."""
    if isinstance(happened, ChoiceDelta):
        return "choice", msgspec.json.decode(happened.choice)
    if isinstance(happened, TextDelta):
        return "text", {"text": happened.text, "tokens": list(happened.tokens)}
    assert isinstance(happened, StateChanged)  # noqa: S101  the other of the two
    return "state", {"state": happened.state.value, "reason": happened.reason}


def result_json(result: Result) -> dict[str, Any]:
    """What a task's field result holds."""
    if isinstance(result, Generated):
        return {
            "text": result.text,
            "finish_reason": result.finish_reason,
            "usage": {
                "prompt_tokens": result.prompt_tokens,
                "completion_tokens": len(result.tokens),
                "total_tokens": result.prompt_tokens + len(result.tokens),
            },
        }
    if isinstance(result, Embedded):
        vector = struct.unpack(f"<{len(result.vector) // 4}f", result.vector)
        return {
            "embedding": list(vector),
            "usage": {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens},
        }
    if isinstance(result, Evaluated):
        return evaluated_json(result)
    if isinstance(result, Forwarded):
        return _forwarded_json(result)
    assert isinstance(result, Returned)  # noqa: S101  the last of the five
    return {"value": result.value}


def _forwarded_json(result: Forwarded) -> dict[str, Any]:
    """As a generation's or an embedding's, with all that the server said beside."""
    if "finish_reason" not in result.value and not isinstance(result.value, list):
        return {"answer": result.value, "usage": result.usage}
    if isinstance(result.value, list):
        return {"embedding": result.value[0], "usage": result.usage}
    message = result.value.get("message")
    text = message.get("content") if message is not None else result.value.get("text")
    return {
        "text": text or "",
        "finish_reason": result.value["finish_reason"],
        "usage": result.usage,
        "choice": result.value,
    }
