"""What another setting would have done with the demand that a pool recorded. Pure.

The product's own law decides again at every recorded moment, on the recorded arrivals, and N
follows it. What a different N changes is taken from the difference of two models, one fed with
the recorded N and one with the replayed, and added to what was observed: so nothing is changed
as long as both N are equal, and the same setting gives the recorded decisions again.

* ready pods: a pod is ready ``start_up`` after it was asked for; starting ones go first;
* backlog: in dt seconds R ready pods do min(B + arrived, kappa R dt) pod-seconds of work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf
from statistics import median
from typing import Any

from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.api.scaling import Metric, ScalingMode
from llmtaskpool_operator.autoscaler import law
from llmtaskpool_operator.autoscaler.decide import replica_policy
from llmtaskpool_operator.replay.record import RecordLine
from llmtaskpool_operator.simulation.simulator import flaps

GAP_SECONDS = 30.0
"""Between two lines further apart nothing is known: that time counts for neither N."""
ASSUMED_START_UP = 60.0
"""Where a record shows no pod that started."""

Reading = Callable[[dict[str, Any]], LLMTaskPoolSpec]
"""Makes a spec of the settings in a line."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Recorded and replayed at one decision: (recorded, replayed) in each pair.

    ``found``: N before the decision, ``left``: after it, ``ready``: pods that took tasks,
    ``backlog`` in pod-seconds, ``demand`` in pods (arrivals and backlog over its drain time of
    the recorded setting, over kappa). ``seconds`` until the next moment, 0 where there is a gap.
    """

    at: float
    seconds: float
    found: tuple[int, int]
    left: tuple[int, int]
    ready: tuple[int, int]
    backlog: tuple[float, float]
    demand: tuple[float, float]
    recorded_reason: str | None
    decision: law.Decision

    @property
    def changed(self) -> bool:
        """Whether either N changed here."""
        return self.found != self.left


@dataclass(frozen=True, slots=True)
class Result:
    """What an N came to over the record.

    ``overloaded_seconds``: with more demand than ready pods (U over 1). ``shortfall``: the most
    pods that were missing then. ``backlog``: the most, in pod-seconds.
    """

    pod_hours: float
    changes: int
    flaps: int
    overloaded_seconds: float
    shortfall: float
    backlog: float
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Replay:
    """A whole replay. ``reproduced`` of ``decided`` recorded decisions came out again.

    That is the recorded setting at the recorded N: a check that this law is the one that
    decided then. ``mode`` is the pool's at the end of the record.
    """

    moments: tuple[Moment, ...]
    recorded: Result
    replayed: Result
    mode: ScalingMode
    start_up: float
    start_up_measured: bool
    reproduced: int
    decided: int
    gap_seconds: float


def replay(
    lines: Sequence[RecordLine],
    recorded: Reading,
    wanted: Reading,
    start_up: float | None = None,
) -> Replay:
    """Replay ``lines``: at least two, the first whole.

    ``recorded`` reads their settings as they are, ``wanted`` as those to replay. ``start_up`` in
    seconds; None: as measured in the record. Raises what the readings raise.
    """
    was, now = list(_each(lines, recorded)), list(_each(lines, wanted))
    measured = measured_start_up(lines)
    known = start_up if start_up is not None else measured
    delay = ASSUMED_START_UP if known is None else known
    moments = tuple(_moments(lines, was, now, delay))
    gaps = (after.at - before.at for before, after in pairwise(lines))
    return Replay(
        moments=moments,
        recorded=_result(moments, 0),
        replayed=_result(moments, 1),
        mode=was[-1].scaling.mode,
        start_up=delay,
        start_up_measured=start_up is None and measured is not None,
        reproduced=_reproduced(lines, was),
        decided=sum(line.desired is not None for line in lines),
        gap_seconds=sum(gap for gap in gaps if gap > GAP_SECONDS),
    )


def measured_start_up(lines: Sequence[RecordLine]) -> float | None:
    """Median seconds from a rise of N until so many pods were ready; None: it shows no rise."""
    took = []
    for place, (before, after) in enumerate(pairwise(lines)):
        if after.current <= before.current:
            continue
        for later in lines[place + 1 :]:
            if later.current < after.current:
                break
            if later.ready >= after.current:
                took.append(later.at - before.at)
                break
    return median(took) if took else None


def _each(lines: Sequence[RecordLine], reading: Reading) -> Iterator[LLMTaskPoolSpec]:
    """The settings at each line."""
    raw: dict[str, Any] | None = None
    for line in lines:
        if line.whole is not None and line.whole.spec != raw:
            raw = line.whole.spec
            spec = reading(raw)
        yield spec


@dataclass(slots=True)
class _Pods:
    """When each of N pods is ready."""

    ready_at: list[float] = field(default_factory=list)

    def ask(self, replicas: int, at: float, start_up: float) -> None:
        """So many are wanted from now on; those that would be ready last go first."""
        self.ready_at += [at + start_up] * (replicas - len(self.ready_at))
        del self.ready_at[replicas:]

    def ready(self, at: float) -> int:
        return sum(moment <= at for moment in self.ready_at)


def _moments(
    lines: Sequence[RecordLine],
    was: Sequence[LLMTaskPoolSpec],
    now: Sequence[LLMTaskPoolSpec],
    start_up: float,
) -> Iterator[Moment]:
    n, memory, more = lines[0].current, law.Memory(), 0.0
    pods = _Pods([-inf] * n), _Pods([-inf] * n)
    last: Moment | None = None
    for place, (line, old, new) in enumerate(zip(lines, was, now, strict=True)):
        if line.whole is not None and (place == 0 or line.whole.began):
            memory = law.Memory.from_dict(line.whole.memory)
        if last is not None and last.seconds:
            done = [_worked(last, line, which) for which in (0, 1)]
            more += done[0] - done[1]
        backlog = max(0.0, line.backlog + more)
        more = backlog - line.backlog
        ready = line.ready
        if shift := pods[1].ready(line.at) - pods[0].ready(line.at):
            ready = min(max(line.ready + shift, 0), n)
        observed = replace(
            line.observed,
            current=n,
            running=_arrival_rate(lines, place, old, new),
            waiting=backlog / _drain_seconds(new),
        )
        decision, memory = law.decide(replica_policy(new, line.at), observed, memory, line.at)
        following = lines[place + 1] if place + 1 < len(lines) else None
        left = _left(line, following, old), decision.desired
        if _acts(old) and (n, decision.desired) == (line.current, line.desired):
            left = left[0], left[0]  # what came of the same decision is what came of it
        for model, replicas in zip(pods, left, strict=True):
            model.ask(replicas, line.at, start_up)
        rate = _arrival_rate(lines, place, old, old) or 0.0
        seconds = following.at - line.at if following is not None else 0.0
        last = Moment(
            at=line.at,
            seconds=seconds if seconds <= GAP_SECONDS else 0.0,
            found=(line.current, n),
            left=left,
            ready=(line.ready, ready),
            backlog=(line.backlog, backlog),
            demand=(
                (rate + line.backlog / _drain_seconds(old)) / line.kappa,
                (rate + backlog / _drain_seconds(old)) / line.kappa,
            ),
            recorded_reason=line.reason,
            decision=decision,
        )
        yield last
        n = left[1]


def _worked(last: Moment, line: RecordLine, which: int) -> float:
    """Pod-seconds of work that the model's ready pods did until ``line``."""
    able = line.kappa * last.ready[which] * last.seconds
    return min(last.backlog[which] + (line.arrived or 0.0), able)


def _left(line: RecordLine, following: RecordLine | None, spec: LLMTaskPoolSpec) -> int:
    """The recorded N after a line."""
    if following is not None:
        return following.current
    return line.desired if line.desired is not None and _acts(spec) else line.current


def _acts(spec: LLMTaskPoolSpec) -> bool:
    return spec.scaling.mode is ScalingMode.AUTO and not spec.scaling.paused


def _drain_seconds(spec: LLMTaskPoolSpec) -> float:
    given = spec.scaling.backlog_drain_seconds
    return given or law.backlog_drain_seconds(spec.slo.ttft_seconds)


def _arrival_rate(
    lines: Sequence[RecordLine], place: int, old: LLMTaskPoolSpec, new: LLMTaskPoolSpec
) -> float | None:
    """The arrivals over the window of ``new``: as recorded, where that is the window of ``old``.

    Else from what arrived between the lines, as observation.History does it.
    """
    line, window = lines[place], new.scaling.averaging_seconds
    if old.scaling.metric is Metric.OFFERED_WORK and (
        line.running is None or window == old.scaling.averaging_seconds
    ):
        return line.running
    arrived, first = 0.0, place
    while first > 0 and lines[first].arrived is not None and line.at - lines[first].at < window:
        arrived += lines[first].arrived or 0.0
        first -= 1
    if first == place or line.ready == 0:
        return None
    return arrived / max(line.at - lines[first].at, law.DEFAULTS.period_seconds)


def _result(moments: Sequence[Moment], which: int) -> Result:
    changes = tuple(
        (moment.at, moment.left[which] - moment.found[which])
        for moment in moments
        if moment.left[which] != moment.found[which]
    )
    missing = [moment.demand[which] - moment.ready[which] for moment in moments]
    over = [m.seconds for m, short in zip(moments, missing, strict=True) if short > 0]
    sizes = [moment.left[which] for moment in moments]
    return Result(
        pod_hours=sum(moment.left[which] * moment.seconds for moment in moments) / 3600.0,
        changes=len(changes),
        flaps=flaps(changes),
        overloaded_seconds=sum(over, 0.0),
        shortfall=max(0.0, *missing),
        backlog=max(moment.backlog[which] for moment in moments),
        least=min(sizes),
        most=max(sizes),
    )


def _reproduced(lines: Sequence[RecordLine], was: Sequence[LLMTaskPoolSpec]) -> int:
    """How many recorded decisions the law makes again of what it was given then."""
    memory, same = law.Memory(), 0
    for line, spec in zip(lines, was, strict=True):
        if line.whole is not None:
            memory = law.Memory.from_dict(line.whole.memory)
        if line.desired is not None:
            policy = replica_policy(spec, line.at)
            decision, memory = law.decide(policy, line.observed, memory, line.at)
            made = (decision.desired, decision.bound.value, decision.kappa)
            same += made == (line.desired, line.bound, line.kappa)
    return same
