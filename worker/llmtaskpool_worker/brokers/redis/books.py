"""A task's books as the server keeps them, and back: what scripts take and give, as our types."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Any, NamedTuple

import msgspec

from llmtaskpool_worker.brokers.codec import (
    Unreadable,
    decode_request,
    decode_result,
    encode_request,
)
from llmtaskpool_worker.brokers.protocol import (
    DEPENDENCY_FAILED,
    WORKER_LOST,
    Claim,
    Line,
    Submission,
)
from llmtaskpool_worker.brokers.refusals import SHED
from llmtaskpool_worker.scheduling.priority import priority
from llmtaskpool_worker.scheduling.task import (
    LaneName,
    Result,
    TaskError,
    TaskRequest,
    TaskState,
    TaskView,
)

VERSION = 1
"""Of the books, and of lua/common.lua. Raised when an older worker couldn't serve what a newer one
accepts: then it waits in lines of its own, for newer workers."""
READS = (VERSION,)
"""The versions that this one serves."""

USUAL_PATIENCE_SECONDS = 86_400.0
"""Of a task whose result is fetched later (Limits); lua/common.lua has it too. It takes no room."""

STATES = {
    "q": TaskState.QUEUED,
    "b": TaskState.BLOCKED,
    "d": TaskState.DELAYED,
    "r": TaskState.RUNNING,
    "S": TaskState.SUCCEEDED,
    "F": TaskState.FAILED,
    "C": TaskState.CANCELLED,
    "X": TaskState.EXPIRED,
    "D": TaskState.DEAD,
}
LETTERS = {state: letter for letter, state in STATES.items()}

ERRORS = {
    WORKER_LOST: "its worker was lost with it as often as that may be",
    DEPENDENCY_FAILED: "too few of the tasks that it depends on have succeeded",
    "queue_timeout": "the task waited longer than it may",
    SHED.code: SHED.message,
    "input_lost": "its input is not there any more: submit it again",
    "quarantined": "it could not be read: it is damaged, or a newer version wrote it",
}
_THE_GROUP = "="
"""A model that is the group's name, as it is kept."""
_HEAD = struct.Struct("<fH")
"""Of an input: the longest run, and the bytes of its parents' ids, before the request."""
_pack = msgspec.msgpack.Encoder().encode
_unpack_ids = msgspec.msgpack.Decoder(tuple[str, ...]).decode

CLAIM_HEAD = 4
"""How many values claim.lua gives before the inputs."""


class Given(msgspec.Struct, array_like=True, gc=False):
    """What claim.lua gives of a task beside its input; times are the server's, in milliseconds."""

    id: str
    fence: str
    attempt: int
    alone: str
    accepted_ms: float
    until_ms: float
    weight: float
    work_us: float
    line: str
    group: str
    began_ms: float
    shown: str


# The books' numbers are texts there.
_given = msgspec.msgpack.Decoder(list[Given], strict=False).decode
_given_apart = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_given_one = msgspec.msgpack.Decoder(Given, strict=False).decode
_text = msgspec.msgpack.Decoder(str).decode


class Foreign(NamedTuple):
    """A task that is not as this version writes it."""

    id: str
    fence: str


def given_in(packed: bytes) -> Sequence[Given | Foreign]:
    """What claim.lua gives of tasks; one that is damaged leaves the others readable."""
    if not packed:
        return []
    try:
        return _given(packed)
    except msgspec.MsgspecError:
        return [_given_or_foreign(one) for one in _given_apart(packed)]


def _given_or_foreign(packed: msgspec.Raw) -> Given | Foreign:
    try:
        return _given_one(packed)
    except msgspec.MsgspecError:
        task_id, fence = _given_apart(packed)[:2]
        return Foreign(_text(task_id), _text(fence))


def group_key(lane: LaneName, group: str, version: int | None = None) -> str:
    """The group's name on the server: of a version and a lane."""
    return f"{VERSION if version is None else version}:{lane.value}:{group}"


def group_keys(lane: LaneName, group: str) -> list[str]:
    """Where tasks of the group wait that this version serves."""
    return [group_key(lane, group, version) for version in READS]


def group_of(key: str) -> tuple[LaneName, str] | None:
    """The lane and the group of a name; None for one of another version."""
    version, _, rest = key.partition(":")
    lane, _, group = rest.partition(":")
    if version not in map(str, READS) or lane not in {one.value for one in LaneName}:
        return None
    return LaneName(lane), group


def line_key(line: Line) -> str:
    """The line's name on the server."""
    return f"{line.cost_class}\t{line.tenant}"


def line_of(key: str) -> Line:
    """And back."""
    cost_class, _, tenant = key.partition("\t")
    return Line(cost_class, tenant)


def fingerprint(request: TaskRequest) -> str:
    """Of what a request asks for; the same for two requests that ask for the same."""
    asked = (
        request.kind,
        request.model,
        request.payload,
        request.weight,
        request.queue_timeout_seconds,
        request.timeout_seconds,
    )
    return hashlib.sha256(msgspec.json.encode(asked, order="sorted")).hexdigest()[:32]


def key_name(idempotency_key: str, tenant: str) -> str:
    """A key as it stands on the server: nothing that a user wrote."""
    return hashlib.sha256(f"{tenant}\n{idempotency_key}".encode()).hexdigest()[:40]


def acceptance(
    task: Submission,
    pod: str,
    bounds: tuple[int, int],
    ttl_ms: int,
    soon_ms: int,
    tenants_most: int | None,
) -> tuple[bytes, bytes]:
    """The arguments of accept.lua; ``bounds``: tasks and bytes that may wait in its lane.

    ``tenants_most``: tasks of its tenant that may wait.
    """
    request, deps = task.request, task.dependencies
    parents = deps.parents if deps is not None else ()
    need = len(parents) if deps is None or deps.need is None else deps.need
    key = request.idempotency_key
    head = (
        task.id,
        group_key(task.lane, task.group),
        line_key(task.line),
        request.weight,
        round(task.work_seconds * 1e6),
        task.size_bytes,
        task.lane.value,
        task.max_attempts,
        shown_of(request.kind, request.model, task.load_seconds, task.group),
        _ms(task.patience_seconds),
        _ms(task.delay_seconds),
        "" if not key else key_name(key, task.line.tenant),
        "" if not key else fingerprint(request),
        pod,
        *bounds,
        parents,
        need,
        int(deps is not None and deps.on_failure == "continue"),
        int(request.attended),
        msgspec.json.encode(request.labels).decode() if request.labels else "",
        ttl_ms,
        soon_ms,
        -1 if tenants_most is None else tenants_most,
        -1 if task.group_most is None else task.group_most,
    )
    ids = _pack(parents) if parents else b""
    return _pack(head), _HEAD.pack(task.run_seconds, len(ids)) + ids + encode_request(
        request, weighed=False
    )


def shown_of(kind: str, model: str | None, load_seconds: float, group: str) -> str:
    """A task's kind, model and T, short: a kind or a model that is its group's name is left out."""
    kept_kind = "" if kind == group else kind
    kept_model = "" if model is None else _THE_GROUP if model == group else model
    return f"{load_seconds:.4g}\t{kept_model}\t{kept_kind}".rstrip("\t")


def seen_of(shown: str, group: str) -> tuple[str, str | None, float]:
    """And back: kind, model and T."""
    load, _, names = shown.partition("\t")
    model, _, kind = names.partition("\t")
    return kind or group, (group if model == _THE_GROUP else model) or None, float(load or 0)


def _ms(seconds: float) -> int:
    return round(min(seconds, 1e9) * 1000)


@dataclass(slots=True, eq=False)
class Run:
    """A claim of this worker, and what its task's view has beside it.

    ``more``: how often it began anew under the same claim.
    """

    claim: Claim
    shown: str
    began_at: float
    more: int = 0

    def view(
        self, state: TaskState, ended_at: float, ttl_seconds: float, outcome: Result | TaskError
    ) -> TaskView:
        """Of its task, once this run has ended it."""
        claim = self.claim
        request, load = claim.request, float(self.shown.partition("\t")[0])
        error = outcome if isinstance(outcome, TaskError) else None
        return TaskView(  # by place: by name it takes longer, and each task comes by here
            claim.id,
            request.kind,
            claim.lane,
            request.model,
            state,
            request.weight,
            load,
            priority(request.weight, load),
            claim.submitted_at,
            self.began_at,
            ended_at,
            claim.attempt + self.more,
            None if isinstance(outcome, TaskError) else outcome,
            error,
            None if request.attended else ended_at + ttl_seconds,
            claim.parents,
            request.labels,
            claim.line.tenant,
        )


def run_of(
    given: Given | Foreign, data: bytes, lane: LaneName, lease_until: float, ahead: float
) -> Run:
    """What claim.lua gave for one task, and its input. ``ahead``: of our clock, in seconds.

    Raises Unreadable.
    """
    if isinstance(given, Foreign):
        raise Unreadable("its books are damaged")
    if len(data) <= _HEAD.size:
        raise Unreadable("there is nothing in it")
    run_seconds, size = _HEAD.unpack_from(data)
    begin = _HEAD.size + size
    request = decode_request(data, given.weight, begin)
    submitted_at = given.accepted_ms / 1000 + ahead
    if given.attempt > 1:
        expires_at = inf
    elif not given.until_ms:
        expires_at = submitted_at + USUAL_PATIENCE_SECONDS
    else:
        expires_at = given.until_ms / 1000 + ahead
    claim = Claim(  # by place: by name it takes longer, and each task comes by here
        given.id,
        given.fence,
        given.attempt,
        lease_until,
        request,
        lane,
        _group_name(given.group),
        _line_name(given.line),
        submitted_at,
        expires_at,
        run_seconds,
        given.work_us / 1e6,
        given.alone == "1",
        _ids(data[_HEAD.size : begin]) if size else (),
    )
    return Run(claim, given.shown, given.began_ms / 1000 + ahead)


def _ids(data: bytes) -> tuple[str, ...]:
    try:
        return _unpack_ids(data)
    except msgspec.MsgspecError:
        raise Unreadable("the ids of what it depends on are damaged") from None


@lru_cache(maxsize=1024)
def _group_name(key: str) -> str:
    known = group_of(key)
    return known[1] if known is not None else ""


@lru_cache(maxsize=1024)
def _line_name(key: str) -> Line:
    return line_of(key)


def view_of(
    task_id: str,
    values: Sequence[Any],
    now: float,
    at: Callable[[float], float],
    ttl_seconds: float,
) -> TaskView:
    """What view.lua gave for one task. ``ttl_seconds``: how long a result is kept from its end."""
    (s, group, k, weight, accepted, attempts, more, began, end, why, shown, labels, soon, deps) = (
        None if value is None else value.decode() for value in values[:14]
    )
    result = values[14]
    state = STATES[s or ""]
    _, lane, name = (group or "::").split(":", 2)
    kind, model, load = seen_of(shown or "", name)
    outcome: Result | TaskError | None = None
    if result:
        try:
            outcome = decode_result(result)
        except Unreadable as unreadable:
            outcome = TaskError("result_lost", f"its result can't be read: {unreadable}")
    if outcome is None and state not in _GOOD:
        outcome = error_of(state, why or "")
    kept = (at(float(end)) if end else now) + ttl_seconds
    return TaskView(
        id=task_id,
        kind=kind,
        lane=LaneName(lane),
        model=model,
        state=state,
        weight=float(weight or 1),
        load_seconds=load,
        priority=priority(float(weight or 1), load),
        submitted_at=at(float(accepted or 0)),
        started_at=at(float(began)) if began else None,
        ended_at=at(float(end)) if end else None,
        attempts=int(attempts or 0) + int(more or 0),
        result=None if isinstance(outcome, TaskError) else outcome,
        error=outcome if isinstance(outcome, TaskError) else None,
        result_expires_at=None if soon else kept,
        depends_on=tuple(deps.split(" ")) if deps else (),
        labels=msgspec.json.decode(labels, type=dict[str, str]) if labels else {},
        tenant=line_of(k or "").tenant,
    )


_GOOD = frozenset(STATES.values()) - {TaskState.FAILED, TaskState.EXPIRED, TaskState.DEAD}


def error_of(state: TaskState, why: str) -> TaskError | None:
    """The error of a task that ended without anybody's result, by the reason in its books."""
    if why in ERRORS:
        return TaskError(why, ERRORS[why])
    return TaskError(why or state.value, f"the task ended as {state.value}")
