"""Requests and results as bytes, for brokers that keep them outside of this process.

One byte for the schema, then msgpack; never pickle, as what is read may have been written by
anybody. What can't be read raises Unreadable with a reason: it is put into quarantine, and the
rest goes on.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from llmtaskpool_worker.scheduling.task import (
    Call,
    Embed,
    Embedded,
    Evaluate,
    Evaluated,
    Forward,
    Forwarded,
    Generate,
    Generated,
    Payload,
    Result,
    Returned,
    TaskError,
    TaskRequest,
    Transcribe,
)

SCHEMA = 1
"""Raised when an older worker couldn't read what a newer one writes; a new field with a default
is no reason."""

_PAYLOADS: dict[str, type[Any]] = {
    "generate": Generate,
    "embed": Embed,
    "forward": Forward,
    "call": Call,
    "evaluate": Evaluate,
    "transcribe": Transcribe,
}
_RESULTS: dict[str, type[Any]] = {
    "generated": Generated,
    "embedded": Embedded,
    "forwarded": Forwarded,
    "returned": Returned,
    "evaluated": Evaluated,
    "error": TaskError,
}
_NAMES = {sort: name for name, sort in (_PAYLOADS | _RESULTS).items()}


class Unreadable(Exception):
    """Bytes that this version can't read: damaged, foreign, or of a future version."""


class _Request(msgspec.Struct, array_like=True, omit_defaults=True):
    kind: str
    sort: str
    payload: msgspec.Raw
    model: str | None = None
    weight: float = 1.0
    queue_timeout_seconds: float | None = None
    timeout_seconds: float | None = None
    idempotency_key: str | None = None
    labels: dict[str, str] = {}
    attended: bool = False


class _Result(msgspec.Struct):
    sort: str
    value: msgspec.Raw


_USUAL: tuple[Any, ...] = (None, 1.0, None, None, None, {}, False)
"""What stands at a request's end where nothing else is said: the defaults of _Request."""
_SCHEMA = bytes([SCHEMA])
_NO_INPUT = Call()
_AS_JSON = "+json"

_pack = msgspec.msgpack.Encoder().encode
_request = msgspec.msgpack.Decoder(_Request).decode
_result = msgspec.msgpack.Decoder(_Result).decode
_bytes = msgspec.msgpack.Decoder(bytes).decode
_value_of = {
    name: msgspec.msgpack.Decoder(sort).decode for name, sort in (_PAYLOADS | _RESULTS).items()
}


def encode_request(request: TaskRequest, *, whole: bool = True, weighed: bool = True) -> bytes:
    """A request with its input; not ``whole``: without, as of one that has ended.

    Not ``weighed``: without its weight, where that is kept beside it. What is usual at its end
    takes no room.
    """
    payload = request.payload if whole else _NO_INPUT
    more = (
        request.model,
        request.weight if weighed else 1.0,
        request.queue_timeout_seconds,
        request.timeout_seconds,
        request.idempotency_key,
        request.labels,
        request.attended,
    )
    kept = len(more)
    while kept and more[kept - 1] == _USUAL[kept - 1]:
        kept -= 1
    return _SCHEMA + _pack((request.kind, *_packed(payload), *more[:kept]))


def decode_request(data: bytes, weight: float | None = None, begin: int = 0) -> TaskRequest:
    """What ``encode_request`` made; ``weight`` is one kept beside it. Raises Unreadable.

    It stands in ``data`` from ``begin`` on.
    """
    try:
        read = _request(_body(data, begin))
        payload: Payload = _one_of(_PAYLOADS, read.sort, read.payload)
    except (msgspec.MsgspecError, UnicodeError):
        raise Unreadable("the request is damaged") from None
    return TaskRequest(
        read.kind,
        payload,
        read.model,
        read.weight if weight is None else weight,
        read.queue_timeout_seconds,
        read.timeout_seconds,
        read.idempotency_key,
        read.labels,
        read.attended,
    )


def encode_result(result: Result | TaskError) -> bytes:
    """A result, or the error that stands in its place."""
    return _SCHEMA + _pack(_Result(*_packed(result)))


def decode_result(data: bytes) -> Result | TaskError:
    """What ``encode_result`` made. Raises Unreadable."""
    try:
        read = _result(_body(data))
        value: Result | TaskError = _one_of(_RESULTS, read.sort, read.value)
    except (msgspec.MsgspecError, UnicodeError):
        raise Unreadable("the result is damaged") from None
    return value


def _body(data: bytes, begin: int = 0) -> memoryview:
    if len(data) <= begin:
        raise Unreadable("there is nothing in it")
    schema = data[begin]
    if schema > SCHEMA:
        raise Unreadable(
            f"it is of schema {schema} and this version reads up to {SCHEMA}: a newer worker "
            "wrote it"
        )
    if schema != SCHEMA:
        raise Unreadable(f"it is of schema {schema}, which nobody ever wrote")
    return memoryview(data)[begin + 1 :]


def _packed(value: Payload | Result | TaskError) -> tuple[str, msgspec.Raw]:
    """Its sort and itself; as JSON in it where msgpack doesn't know its numbers or its letters."""
    name = _NAMES[type(value)]
    try:
        return name, msgspec.Raw(_pack(value))
    except (OverflowError, UnicodeEncodeError):
        text = json.dumps(msgspec.to_builtins(value))
        return name + _AS_JSON, msgspec.Raw(_pack(text.encode("ascii")))


def _one_of(sorts: dict[str, type[Any]], name: str, value: msgspec.Raw) -> Any:
    if name in sorts:
        return _value_of[name](value)
    sort = sorts.get(name.removesuffix(_AS_JSON))
    if sort is None:
        raise Unreadable(f"it is of sort {name[:40]!r}, which this version doesn't know")
    try:
        return msgspec.convert(json.loads(_bytes(value)), type=sort)
    except (ValueError, RecursionError):
        raise Unreadable("its JSON is damaged") from None
