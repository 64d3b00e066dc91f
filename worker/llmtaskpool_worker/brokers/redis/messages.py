"""Events as they go from one worker's inbox to another's."""

from __future__ import annotations

from typing import Any

import msgspec

from llmtaskpool_worker.scheduling.task import ChoiceDelta, StateChanged, TaskEvent, TextDelta

_SORTS: dict[str, type[Any]] = {"t": TextDelta, "c": ChoiceDelta, "s": StateChanged}
_NAMES = {sort: name for name, sort in _SORTS.items()}
_encode = msgspec.msgpack.Encoder().encode
_readers = {name: msgspec.msgpack.Decoder(sort) for name, sort in _SORTS.items()}


class Message(msgspec.Struct, array_like=True):
    """What an inbox gets. ``what``: running, again and ended are said by the scripts to those who

    watch, stop to the worker that runs; watch asks a worker for what a task has said, and said is
    its answer: ``events`` of ``fence``, the first of them at place ``place``.
    """

    what: str
    id: str
    text: str = ""
    fence: str = ""
    place: int = 0
    events: list[tuple[str, msgspec.Raw]] = []

    def packed(self) -> bytes:
        """As it is sent."""
        return _encode(self)


_message = msgspec.msgpack.Decoder(Message)


def read(data: bytes) -> Message | None:
    """A message; None for what this version doesn't understand."""
    try:
        return _message.decode(data)
    except msgspec.MsgspecError:
        return None


def said(task_id: str, fence: str, place: int, events: list[TaskEvent]) -> bytes:
    """A message with events."""
    packed = [(_NAMES[type(event)], msgspec.Raw(_encode(event))) for event in events]
    return _encode(Message("said", task_id, "", fence, place, packed))


def events_of(message: Message) -> list[TaskEvent]:
    """Those that this version understands."""
    out: list[TaskEvent] = []
    for name, raw in message.events:
        if name in _readers:
            try:
                out.append(_readers[name].decode(raw))
            except msgspec.MsgspecError:
                continue
    return out
