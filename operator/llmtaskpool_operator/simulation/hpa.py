"""Stock HPA's arithmetic and default behaviour, written from its public documentation alone."""

from __future__ import annotations

from collections import deque
from math import ceil
from typing import ClassVar

HPA_TOLERANCE = 0.1
_EPSILON = 1e-9


class Window:
    """Values of the last ``seconds``, the one of that very age no longer counted."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen: deque[tuple[float, float]] = deque()

    def add(self, now: float, value: float) -> None:
        """Note ``value`` at ``now``; times never go back."""
        self._seen.append((now, value))

    def values(self, now: float) -> list[float]:
        """What was noted within the window."""
        while self._seen and now - self._seen[0][0] >= self._seconds:
            self._seen.popleft()
        return [value for _, value in self._seen]

    def mean(self, now: float, seconds: float) -> float:
        """Mean of the last ``seconds`` (at most the window's), 0 of nothing."""
        self.values(now)
        recent = [value for at, value in self._seen if now - at < seconds]
        return sum(recent) / len(recent) if recent else 0.0


def hpa_from_pods(
    current: int,
    metric: list[float],
    target: float,
    *,
    missing: int = 0,
    unready: int = 0,
    tolerance: float = HPA_TOLERANCE,
) -> int:
    """Replicas that HPA wants on a per-pod metric: ``ceil(pods * mean / target)``.

    ``metric`` has one value per ready pod. ``missing`` ready pods have none: they count as 0 when
    the others ask for more, and as exactly on target when they ask for fewer. ``unready`` pods
    count as 0 when the others ask for more, and are left out otherwise. No change without a
    value, within the tolerance, or where those assumptions turn the direction round.

    https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/#algorithm-details
    """
    if not metric:
        return current
    first = sum(metric) / len(metric) / target
    if first > 1:
        total, pods = sum(metric), len(metric) + missing + unready
    else:
        total, pods = sum(metric) + missing * target, len(metric) + missing
    ratio = total / pods / target
    if abs(ratio - 1) <= tolerance + _EPSILON or (ratio > 1) != (first > 1):
        return current
    wanted = ceil(ratio * pods - _EPSILON)
    return max(wanted, current) if ratio > 1 else min(wanted, current)


def hpa_from_total(
    current: int, total: float, target: float, *, tolerance: float = HPA_TOLERANCE
) -> int:
    """Replicas that HPA wants on an external metric with an AverageValue: ``ceil(total / target)``.

    The one number of the whole pool is divided by its pods before it is compared, those that
    start counted; within the tolerance nothing changes.

    https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/#how-does-a-horizontalpodautoscaler-work
    """
    if current > 0 and abs(total / (target * current) - 1) <= tolerance + _EPSILON:
        return current
    return ceil(total / target - _EPSILON)


class HpaBehavior:
    """HPA's default ``behavior``: what it does with the replicas that a metric asks for.

    Up at once, by at most 4 pods or 100 % (the larger) within 15 s; down to the highest value
    that was wanted in the last 300 s, without a limit.

    https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/#default-behavior

    Replayed against kube-controller-manager 1.37 on examples/hpa.yaml (11 minutes, an external
    metric that rises, falls and goes away) every decision is the same but one: an object without
    a ``behavior`` block goes up to max(4, 2 N), so from 1 pod to 4 where the page says 5.
    """

    down_window_seconds: ClassVar[float] = 300.0
    up_pods: ClassVar[int] = 4
    up_percent: ClassVar[float] = 100.0
    up_period_seconds: ClassVar[float] = 15.0

    def __init__(self) -> None:
        self._wanted = Window(self.down_window_seconds)
        self._added = Window(self.up_period_seconds)
        self._started = False

    def applied(self, now: float, current: int, wanted: int) -> int:
        """Replicas after the windows and step limits; the pool's bounds come after."""
        if not self._started:
            # A controller that just started counts what is there as its first recommendation.
            self._started = True
            self._wanted.add(now, current)
        self._wanted.add(now, wanted)
        if wanted < current:
            return min(current, int(max(self._wanted.values(now))))
        start = current - int(sum(self._added.values(now)))
        most = max(start + self.up_pods, ceil(start * (1 + self.up_percent / 100)))
        after = max(current, min(wanted, most))
        if after > current:
            self._added.add(now, after - current)
        return after
