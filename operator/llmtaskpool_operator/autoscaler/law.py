"""The control law: how many threads or replicas a pool should have, and why.

One equation, two instances (source: the article "thread management for LLMs in multi-task AI
systems"; the measured form is described in docs/law.md)::

    N_new = N + alpha (U - U_target)        U = (running + waiting) / (kappa N)

* replicas: ``running`` is the work that arrived per second (lambda) and ``waiting`` the backlog
  over its drain time (B / T_d), both in pod-seconds per second; N counts starting pods.
* threads, per pod and lane: ``running`` is the slots in use, ``waiting`` this pod's share of
  the queue.

Pure: time is the argument ``now`` (seconds of any clock that goes forward and is the same from
call to call).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil, floor, isfinite
from typing import Any, Literal

from llmtaskpool_operator.autoscaler.windows import Wanted, allowed, as_wanted, noted

BELIEVABLE = 1e12
"""A demand above this is a fault of the sample and not a load."""
_EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class Defaults:
    """The measured defaults (docs/law.md says how each was found). Times are in seconds."""

    target: float = 0.9
    averaging_seconds: float = 30.0
    hold_seconds: float = 400.0
    period_seconds: float = 5.0
    tolerance: float = 0.1
    stale_seconds: float = 30.0
    shortest_drain_seconds: float = 60.0
    trim_gain: float = 0.05
    thread_target: float = 0.8
    thread_floor: int = 4
    thread_decay_percent: float = 2.0
    thread_period_seconds: float = 1.0


DEFAULTS = Defaults()


def backlog_drain_seconds(ttft_slo_seconds: float) -> float:
    """T_d = max(60 s, 4 x TTFT SLO): the time within which a backlog should be worked off."""
    return max(DEFAULTS.shortest_drain_seconds, 4.0 * ttft_slo_seconds)


@dataclass(frozen=True, slots=True)
class StepLimit:
    """At most ``value`` pods (or per cent of N) of change per ``period_seconds``, as in HPA."""

    type: Literal["Pods", "Percent"]
    value: float
    period_seconds: float


@dataclass(frozen=True, slots=True)
class Direction:
    """What a change in one direction has to wait for and how large a step may be, as in HPA.

    A fall goes no lower than the most that was wanted within the window, a rise no higher than
    the least.
    """

    stabilization_seconds: float = 0.0
    limits: tuple[StepLimit, ...] = ()
    select: Literal["Max", "Min", "Disabled"] = "Max"


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings of one law. ``alpha`` None means Auto: alpha = N / U_target.

    ``tolerance`` is in units of N. ``settle`` keeps a fall from going below N = demand / target,
    where it would have to be taken back; without it the equation is followed to the letter.
    """

    minimum: int = 1
    maximum: int = 10
    target: float = DEFAULTS.target
    alpha: float | None = None
    tolerance: float = DEFAULTS.tolerance
    up: Direction = Direction()
    down: Direction = Direction(DEFAULTS.hold_seconds)
    stale_seconds: float = DEFAULTS.stale_seconds
    trim_gain: float = DEFAULTS.trim_gain
    settle: bool = True
    unit: Literal["replicas", "threads"] = "replicas"


THREAD_POLICY = Policy(
    minimum=DEFAULTS.thread_floor,
    maximum=4096,
    target=DEFAULTS.thread_target,
    down=Direction(limits=(StepLimit("Percent", DEFAULTS.thread_decay_percent, 1.0),)),
    unit="threads",
)
"""The thread law's instance, decided once per second for each pod and lane."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What one decision sees; ``current`` is N as asked for, starting ones counted.

    ``complete`` says that everyone who should have reported did. ``cap`` is a bound found at
    run time (the knee of a worker). ``saturated_rate`` is the work done per ready pod-second
    while every pod was saturated, None when they were not: it trims kappa. ``busy``: something
    runs, waits or is held, however little it asks for: N is not 0 then.
    """

    current: int
    running: float | None
    waiting: float = 0.0
    complete: bool = True
    age_seconds: float = 0.0
    cap: int | None = None
    saturated_rate: float | None = None
    busy: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """What a law carries from one decision to the next: a few numbers, JSON-able.

    ``carried`` is the real-valued N (with its fraction) of a numeric alpha. ``most`` and
    ``least`` are what was wanted within the windows of a fall and of a rise. ``changes`` are
    (time, step) pairs within the longest step-limit period.
    """

    carried: float | None = None
    kappa: float = 1.0
    most: Wanted = ()
    least: Wanted = ()
    changes: tuple[tuple[float, int], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The memory as plain JSON values."""
        return {
            "carried": self.carried,
            "kappa": self.kappa,
            "most": [list(pair) for pair in self.most],
            "least": [list(pair) for pair in self.least],
            "changes": [list(change) for change in self.changes],
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Memory:
        """The memory from ``as_dict``; a value that can't be one is dropped, not believed."""
        kappa, changes = _number(raw.get("kappa")), raw.get("changes")
        return cls(
            carried=_number(raw.get("carried")),
            kappa=min(max(kappa, 0.5), 1.5) if kappa is not None else 1.0,
            most=as_wanted(raw.get("most"), max),
            least=as_wanted(raw.get("least"), min),
            changes=tuple(
                (float(change[0]), int(change[1]))
                for change in (changes if isinstance(changes, list | tuple) else ())
                if isinstance(change, list | tuple)
                and len(change) == 2
                and all(_number(part) is not None for part in change)
            ),
        )


class Bound(StrEnum):
    """What held a decision back from the equation's own value (HPA's words where it has one)."""

    NONE = "DesiredWithinRange"
    MINIMUM = "TooFewReplicas"
    MAXIMUM = "TooManyReplicas"
    STABILIZED = "Stabilized"
    STEP = "StepLimit"
    DISABLED = "DirectionDisabled"
    INCOMPLETE = "IncompleteData"
    NO_DATA = "NoData"
    WAKE = "WakeFromZero"


@dataclass(frozen=True, slots=True)
class Decision:
    """What the law wants and everything that went into it.

    ``exact`` is the equation's unclamped N_new (None without data), ``wanted`` the same as a
    whole number before windows and limits, ``bound`` what held it back, ``wait_seconds`` how
    long a held change still has to wait, ``ignored`` the inputs that were not believed.
    """

    at: float
    policy: Policy
    observed: Observed
    desired: int
    wanted: int
    exact: float | None
    utilization: float | None
    alpha: float | None
    kappa: float
    bound: Bound
    wait_seconds: float = 0.0
    ignored: tuple[str, ...] = ()

    @property
    def current(self) -> int:
        """N before the decision."""
        return self.observed.current


def decide(
    policy: Policy, observed: Observed, memory: Memory, now: float
) -> tuple[Decision, Memory]:
    """The next N and why. Never raises for odd numbers: they are ignored and named.

    Holds N without believable data; bounds apply at once and always; a fall needs complete data.
    """
    demand, ignored = _demand(observed)
    kappa = trim(memory.kappa, observed.saturated_rate, policy.trim_gain)
    if demand is None or not observed.age_seconds <= policy.stale_seconds:
        return _held(policy, observed, memory, ignored, now)
    n, (low, high) = max(observed.current, 0), bounds(policy, observed)
    target, whole = policy.target, observed.complete and not ignored
    work = demand > 0 or observed.busy
    if n == 0:
        utilization, alpha, exact = None, None, float(work)
    else:
        utilization = demand / (kappa * n)
        alpha = n / target if policy.alpha is None else policy.alpha
        start = n if policy.alpha is None else _seat(policy, memory.carried, n, low, high)
        exact = start + alpha * (utilization - target)
    wanted = _whole(policy, exact, work, low, high)
    if wanted < n and policy.settle:
        wanted = max(wanted, min(n, _whole(policy, demand / (kappa * target), work, low, high)))
    desired, bound, wait, memory = _windowed(policy, memory, n, wanted, (low, high), whole, now)
    if bound is Bound.NONE:
        bound = Bound.WAKE if n == 0 < desired else _limit(policy, exact, desired, low, high)
    carried = None if policy.alpha is None else _seat(policy, exact, desired, low, high)
    memory = replace(memory, carried=carried, kappa=kappa)
    return Decision(
        now, policy, observed, desired, wanted, exact, utilization, alpha, kappa, bound, wait,
        ignored,
    ), memory  # fmt: skip


def bounds(policy: Policy, observed: Observed) -> tuple[int, int]:
    """The least and the most N may be now; a cap found at run time goes before the minimum."""
    high = policy.maximum if observed.cap is None else max(min(policy.maximum, observed.cap), 0)
    return min(policy.minimum, high), high


def trim(kappa: float, saturated_rate: float | None, gain: float = DEFAULTS.trim_gain) -> float:
    """kappa moved by ``gain`` towards the work a saturated pod really does per second.

    Kept within 0.5 to 1.5; a rate that is None or no number changes nothing.
    """
    if saturated_rate is None or not isfinite(saturated_rate) or saturated_rate < 0:
        return kappa
    return kappa + gain * (min(max(saturated_rate, 0.5), 1.5) - kappa)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return float(value)


def _demand(observed: Observed) -> tuple[float | None, tuple[str, ...]]:
    """U x kappa x N, and the inputs left out of it; None when nothing believable is left."""
    running, waiting = observed.running, observed.waiting
    if running is not None and 0 <= running < BELIEVABLE and 0 <= waiting < BELIEVABLE:
        return running + waiting, ()
    ignored: tuple[str, ...] = ()
    total: float | None = None
    for name, value in (("running", running), ("waiting", waiting)):
        if value is None:
            continue
        if 0 <= value < BELIEVABLE:
            # Without arrivals a backlog of 0 says nothing; one above 0 still asks for growth.
            if name == "running" or value > 0:
                total = (total or 0.0) + value
        else:
            ignored += (f"{name} = {value:g}",)
    if running is None and total is not None:
        ignored += ("running is missing",)
    return total, ignored


def _seat(policy: Policy, carried: float | None, n: int, low: int, high: int) -> float:
    """The carried real N, kept where it rounds to ``n`` or is on the verge of falling.

    This is the anti-windup: neither a bound, a window nor another writer can pull it away.
    """
    if carried is None:
        return float(n)
    floor_ = max(low, n - 1 + policy.tolerance)
    return min(max(carried, floor_), max(min(high, n + policy.tolerance), floor_))


def _whole(policy: Policy, exact: float, work: bool, low: int, high: int) -> int:
    """``ceil(exact - tolerance)``, within the bounds, and not 0 while there is any work."""
    rounded = ceil(min(max(exact, low - 1.0), high + 2.0) - policy.tolerance - _EPSILON)
    return min(max(rounded, low, int(work)), high)


def _windowed(
    policy: Policy, memory: Memory, n: int, wanted: int, ends: tuple[int, int], whole: bool,
    now: float,
) -> tuple[int, Bound, float, Memory]:  # fmt: skip
    """The part of the way to ``wanted`` that windows, step limits and bounds allow now."""
    low, high = ends
    memory = _noted(policy, memory, n, wanted if whole else max(wanted, n), now)
    if not low <= n <= high:
        return min(max(n, low), high), Bound.MINIMUM if n < low else Bound.MAXIMUM, 0.0, memory
    if wanted == n or (wanted < n and not whole):
        return n, Bound.NONE if wanted == n else Bound.INCOMPLETE, 0.0, memory
    falls = wanted < n
    way, known, extreme = (
        (policy.down, memory.most, max) if falls else (policy.up, memory.least, min)
    )
    if way.select == "Disabled":
        return n, Bound.DISABLED, 0.0, memory
    goal, wait = allowed(known, n, wanted, extreme, way.stabilization_seconds, now)
    step = _stepped(way, memory, n, goal, now)
    changes = memory.changes
    if step != n and (policy.up.limits or policy.down.limits):
        longest = max(limit.period_seconds for limit in policy.up.limits + policy.down.limits)
        recent = tuple(change for change in changes if now - change[0] < longest)
        changes = (*recent, (now, step - n))
        memory = replace(memory, changes=changes)
    if step != goal:
        return step, Bound.STEP, 0.0, memory
    return step, Bound.NONE if goal == wanted else Bound.STABILIZED, wait, memory


def _noted(policy: Policy, memory: Memory, n: int, wanted: int, now: float) -> Memory:
    """The memory with what is wanted now, where a window has to know it."""
    fall, rise = policy.down.stabilization_seconds, policy.up.stabilization_seconds
    if fall <= 0 and rise <= 0:
        return memory
    gap = policy.stale_seconds
    most = noted(memory.most, wanted, n, max, fall, gap, now) if fall > 0 else ()
    least = noted(memory.least, wanted, n, min, rise, gap, now) if rise > 0 else ()
    return replace(memory, most=most, least=least)


def _stepped(way: Direction, memory: Memory, n: int, goal: int, now: float) -> int:
    """``goal``, or as far towards it as the step limits allow (HPA's arithmetic)."""
    if not way.limits:
        return goal
    falls = goal < n
    ends = []
    for limit in way.limits:
        start = n - sum(s for at, s in memory.changes if 0 <= now - at < limit.period_seconds)
        if limit.type == "Pods":
            ends.append(start - limit.value if falls else start + limit.value)
        else:
            part = limit.value / 100.0
            ends.append(start * (1 - part) if falls else start * (1 + part))
    farthest = (min if falls else max) if way.select == "Max" else (max if falls else min)
    end = farthest(ends)
    if falls:
        return min(n, max(goal, floor(end + _EPSILON)))
    return max(n, min(goal, ceil(end - _EPSILON)))


def _limit(policy: Policy, exact: float, desired: int, low: int, high: int) -> Bound:
    """Whether a bound, and nothing else, keeps ``desired`` from what the equation gives."""
    if desired == high and exact > high + policy.tolerance + _EPSILON:
        return Bound.MAXIMUM
    if desired == low > 0 and exact <= low - 1 + policy.tolerance:
        return Bound.MINIMUM
    return Bound.NONE


def _held(
    policy: Policy, observed: Observed, memory: Memory, ignored: tuple[str, ...], now: float
) -> tuple[Decision, Memory]:
    """No believable data: N stays, within its bounds, and counts as wanted in every window."""
    n = max(observed.current, 0)
    low, high = bounds(policy, observed)
    desired = min(max(n, low), high)
    bound = Bound.NO_DATA if desired == n else Bound.MINIMUM if n < low else Bound.MAXIMUM
    decision = Decision(
        now, policy, observed, desired, n, None, None, None, memory.kappa, bound, 0.0, ignored
    )
    return decision, _noted(policy, memory, n, n, now)
