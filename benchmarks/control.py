"""All laws over all scenarios: prints and writes benchmarks/control.md.

    python benchmarks/control.py [--jobs 2] [--scenarios conv,code] [--out FILE]

The same numbers on every run: the scenarios have a seed and the simulator has no randomness.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from control_scenarios import Scenario, scenarios
from control_tables import markdown
from llmtaskpool_operator.autoscaler.law import DEFAULTS
from llmtaskpool_operator.simulation.clairvoyant import clairvoyant
from llmtaskpool_operator.simulation.comparison import OURS, law_named, setting_for
from llmtaskpool_operator.simulation.simulator import Outcome, Setting, offered_work, simulate
from rich.console import Console
from rich.progress import Progress

CLAIRVOYANT = "clairvoyant"
GRIDS: dict[str, tuple[float, ...]] = {
    "ours": (0.8, 0.85, 0.9, 0.95, 1.0),
    "ours, newest first": (0.8, 0.9, 1.0),
    "ours, replicas only": (0.8, 0.9, 1.0),
    "literal": (0.5, 0.8),
    "hpa-gpu": (0.5, 0.8),
    "hpa-sm": (0.6, 0.7, 0.75, 0.8, 0.85, 0.9),
    "keda-queue": (1, 5, 20),
    "keda-concurrency": (4, 8, 12, 16, 20, 24, 30),
    "kpa": (8, 12, 16, 20, 24),
    "ray-serve": (8, 12, 16, 20, 24),
}
"""Each family with the settings that it may choose from; ours is shown at its default."""
LONG = frozenset({"msmall"})
"""Too long for the grids: run with the setting that was chosen on the others."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run; ``target`` None: the clairvoyant, which has none."""

    scenario: str
    law: str
    target: float | None


@cache
def _scenarios() -> dict[str, Scenario]:
    return {scenario.name: scenario for scenario in scenarios()}


def setting_of(law: str, setting: Setting) -> tuple[str, Setting]:
    """The simulator's name of a row's law, and the pods as that row has them."""
    if law == "ours, newest first":
        queue = setting.spec.queue.model_copy(
            # Late is what has missed its first-token objective.
            update={"policy": "newest-first", "ageing_seconds": setting.spec.slo.ttft_seconds}
        )
        return OURS, replace(setting, spec=setting.spec.model_copy(update={"queue": queue}))
    if law == "ours, replicas only":
        return OURS, setting_for("hpa-sm", setting)
    return law, setting_for(law, setting)


def done(job: Job) -> Outcome:
    """Run a job; the moments, which only plots need, stay behind."""
    scenario = _scenarios()[job.scenario]
    if job.law == CLAIRVOYANT:
        fewer = job.scenario in LONG
        outcome = clairvoyant(
            scenario.trace, scenario.setting, repairs=3 if fewer else 8, thinnings=3 if fewer else 8
        )
    else:
        name, setting = setting_of(job.law, scenario.setting)
        outcome = simulate(scenario.trace, setting, law_named(name, setting, job.target))
    return replace(outcome, law=job.law, moments=(), changes=())


def all_done(jobs: list[Job], workers: int) -> dict[Job, Outcome]:
    """Run jobs in processes, with a bar."""
    found: dict[Job, Outcome] = {}
    with (
        ProcessPoolExecutor(workers) as pool,
        Progress(console=Console(stderr=True), transient=True) as bar,
    ):
        task = bar.add_task("runs", total=len(jobs))
        running = {pool.submit(done, job): job for job in jobs}
        for future in as_completed(running):
            found[running[future]] = future.result()
            bar.advance(task)
    return found


def cost(found: dict[Job, Outcome], law: str, target: float, names: list[str]) -> float:
    """J of the study: pod-hours over the clairvoyant's + 10 x what is missing below 99 %."""
    total = 0.0
    for name in names:
        least = found[Job(name, CLAIRVOYANT, None)].pod_hours
        outcome = found[Job(name, law, target)]
        total += outcome.pod_hours / least + 10 * max(0.0, 0.99 - outcome.slo)
    return total / len(names)


def main() -> None:
    """Run all, choose each family's setting, print and write."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--jobs", type=int, default=2)
    options.add_argument("--scenarios", default="", help="only these, by name and comma")
    options.add_argument("--out", type=Path, default=Path(__file__).with_name("control.md"))
    given = options.parse_args()
    began = time.monotonic()
    chosen = [n for n in _scenarios() if not given.scenarios or n in given.scenarios.split(",")]
    short = [name for name in chosen if name not in LONG]
    long = [name for name in chosen if name in LONG]
    found = all_done(
        [Job(name, CLAIRVOYANT, None) for name in long + short]
        + [Job(n, law, t) for n in short for law, grid in GRIDS.items() for t in grid],
        given.jobs,
    )
    best = {
        law: min(grid, key=lambda t, law=law: cost(found, law, t, short))
        for law, grid in GRIDS.items()
    } | {"ours": DEFAULTS.target}
    found |= all_done([Job(n, law, best[law]) for n in long for law in GRIDS], given.jobs)
    costs = {law: cost(found, law, target, short) for law, target in best.items()}
    by_key = {(job.scenario, job.law, job.target): outcome for job, outcome in found.items()}
    about = {}
    for name in chosen:
        one = _scenarios()[name]
        pods = float(offered_work(one.trace, one.setting).sum()) / one.trace.seconds
        about[name] = (one, pods)
    text = markdown(about, GRIDS, best, costs, by_key, short)
    given.out.write_text(text)
    print(text)
    runs = sum(len(_scenarios()[job.scenario].trace) for job in found if job.target is not None)
    spent = time.monotonic() - began
    sys.stderr.write(
        f"{spent:.0f} s with {given.jobs} processes; {runs} requests beside the clairvoyant's\n"
    )


if __name__ == "__main__":
    main()
