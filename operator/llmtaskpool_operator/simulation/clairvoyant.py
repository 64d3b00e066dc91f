"""What perfect foresight would have paid: the yardstick of a comparison. Pure.

The cheapest schedule found that serves the wanted share within the objectives. It knows the
trace and asks for pods one start-up ahead. Finding the least is hard (a bin packing over time),
so this is an upper bound of it: schedules from the work per bin, repaired where requests missed
and then thinned out where none did.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import numpy as np
from numpy.typing import NDArray

from llmtaskpool_operator.simulation.laws import PoolSample
from llmtaskpool_operator.simulation.simulator import Outcome, Setting, offered_work, simulate
from llmtaskpool_operator.simulation.trace import Trace

WANTED = 0.99
BIN_SECONDS = 30.0
_STARTS = ((1.05, 1), (0.9, 1), (0.95, 4))
"""First schedules: pods by work at this load, smeared over so many bins."""
_SHARES = (1, 2, 2, 3, 3, 3)
"""A thinning takes a pod from one in so many groups of bins: first from all, then from fewer."""


class Schedule:
    """Replicas by time, asked for ``ahead_seconds`` before they have to serve."""

    name = "clairvoyant"
    period_seconds = 5.0

    def __init__(self, replicas: NDArray[np.int64], ahead_seconds: float) -> None:
        self._replicas, self._ahead = replicas, ahead_seconds

    def decide(self, sample: PoolSample) -> int:
        """The most that is needed from now until what is asked for now would be there."""
        first = int(sample.now / BIN_SECONDS)
        last = int((sample.now + self._ahead + self.period_seconds) / BIN_SECONDS)
        ahead = self._replicas[first : last + 1]
        return int(ahead.max()) if len(ahead) else int(self._replicas[-1])


def clairvoyant(
    trace: Trace, setting: Setting, wanted: float = WANTED,
    progress: Callable[[float], None] = lambda _: None, *, repairs: int = 8, thinnings: int = 8,
) -> Outcome:  # fmt: skip
    """The cheapest run found with ``wanted`` of the requests served, or else the best served.

    ``repairs`` runs at most for each of three first schedules, and then ``thinnings``.
    """
    search = _Search(trace, setting, wanted)
    runs = len(_STARTS) * repairs + thinnings
    for number, (load, bins) in enumerate(_STARTS):
        schedule = search.by_work(load, bins)
        for repair in range(repairs):
            progress((number * repairs + repair) / runs)
            outcome = search.tried(schedule)
            if outcome.slo >= wanted:
                break
            schedule = search.repaired(schedule, outcome)
    for number in range(thinnings):
        progress((len(_STARTS) * repairs + number) / runs)
        search.tried(search.thinned(number))
    progress(1.0)
    return search.best[1]


class _Search:
    def __init__(self, trace: Trace, setting: Setting, wanted: float) -> None:
        self._trace, self._setting, self._wanted = trace, setting, wanted
        self._bins = ceil(trace.seconds / BIN_SECONDS) + 1
        place = (trace.arrival / BIN_SECONDS).astype(np.int64)
        work = offered_work(trace, setting)
        self._work = np.bincount(place, work, self._bins) / BIN_SECONDS
        self._count = np.bincount(place, minlength=self._bins)
        self._ahead = setting.model.start_up_seconds
        self.best: tuple[NDArray[np.int64], Outcome]

    def by_work(self, load: float, bins: int) -> NDArray[np.int64]:
        """As many pods as the work of a bin takes at ``load``, done over ``bins`` bins."""
        spread = np.convolve(self._work, np.full(bins, 1 / bins))[: self._bins]
        return self._bounded(np.ceil(spread / load))

    def tried(self, schedule: NDArray[np.int64]) -> Outcome:
        """Run a schedule and keep the better."""
        outcome = simulate(self._trace, self._setting, Schedule(schedule, self._ahead))
        if not hasattr(self, "best") or self._rank(outcome) < self._rank(self.best[1]):
            self.best = (schedule, outcome)
        return outcome

    def _rank(self, outcome: Outcome) -> tuple[float, float]:
        return max(0.0, self._wanted - outcome.slo), outcome.pod_hours

    def missed(self, outcome: Outcome) -> NDArray[np.int64]:
        """Misses by bin of arrival."""
        place = (outcome.missed_at / BIN_SECONDS).astype(np.int64)
        return np.bincount(place, minlength=self._bins)

    def repaired(self, schedule: NDArray[np.int64], outcome: Outcome) -> NDArray[np.int64]:
        """More pods where more than the allowed share missed, and in the bin before."""
        missed = self.missed(outcome)
        short = missed > (1 - self._wanted) * np.maximum(self._count, 1)
        add = np.where(short, np.maximum(1, np.rint(schedule * 0.08)), 0)
        add = np.maximum(add, np.append(add[1:], 0))
        return self._bounded(schedule + add)

    def thinned(self, number: int) -> NDArray[np.int64]:
        """One pod less in bins far from misses: in all, or in every so many groups of four."""
        schedule, outcome = self.best
        near = self.missed(outcome) > 0
        near = near | np.append(near[1:], False) | np.insert(near[:-1], 0, False)
        turn = (np.arange(self._bins) // 4 + number) % _SHARES[number % len(_SHARES)] == 0
        return self._bounded(schedule - (turn & ~near))

    def _bounded(self, schedule: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.int64]:
        scaling = self._setting.spec.scaling
        return np.clip(schedule, self._setting.minimum, scaling.max_replicas).astype(np.int64)
