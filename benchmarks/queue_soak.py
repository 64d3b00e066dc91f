"""Breaks the shared queue for minutes and judges what clients and workers saw: the long fault runs.

    python benchmarks/queue_soak.py                 # all of the table in queue_soak.md
    python benchmarks/queue_soak.py --only cut      # one of them
    python benchmarks/queue_soak.py --scale 0.1     # a tenth of the tasks and kills

Each run has four worker processes and two clients, on real servers of this machine; the short ones
in tests/worker/brokers/test_queue_faults.py are the same, and so is the judge. What is not
explained ends it with an error.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from queue_soak.checker import check
from queue_soak.load import Mix
from queue_soak.outside import Breaking, Soak

NEVER = 1e9
CALM = Breaking(kill_every=NEVER, stop_every=NEVER, server_every=NEVER, mix=Mix(poisonous=0.0005))
RUNS: dict[str, tuple[str, Breaking]] = {
    "workers": (
        "50,000 tasks, a SIGKILL of a worker each 10 s",
        replace(CALM, seconds=250.0, tasks_per_second=200.0, kill_every=10.0),
    ),
    "always": (
        "SIGKILL and start of the server 50 times, fsync always",
        replace(CALM, seconds=154.0, tasks_per_second=100.0, server_every=3.0),
    ),
    "cut": (
        "the same, everysec, and each takes the file's last second",
        replace(
            CALM,
            seconds=154.0,
            tasks_per_second=100.0,
            server_every=3.0,
            fsync="everysec",
            cut=True,
        ),
    ),
    "stopped": (
        "SIGSTOP of a worker for 10 leases",
        replace(CALM, seconds=60.0, tasks_per_second=100.0, stop_every=5.0, stop_leases=10.0),
    ),
    "cut off": (
        "a worker is cut off from the server for 5 leases and works on, then all it said arrives",
        replace(CALM, seconds=60.0, tasks_per_second=100.0, cut_off_every=6.0),
    ),
    "everything": (
        "all of these at once, on Redis 7.0, old and new workers, clocks that are an hour wrong",
        Breaking(seconds=90.0, kind="redis", versions=(1, 2), mix=Mix(poisonous=0.0005)),
    ),
}


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--only", nargs="*", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    print(
        "| what breaks | accepted | gone | committed | dead letters | killed, stopped | explained |"
    )
    print("| --- | ---: | ---: | ---: | ---: | --- | --- |", flush=True)
    failed = False
    for name in a.only:
        told, plan = RUNS[name]
        folder = Path(tempfile.mkdtemp(prefix=f"queue-soak-{name}-"))
        began = time.monotonic()
        soak = Soak(folder, replace(plan, seconds=plan.seconds * a.scale), a.seed)
        problems = check(soak.go())
        n = soak.counts
        broken = ", ".join(f"{len(cases)} {what}" for what, cases in problems.items())
        failed = failed or bool(problems)
        killed = f"{n['workers killed']} workers, {n['servers killed']} servers; "
        killed += f"{n['workers stopped']} workers stopped, {n['workers cut off']} cut off"
        print(
            f"| {told} | {n['accepted']:,} | {n['accepted and gone']} | {n['committed']:,} "
            f"| {n['dead letters']} | {killed} | {broken or 'yes'} |",
            flush=True,
        )
        took = time.monotonic() - began
        print(f"{name}: {took:.0f} s, load {os.getloadavg()[0]:.1f}, {folder}", file=sys.stderr)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
