"""Results of tasks in the arguments of those that depend on them: ``{"$result": id}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from llmtaskpool_worker.brokers.protocol import Broker, Claim
from llmtaskpool_worker.scheduling.task import (
    Call,
    Embedded,
    Evaluated,
    Forwarded,
    Generated,
    Result,
    Returned,
)

RESULT = "$result"
DEEPEST = 16
"""Deeper in arguments nothing is filled in."""


def referred(arguments: Any, depth: int = 0) -> set[str]:
    """The ids, or names, of all tasks whose results are asked for."""
    if depth > DEEPEST:
        return set()
    if isinstance(arguments, dict):
        if (name := _name(arguments)) is not None:
            return {name}
        return set().union(*(referred(one, depth + 1) for one in arguments.values()))
    if isinstance(arguments, list):
        return set().union(*(referred(one, depth + 1) for one in arguments))
    return set()


def filled(arguments: Any, values: Mapping[str, Any], depth: int = 0) -> Any:
    """The same with ``values`` in their places; what has none is None."""
    if depth > DEEPEST:
        return arguments
    if isinstance(arguments, dict):
        if (name := _name(arguments)) is not None:
            return values.get(name)
        return {key: filled(one, values, depth + 1) for key, one in arguments.items()}
    if isinstance(arguments, list):
        return [filled(one, values, depth + 1) for one in arguments]
    return arguments


async def with_results(claim: Claim, broker: Broker) -> Claim:
    """A claim with its parents' results in its arguments; of one that did not succeed None.

    Raises Unavailable.
    """
    payload = claim.request.payload
    if not isinstance(payload, Call) or not claim.parents:
        return claim
    asked = referred(payload.arguments) & set(claim.parents)
    if not asked:
        return claim
    values = {}
    for task_id in sorted(asked):
        view = await broker.get(task_id)
        values[task_id] = None if view is None else value_of(view.result)
    arguments = filled(payload.arguments, values)
    return claim._replace(request=replace(claim.request, payload=Call(arguments)))


def value_of(result: Result | None) -> Any:
    """What a result is to a task that goes on from it: a text, a list of numbers, a JSON value."""
    match result:
        case Generated():
            return result.text
        case Embedded():
            return memoryview(result.vector).cast("f").tolist()
        case Forwarded():
            message = result.value.get("message") if isinstance(result.value, dict) else None
            return message.get("content") if isinstance(message, dict) else result.value
        case Evaluated() | Returned():
            return result.value
        case None:
            return None


def _name(value: dict[str, Any]) -> str | None:
    name = value.get(RESULT)
    return name if len(value) == 1 and isinstance(name, str) else None
