"""The equation that sizes the pool, for threads and for replicas alike. Pure.

    N_new = N + α (U − U_target),  U = demand / N

``demand`` is offered work in units of N: threads' worth for a lane, pods' worth for a pool,
waiting work included, so U may exceed 1. With ``α = Auto``, α = N / U_target and the equation is
N_new = demand / U_target: deadbeat for any start-up delay, as long as N counts what was asked for
and not only what is ready (docs/law.md). A number for α gives the literal law; then the fraction
is carried from tick to tick, because rounding it away each tick would stall the law.

Source of the equation: the article "thread management for LLMs in multi-task AI systems".
Windows and step limits are those of Kubernetes' HorizontalPodAutoscaler (`behavior`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

Sample = tuple[float, int]
"""(time in seconds, number of replicas or threads)."""


@dataclass(frozen=True, slots=True)
class StepLimit:
    """At most ``value`` pods (or percent of N) of change within ``period_seconds``."""

    kind: Literal["Pods", "Percent"]
    value: float
    period_seconds: float


@dataclass(frozen=True, slots=True)
class Direction:
    """How fast the law may move one way; no step limits means at once."""

    stabilization_window_seconds: float = 0.0
    policies: tuple[StepLimit, ...] = ()
    select_policy: Literal["Max", "Min", "Disabled"] = "Max"


@dataclass(frozen=True, slots=True)
class Policy:
    """What a user sets. ``alpha`` None is Auto; ``tolerance`` is in units of N."""

    minimum: int = 1
    maximum: int = 10
    target: float = 0.9
    alpha: float | None = None
    tolerance: float = 0.1
    scale_up: Direction = Direction()
    scale_down: Direction = Direction(stabilization_window_seconds=300.0)
    unit: str = "replicas"


REPLICAS = Policy()
"""Defaults for replicas: measured on real traces, see docs/control.md."""

THREADS = Policy(
    minimum=1,
    maximum=256,
    target=0.8,
    scale_down=Direction(policies=(StepLimit("Percent", 2.0, 1.0),)),
    unit="threads",
)
"""Defaults for the threads of a lane: up at once, down by 2 % (at least one) a second."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What is so now. ``demand`` None means that nobody answered.

    ``current`` is the N that was asked for, starting ones included. ``complete`` is False when
    some ready pod did not report: a missing pod can only lower the demand, so growing is safe.
    """

    current: int
    demand: float | None
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Memory:
    """What the law carries from tick to tick; plain data, so that it can be stored."""

    carried: float | None = None
    highs: tuple[Sample, ...] = ()
    """Recommendations that the scale-down window still has to honour, falling in value."""
    lows: tuple[Sample, ...] = ()
    """Recommendations that the scale-up window still has to honour, rising in value."""
    changes: tuple[Sample, ...] = ()
    """Changes of N made within the longest period of the step limits."""


class Bound(StrEnum):
    """What kept the law from what the equation asked for."""

    NONE = "None"
    NO_DATA = "NoData"
    INCOMPLETE_DATA = "IncompleteData"
    MINIMUM = "Minimum"
    MAXIMUM = "Maximum"
    STABILIZATION = "Stabilization"
    STEP_LIMIT = "StepLimit"


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, from what, and why. ``exact`` is N_new before any bound."""

    current: int
    desired: int
    utilization: float | None
    target: float
    alpha: float | None
    exact: float | None
    bound: Bound
    reason: str

    @property
    def moves(self) -> bool:
        """Whether N changes."""
        return self.desired != self.current


def equation(n: float, alpha: float, utilization: float, target: float) -> float:
    """``N_new = N + α (U − U_target)``."""
    return n + alpha * (utilization - target)


def decide(
    policy: Policy, observed: Observed, memory: Memory, now: float
) -> tuple[Decision, Memory]:
    """One tick of the law at time ``now`` (seconds, any monotonic origin)."""
    n, demand = observed.current, observed.demand
    if demand is None or not math.isfinite(demand) or demand < 0:
        return _hold(policy, observed, memory, now)
    utilization = demand / n if n else None
    alpha = policy.alpha if policy.alpha is not None else n / policy.target
    if utilization is None:
        exact = min(demand, 1.0) if policy.minimum == 0 else float(policy.minimum)
        wanted = math.ceil(exact)  # U is undefined at N = 0: the first arrival wakes one
    else:
        exact = equation(_start(policy, n, memory), alpha, utilization, policy.target)
        wanted = math.ceil(min(exact, policy.maximum + 1.0) - policy.tolerance)
    bounded = min(max(wanted, policy.minimum), policy.maximum)
    memory = _remember(policy, memory, n, bounded, now)
    steady = max(min(n, memory.highs[0][1]), memory.lows[0][1])
    limited = _within_step_limits(policy, n, steady, memory.changes, now)
    if limited < n and not observed.complete and n <= policy.maximum:
        limited, bound = n, Bound.INCOMPLETE_DATA
    else:
        bound = _bound(wanted, bounded, steady, limited)
    memory = replace(
        memory,
        carried=_carry(policy, exact, limited),
        changes=(*memory.changes, (now, limited - n)) if limited != n else memory.changes,
    )
    reason = _reason(policy, n, limited, utilization, demand, wanted, bound)
    decision = Decision(n, limited, utilization, policy.target, alpha, exact, bound, reason)
    return decision, memory


def _start(policy: Policy, n: int, memory: Memory) -> float:
    """Where the equation starts: N, or with a fixed α the real-valued N carried so far."""
    if policy.alpha is None or memory.carried is None or math.ceil(memory.carried - 1) > n:
        return float(n)
    return memory.carried if memory.carried > n - 1 else float(n)


def _carry(policy: Policy, exact: float, desired: int) -> float | None:
    """The fraction to keep. Held within [min, max] and above desired - 0.9, or a fall that is
    being held (or a bound) would wind it up and the next rise would come late."""
    if policy.alpha is None:
        return None
    low = max(float(policy.minimum), desired - 0.9)
    return min(max(exact, low), float(policy.maximum), desired + policy.tolerance)


def _hold(
    policy: Policy, observed: Observed, memory: Memory, now: float
) -> tuple[Decision, Memory]:
    """No usable demand: N stays, within its bounds, and the scale-down window starts anew."""
    n, demand = observed.current, observed.demand
    desired = min(max(n, policy.minimum), policy.maximum)
    why = "no metrics" if demand is None else f"demand {demand} is not a finite number >= 0"
    memory = _remember(policy, memory, n, desired, now)
    reason = f"{_step(policy, n, desired)}: {why}, holding"
    return Decision(n, desired, None, policy.target, None, None, Bound.NO_DATA, reason), memory


def _remember(policy: Policy, memory: Memory, n: int, wanted: int, now: float) -> Memory:
    """Memory with this tick's recommendation, without what no window asks for any more.

    An empty memory (a new pool, a restarted operator) starts with N itself, so that nobody
    shrinks before a whole window was seen.
    """
    period = max(
        (p.period_seconds for p in (*policy.scale_up.policies, *policy.scale_down.policies)),
        default=0.0,
    )
    up, down = policy.scale_up, policy.scale_down
    highs, lows = memory.highs or ((now, n),), memory.lows or ((now, n),)
    since_down, since_up = (
        now - down.stabilization_window_seconds,
        now - up.stabilization_window_seconds,
    )
    highs = (*(s for s in highs if s[0] > since_down and s[1] > wanted), (now, wanted))
    lows = (*(s for s in lows if s[0] > since_up and s[1] < wanted), (now, wanted))
    changes = tuple(s for s in memory.changes if s[0] > now - period)
    return Memory(memory.carried, highs, lows, changes)


def _within_step_limits(
    policy: Policy, n: int, wanted: int, changes: Iterable[Sample], now: float
) -> int:
    """``wanted`` brought within what the direction's step limits still allow, as HPA counts."""
    up = wanted > n
    direction = policy.scale_up if up else policy.scale_down
    if wanted == n or direction.select_policy == "Disabled":
        return n
    if not direction.policies:
        return wanted
    choose = max if (direction.select_policy == "Max") == up else min
    return (min if up else max)(
        wanted, choose(_reach(p, n, up, changes, now) for p in direction.policies)
    )


def _reach(limit: StepLimit, n: int, up: bool, changes: Iterable[Sample], now: float) -> int:
    """The furthest N that one step limit allows now: counted from N at the period's start."""
    recent = sum(d for t, d in changes if t > now - limit.period_seconds and (d > 0) == up)
    start = n - recent
    if limit.kind == "Pods":
        return max(n, int(start + limit.value)) if up else min(n, int(start - limit.value))
    if up:
        return max(n, math.ceil(start * (1 + limit.value / 100)))
    return min(n, math.floor(start * (1 - limit.value / 100)))


def _bound(wanted: int, bounded: int, steady: int, limited: int) -> Bound:
    """The last thing that changed what the equation asked for."""
    if limited != steady:
        return Bound.STEP_LIMIT
    if steady != bounded:
        return Bound.STABILIZATION
    if bounded > wanted:
        return Bound.MINIMUM
    return Bound.MAXIMUM if bounded < wanted else Bound.NONE


def _step(policy: Policy, n: int, desired: int) -> str:
    return f"{n} -> {desired} {policy.unit}" if n != desired else f"{n} {policy.unit}"


def _reason(
    policy: Policy,
    n: int,
    desired: int,
    utilization: float | None,
    demand: float,
    wanted: int,
    bound: Bound,
) -> str:
    """One line for people."""
    if utilization is None:
        seen = "work arrived while at zero" if desired else "at zero and no work"
    else:
        side = "over" if utilization > policy.target else "under"
        side = "at" if math.isclose(utilization, policy.target) else side
        seen = (
            f"utilization {utilization:.2f} {side} target {policy.target:.2f}"
            f" (demand {demand:.2f} over {n})"
        )
    held = {
        Bound.NONE: "",
        Bound.NO_DATA: "",
        Bound.INCOMPLETE_DATA: f"; {wanted} wanted, not every pod reported",
        Bound.MINIMUM: f"; {wanted} wanted, minimum is {policy.minimum}",
        Bound.MAXIMUM: f"; {wanted} wanted, maximum is {policy.maximum}",
        Bound.STABILIZATION: f"; {wanted} wanted, held by the stabilization window",
        Bound.STEP_LIMIT: f"; {wanted} wanted, held by a step limit",
    }[bound]
    return f"{_step(policy, n, desired)}: {seen}{held}"
