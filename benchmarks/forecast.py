"""Whether a forecast from the time of day beats the law without one.

Two weeks of ServeGen's rates (m-small and m-large, every 10 min) with noise from day to day give
the demand; the requests of each ten minutes are drawn from m-small's at that time of day. The
mornings of three days, 5:00 to 9:30, are simulated: a usual one, a holiday with half the
demand, and one on which everything comes an hour early. A forecast is a minimum of replicas, as
of `scaling.schedules`: the demand expected when a pod asked for now would be ready, over the
target. It knows the seven days before.

* quantile: that quantile of the seven days' demand at that time of day;
* growth: today's demand of the last 5 min times the usual growth from now until then;
* bounded: the quantile, but at most 1.5 times growth, so that a holiday isn't paid for.

J = pod-hours over hours of work + 10 x what is missing below 99 % (control.md's, but for its
clairvoyant), in a week of five usual days, a holiday and an early one. Seeded: the same numbers
on every run.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from math import ceil
from pathlib import Path

import numpy as np
from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.autoscaler.law import DEFAULTS
from llmtaskpool_operator.simulation.laws import Ours, PoolSample
from llmtaskpool_operator.simulation.service import LLAMA2_70B
from llmtaskpool_operator.simulation.simulator import Setting, offered_work, simulate
from llmtaskpool_operator.simulation.trace import Trace, read

TRACES = Path(__file__).parent / "traces"
SEED = 20261126
BUCKET, DAY, HISTORY_DAYS = 600, 86_400, 7
BUCKETS = DAY // BUCKET
FIRST, LAST = 30, 57
"""Buckets simulated: 5:00 to 9:30."""
MEAN_PODS = 5.0
NOISE, STEADINESS = 0.12, 0.97
"""Of a day's demand: standard deviation, and what a bucket keeps of the noise of the one before."""
JITTER_SECONDS = 300.0
"""No burst is shorter: none can be foreseen, so that favours a forecast."""
RECENT_SECONDS = 300.0
WEEK = {"usual": 5, "holiday": 1, "early": 1}
TEST_DAYS = {"usual": 9, "holiday": 10, "early": 11}
START_UP, TARGET = 300.0, 0.9
TOLERANCE = DEFAULTS.tolerance
LAWS = ("none", "quantile 0.5", "quantile 0.8", "bounded 0.8", "growth")
MOST_OF_NOW = 1.5

Floor = Callable[[float, float], int]
"""The minimum at a time (seconds from FIRST), with the arrivals of the last 5 min in pods."""


@dataclass(frozen=True, slots=True)
class Case:
    """One run: rates of which model, which day, start-up in seconds, target, which forecast."""

    rates: str
    day: str
    start_up: float
    target: float
    law: str


class Forecasted(Ours):
    """The product's law with a minimum that moves."""

    def __init__(self, spec: LLMTaskPoolSpec, floor: Floor) -> None:
        super().__init__(spec)
        self._floor = floor
        self._rates: deque[float] = deque(maxlen=round(RECENT_SECONDS / self.period_seconds))

    def decide(self, sample: PoolSample) -> int:
        """As Ours, within the minimum of now."""
        self._rates.append(self._history.arrival_rate(self.period_seconds) or 0.0)
        recent = sum(self._rates) / len(self._rates)
        least = min(max(1, self._floor(sample.now, recent)), self._policy.maximum)
        self._policy = replace(self._policy, minimum=least)
        return super().decide(sample)


def days(name: str) -> np.ndarray:
    """Requests of every bucket, day by day, before they are scaled: real rates and noise."""
    with gzip.open(TRACES / f"servegen_{name}_rate10min.csv.gz", "rt") as file:
        rates = np.array([float(row[1]) for row in list(csv.reader(file))[1:]])
    rates = rates[: len(rates) // BUCKETS * BUCKETS].reshape(-1, BUCKETS)
    rng = np.random.default_rng(SEED)
    noise = np.zeros_like(rates)
    for day in range(len(rates)):
        level = rng.normal(0.0, NOISE)
        for bucket in range(BUCKETS):
            level = STEADINESS * level + (1 - STEADINESS**2) ** 0.5 * rng.normal(0.0, NOISE)
            noise[day, bucket] = level
    demand = rates * np.exp(noise)
    demand[TEST_DAYS["holiday"]] *= 0.5
    early = TEST_DAYS["early"]
    demand[early] = np.roll(demand[early], -6)
    return demand / demand.mean()


def requests(demand: np.ndarray, scale: float, source: Trace, seed: int) -> Trace:
    """Requests of the simulated buckets, each drawn from those of its time of day."""
    rng = np.random.default_rng(seed)
    of_bucket = (source.arrival // BUCKET).astype(int)
    arrivals, picks = [], []
    for bucket in range(FIRST, LAST):
        pool = np.flatnonzero(of_bucket == bucket)
        chosen = rng.choice(pool, rng.poisson(demand[bucket] * scale * BUCKET))
        shift = rng.uniform(-JITTER_SECONDS, JITTER_SECONDS, len(chosen))
        arrivals.append(source.arrival[chosen] - FIRST * BUCKET + shift)
        picks.append(chosen)
    arrival = np.clip(np.concatenate(arrivals), 0.0, (LAST - FIRST) * BUCKET)
    order = np.argsort(arrival, kind="stable")
    chosen = np.concatenate(picks)[order]
    drawn = source.chosen(chosen)
    return Trace(arrival[order], drawn.prompt, drawn.output, drawn.uncached)


def forecast(kind: str, before: np.ndarray, ahead: float, target: float) -> Floor:
    """The minimum by a forecast; ``before``: pods of work by day and bucket."""
    middles = (np.arange(BUCKETS) + 0.5) * BUCKET

    def at(values: np.ndarray, now: float) -> float:
        return float(np.interp(FIRST * BUCKET + now, middles, values))

    usual = before.mean(axis=0)

    def grown(now: float, recent: float) -> float:
        return recent * at(usual, now + ahead) / at(usual, now)

    def replicas(pods: float) -> int:
        return ceil(pods / target - TOLERANCE)

    if kind == "growth":
        return lambda now, recent: replicas(grown(now, recent))
    name, share = kind.split()
    expected = np.quantile(before, float(share), axis=0)
    if name == "quantile":
        return lambda now, _: replicas(at(expected, now + ahead))
    return lambda now, recent: replicas(
        min(at(expected, now + ahead), MOST_OF_NOW * grown(now, recent))
    )


def run(case: Case) -> tuple[Case, float, float, float, int]:
    """The case with its SLO, pod-hours, hours of work, and changes."""
    source = read(TRACES / "servegen_msmall_day1.csv.gz")
    spec = LLMTaskPoolSpec.model_validate(
        {
            "scaling": {"maxReplicas": 64, "targetUtilization": case.target},
            "threads": {"compute": {"initial": 48, "min": 4}},
            "slo": {"ttftSeconds": 5, "tpotSeconds": 0.2},
        }
    )
    setting = Setting(spec, LLAMA2_70B.with_start_up(case.start_up), warm_up=600.0)
    each = float(offered_work(source, setting).mean())
    demand = days(case.rates)
    day = TEST_DAYS[case.day]
    trace = requests(demand[day], MEAN_PODS / each, source, SEED + day)
    before = demand[day - HISTORY_DAYS : day] * MEAN_PODS
    ahead = case.start_up + 2 * Ours.period_seconds
    floor = (
        forecast(case.law, before, ahead, case.target)
        if case.law != "none"
        else lambda _now, _recent: 1
    )
    outcome = simulate(trace, setting, Forecasted(spec, floor))
    scored = trace.chosen(trace.arrival >= setting.warm_up)
    work = float(offered_work(scored, setting).sum()) / 3600.0
    return case, outcome.slo, outcome.pod_hours, work, outcome.actions


def main() -> None:
    """Run all cases and print the tables."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--start-up", type=float, nargs="+", default=[START_UP])
    options.add_argument("--target", type=float, nargs="+", default=[TARGET])
    given = options.parse_args()
    starts, targets = given.start_up, given.target
    began = time.monotonic()
    cases = [Case(*of) for of in product(("m-small", "m-large"), TEST_DAYS, starts, targets, LAWS)]
    with ProcessPoolExecutor(given.processes) as pool:
        found = {case: rest for case, *rest in pool.map(run, cases)}
    print("# A forecast from the time of day\n")
    print(
        f"Written by `python benchmarks/forecast.py` (seed {SEED}), which says what is compared.\n"
    )
    print("| start-up | forecast | target | SLO %, the week | worst day | pod-h / work | J |")
    print("|---|---|---|---|---|---|---|")
    for start, law, target in product(starts, LAWS, targets):
        of = {
            c: v for c, v in found.items() if (c.start_up, c.law, c.target) == (start, law, target)
        }
        weights = [WEEK[case.day] for case in of]
        slo, cost = [v[0] for v in of.values()], [v[1] / v[2] for v in of.values()]
        j = [c + 10 * max(0.0, 0.99 - s) for s, c in zip(slo, cost, strict=True)]
        means = [float(np.average(of_week, weights=weights)) for of_week in (slo, cost, j)]
        print(
            f"| {start:.0f} s | {law} | {target:g} | {100 * means[0]:.2f} | "
            f"{100 * min(slo):.2f} | {means[1]:.3f} | {means[2]:.3f} |"
        )
    print(f"\n| start-up {starts[0]:.0f} s, target {targets[0]:g} | {' | '.join(LAWS)} |")
    print(f"|---|{'---|' * len(LAWS)}")
    for rates, day in product(("m-small", "m-large"), TEST_DAYS):
        cells = [found[Case(rates, day, starts[0], targets[0], law)] for law in LAWS]
        shown = " | ".join(f"{100 * one[0]:.2f} %, {one[1]:.1f} pod-h" for one in cells)
        print(f"| {rates}, {day} | {shown} |")
    print(f"{len(cases)} runs in {time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
