"""A record of a pool's decisions about replicas: a JSON line for each, for `llmtaskpool replay`.

A line holds what the law was given and what it made of it; no prompt, no client, no name of a
pod. Every few minutes, and where a loop begins or the spec changes, a line is whole: it has the
settings and what the law carried too, so that a record may be cut anywhere. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmtaskpool_operator.api.pool import LLMTaskPool, LLMTaskPoolSpec
from llmtaskpool_operator.autoscaler import law
from llmtaskpool_operator.autoscaler.decide import PoolDecision, PoolMemory
from llmtaskpool_operator.autoscaler.observation import (
    PoolObservation,
    observed_replicas,
    of_pool,
)
from llmtaskpool_operator.autoscaler.reasons import reason_of

WHOLE_SECONDS = 300.0
"""A line is whole at least this often."""
ALL = "all"
_MARK = '{"record":'
_LAW = {"replicas": True, "scaling": True, "slo": True}
"""The parts of a spec that decide about replicas."""

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0)]


class Whole(BaseModel):
    """What makes a line whole: the settings, and the law's memory before its decision.

    ``began``: the loop remembered nothing, because it had just started.
    """

    model_config = ConfigDict(frozen=True)

    began: bool
    spec: dict[str, Any]
    memory: dict[str, Any]


class RecordLine(BaseModel):
    """One decision. ``arrived``, ``backlog`` in pod-seconds; the rest as in law.Observed.

    ``arrived`` since the line before. ``current`` is N as it was found and ``ready`` how many
    of them took tasks. ``desired``, ``bound`` and ``reason`` are None where the operator does
    not decide (mode Fixed or External).
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    record: Literal[1] = 1
    pool: Annotated[str, Field(min_length=1, max_length=317)]
    at: _Finite
    current: _Count
    ready: _Count
    running: float | None = None
    waiting: float
    arrived: float | None = None
    backlog: float
    complete: bool
    age: float
    cap: int | None = None
    busy: bool = False
    saturated: float | None = None
    kappa: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    desired: _Count | None = None
    bound: str | None = None
    reason: str | None = None
    whole: Whole | None = None

    @property
    def observed(self) -> law.Observed:
        """What the law was given."""
        return law.Observed(
            current=self.current,
            running=self.running,
            waiting=self.waiting,
            complete=self.complete,
            age_seconds=self.age,
            cap=self.cap,
            saturated_rate=self.saturated,
            busy=self.busy,
        )


class _Remembers(Protocol):
    @property
    def decided(self) -> PoolMemory: ...


class Turn(Protocol):
    """What is read of reconcile.ReconcileResult (which is of the loop, and this is pure)."""

    @property
    def observed(self) -> PoolObservation:
        """What it saw."""

    @property
    def decisions(self) -> PoolDecision:
        """What it decided."""

    @property
    def memory(self) -> _Remembers:
        """What it leaves to the next turn."""


class BadRecord(Exception):
    """The record can't be used: the message names line, field, value and remedy."""


@dataclass(slots=True)
class Recorder:
    """Makes lines of turns and hands them to ``write``, each with its end of line.

    ``pools``: those that are recorded, as namespace/name, or ``all``.
    """

    write: Callable[[str], object]
    pools: Collection[str] = (ALL,)
    _whole: dict[str, tuple[float, int]] = field(default_factory=dict)

    def wants(self, namespace: str, name: str) -> bool:
        """Whether that pool is recorded."""
        return ALL in self.pools or f"{namespace}/{name}" in self.pools

    def turn(self, pool: LLMTaskPool, before: PoolMemory, turn: Turn) -> None:
        """A turn was done, ``before`` which this was remembered; most decide threads alone."""
        after = turn.memory.decided
        if after.replicas_at == before.replicas_at:
            return
        meta = pool.metadata
        name, now = f"{meta.namespace}/{meta.name}", after.replicas_at
        if not self.wants(meta.namespace, meta.name):
            return
        began = before.replicas_at == -inf
        since, generation = self._whole.get(name, (-inf, -1))
        whole = None
        if began or generation != meta.generation or now - since >= WHOLE_SECONDS:
            self._whole[name] = (now, meta.generation)
            whole = Whole(began=began, spec=_of_law(pool.spec), memory=before.replicas.as_dict())
        line = _line(name, pool.spec, turn.observed, turn.decisions.replicas, after, whole)
        self.write(line.model_dump_json(exclude_none=True) + "\n")


@dataclass(slots=True)
class Record:
    """Lines by pool, in order of time. ``other``: lines of a log that are no record."""

    pools: dict[str, list[RecordLine]] = field(default_factory=dict)
    other: int = 0

    def add(self, lines: Iterable[str], source: str) -> None:
        """Take in the lines of a file or of a log. Raises BadRecord."""
        for number, text in enumerate(lines, 1):
            start = text.find(_MARK)
            if start < 0:
                self.other += bool(text.strip())
                continue
            line = _parsed(text[start:], f"{source} line {number}")
            self.pools.setdefault(line.pool, []).append(line)

    def of(self, pool: str) -> tuple[RecordLine, ...]:
        """The lines of one pool from its first whole one, each moment once. Raises BadRecord."""
        moments = {line.at: line for line in self.pools[pool]}
        lines = [moments[at] for at in sorted(moments)]
        first = next((place for place, line in enumerate(lines) if line.whole), None)
        if first is None or len(lines) - first < 2:
            raise BadRecord(
                f"{pool}: {len(lines)} lines, of which none with its settings has another after "
                f"it: one in {WHOLE_SECONDS:.0f} s has them: record for longer"
            )
        return tuple(lines[first:])


def _line(
    name: str,
    spec: LLMTaskPoolSpec,
    seen: PoolObservation,
    made: law.Decision | None,
    after: PoolMemory,
    whole: Whole | None,
) -> RecordLine:
    if made is not None:
        observed, kappa = made.observed, made.kappa
    else:
        # Somebody else decides; what our law would have been given says what it would have done.
        observed = observed_replicas(spec, seen, after.history)
        kappa = after.replicas.kappa
    return RecordLine(
        pool=name,
        at=after.replicas_at,
        current=observed.current,
        ready=sum(pod.ready for pod in seen.staying),
        running=observed.running,
        waiting=observed.waiting,
        arrived=after.history.arrived_lately(),
        backlog=_backlog(seen),
        complete=observed.complete,
        age=observed.age_seconds,
        cap=observed.cap,
        saturated=observed.saturated_rate,
        busy=observed.busy,
        kappa=kappa,
        desired=made.desired if made is not None else None,
        bound=made.bound.value if made is not None else None,
        reason=reason_of(made) if made is not None else None,
        whole=whole,
    )


def _backlog(seen: PoolObservation) -> float:
    states = [pod.state for pod in seen.staying if pod.fresh and pod.state is not None]
    return of_pool([(state, state.work.waiting_seconds) for state in states])


def _of_law(spec: LLMTaskPoolSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json", by_alias=True, exclude_none=True, include=_LAW)


def _parsed(text: str, place: str) -> RecordLine:
    try:
        return RecordLine.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    if first["loc"] == ("record",):
        raise BadRecord(
            f"{place}: record: {first['input']!r}: this llmtaskpool reads format 1: use the one "
            "that wrote it"
        ) from None
    field_ = ".".join(map(str, first["loc"])) or "line"
    found = "" if isinstance(first["input"], dict) or not first["loc"] else repr(first["input"])
    shown = f" {found[:80]}:" if found else ""
    raise BadRecord(
        f"{place}: {field_}:{shown} {first['msg']}: take the line out, or record anew"
    ) from None
