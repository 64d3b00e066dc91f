"""Simulated requests per second of CPU time: the pods alone, and whole runs of laws.

python benchmarks/simulator_speed.py
"""

from __future__ import annotations

import time
from math import ceil, inf

from control_scenarios import scenarios
from llmtaskpool_operator.simulation.comparison import run
from llmtaskpool_operator.simulation.fleet import Fleet
from llmtaskpool_operator.simulation.pod import Pod

SCENARIOS = {"conv": 18, "msmall": 10}
"""With the best fixed number of pods of the study."""


def main() -> None:
    """Print a line for each."""
    for one in scenarios():
        if one.name not in SCENARIOS:
            continue
        began = time.process_time()
        fleet = Fleet(
            one.setting.model, one.trace, tpot_slo_seconds=one.setting.spec.slo.tpot_seconds,
            queue=None, ageing_seconds=inf,
        )  # fmt: skip
        for place in range(SCENARIOS[one.name]):
            fleet.add(Pod(f"pod-{place}", 0.0, 0.0, 64))
            fleet.open(place, 0.0)
        fleet.advance(ceil(one.trace.seconds) + 3600.0)
        assert fleet.finished == len(one.trace)
        _told(one.name, "the pods alone", len(one.trace), began)
        for law in ("keda-concurrency", "ours"):
            began = time.process_time()
            run(law, one.trace, one.setting)
            _told(one.name, law, len(one.trace), began)


def _told(name: str, what: str, count: int, began: float) -> None:
    spent = time.process_time() - began
    print(f"{name:8} {what:18} {count / spent:9.0f} requests/s  ({count} in {spent:.1f} s)")


if __name__ == "__main__":
    main()
