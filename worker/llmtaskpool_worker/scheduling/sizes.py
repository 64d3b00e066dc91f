"""How many bytes of memory a task holds: its request, what it said, its result.

What CPython really holds is counted, by its own ``sys.getsizeof`` of one object of each kind: a
token with 20 alternatives is 61 objects and about 4 KB, not the 32 bytes of its number. Each
function is a sum over lengths and walks no token's alternatives, so that counting costs the event
loop little; JSON values are walked, long lists by a sample. Pure.
"""

from __future__ import annotations

import sys
from typing import Any

from llmtaskpool_worker.scheduling.task import (
    Call,
    ChoiceDelta,
    Embedded,
    Evaluate,
    Evaluated,
    Forward,
    Forwarded,
    Generate,
    Generated,
    Result,
    Returned,
    Row,
    StateChanged,
    TaskEvent,
    TaskRequest,
    TaskState,
    TextDelta,
    TokenLogprob,
    Transcribe,
)

_POINTER = 8
_NUMBER = sys.getsizeof(1 << 20)
_PAIR = sys.getsizeof((0, 0.0)) + sys.getsizeof(0.5) + _NUMBER
_LOGPROB = sys.getsizeof(TokenLogprob(0, 0.0)) + sys.getsizeof(0.5) + sys.getsizeof(())
_DELTA_AND_POINTER = sys.getsizeof(TextDelta("")) + 2 * sys.getsizeof(()) + _POINTER
_TOKEN = _POINTER + _NUMBER
_STATE = sys.getsizeof(StateChanged(TaskState.QUEUED))
_RESULT = sys.getsizeof(Generated("", (), 0, "stop")) + 2 * sys.getsizeof(())
_ROW = sys.getsizeof(Row(b"")) + sys.getsizeof(b"") + 2 * _NUMBER + _POINTER
_SAMPLED = 64
"""Of longer lists and objects so many members are walked, and the rest counted like them."""

HELD = 900
"""What a task takes beside its input and output: its record, its request, its place in indexes."""


def record_bytes(request: TaskRequest) -> int:
    """Of what is kept of any task: without its input, and before it has said anything."""
    return HELD + sum(len(key) + len(text) + 200 for key, text in request.labels.items())


def request_bytes(request: TaskRequest) -> int:
    """Of a task that waits: with its input."""
    payload, size = request.payload, record_bytes(request)
    if isinstance(payload, Call):
        return size + json_bytes(payload.arguments)
    if isinstance(payload, Forward):
        return size + sys.getsizeof(payload.body)
    if isinstance(payload, Evaluate):
        return size + _evaluation_bytes(payload)
    if isinstance(payload, Transcribe):
        return size + sys.getsizeof(payload.file) + len(payload.prompt) * (_POINTER + _NUMBER)
    tokens = payload.prompt if isinstance(payload, Generate) else payload.tokens
    return size + len(tokens) * (_POINTER + _NUMBER)


def _evaluation_bytes(payload: Evaluate) -> int:
    rows = sum(_ROW + len(row.tokens) for row in payload.rows)
    texts = {id(one.text): sys.getsizeof(one.text) for one in payload.spelled}  # windows share one
    spans = sum(_ROW + len(one.spans) for one in payload.spelled)
    options = json_bytes(payload.options) + json_bytes(payload.shown)
    tensors = sum(_ROW + len(one.data) for one in payload.tensors)
    images = sum(_ROW + len(one) for one in payload.images)
    return (
        images
        + tensors
        + rows
        + spans
        + sum(texts.values())
        + options
        + len(payload.groups) * _POINTER
    )


def event_bytes(event: TaskEvent) -> int:
    """Of one event, with the tokens and alternatives that it is the first to hold."""
    if isinstance(event, TextDelta):  # each token of each stream comes by here
        # sys.getsizeof says the same, and makes a tuple for it that is to be collected.
        size = _DELTA_AND_POINTER + event.text.__sizeof__() + len(event.tokens) * _TOKEN
        return size + _logprobs_bytes(event) if event.logprobs else size
    if isinstance(event, ChoiceDelta):
        return _STATE + _POINTER + sys.getsizeof(event.choice)
    return _STATE + _POINTER


def _logprobs_bytes(event: TextDelta) -> int:
    return sum(_POINTER + _LOGPROB + len(one.top) * (_POINTER + _PAIR) for one in event.logprobs)


def result_bytes(result: Result | None) -> int:
    """Of a result beside the events: a generation's share their tokens and alternatives."""
    if isinstance(result, Generated):
        numbers = len(result.tokens) + len(result.logprobs)
        return _RESULT + sys.getsizeof(result.text) + numbers * _POINTER
    if isinstance(result, Embedded):
        return _RESULT + sys.getsizeof(result.vector)
    if isinstance(result, Evaluated):
        return _RESULT + json_bytes(result.value)
    if isinstance(result, Forwarded):
        return _RESULT + json_bytes(result.value) + json_bytes(result.usage)
    return _RESULT + json_bytes(result.value) if isinstance(result, Returned) else 0


def json_bytes(value: Any) -> int:
    """Of a JSON value."""
    size: float = 0.0
    waiting: list[tuple[Any, float]] = [(value, 1.0)]
    while waiting:
        one, times = waiting.pop()
        size += times * sys.getsizeof(one)
        if isinstance(one, dict):
            every = max(1, len(one) // _SAMPLED)
            share = times * len(one) / max(1, len(range(0, len(one), every)))
            for place, (key, member) in enumerate(one.items()):
                if place % every == 0:
                    size += share * sys.getsizeof(key)
                    waiting.append((member, share))
        elif isinstance(one, list | tuple):
            members = one[:: max(1, len(one) // _SAMPLED)]
            waiting.extend((member, times * len(one) / len(members)) for member in members)
    return int(size)
