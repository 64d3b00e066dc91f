"""Draws docs/img/burst.png: a burst through the simulator, with U, replicas and threads over time.

    python hack/concept_picture.py

The law, the threads and the queue are the product's own (docs/simulate.md); the pods and the burst
are simulated, the same on every run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.autoscaler import law
from llmtaskpool_operator.autoscaler.reasons import reason_of
from llmtaskpool_operator.simulation.laws import Ours, PoolSample
from llmtaskpool_operator.simulation.service import LLAMA2_70B
from llmtaskpool_operator.simulation.simulator import Outcome, Setting, offered_work, simulate
from llmtaskpool_operator.simulation.trace import Trace, of_rows
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PICTURE = Path(__file__).parents[1] / "docs" / "img" / "burst.png"
PROMPT, OUTPUT = 1000, 200
LOAD = ((300, 2.0), (420, 5.0), (1080, 2.0))
"""(seconds, pods of work) one after the other: calm, burst, calm."""
SPEC = LLMTaskPoolSpec.model_validate(
    {
        "scaling": {"minReplicas": 1, "maxReplicas": 12},
        "threads": {"compute": {"initial": 8, "min": 4, "max": 256}},
    }
)
BLUE, GREY, ORANGE, GREEN = "#0969da", "#57606a", "#bc4c00", "#1a7f37"


class Watched(Ours):
    """The product's law; remembers what it saw and decided."""

    def __init__(self, spec: LLMTaskPoolSpec) -> None:
        super().__init__(spec)
        self.seen: list[tuple[PoolSample, law.Decision]] = []

    def decision(self, sample: PoolSample) -> law.Decision:
        """As the product's."""
        made = super().decision(sample)
        self.seen.append((sample, made))
        return made


def burst(setting: Setting) -> Trace:
    """Evenly spaced equal requests, as many as make these loads."""
    one = float(offered_work(of_rows([(0.0, PROMPT, OUTPUT, PROMPT)]), setting)[0])

    def arrivals() -> Iterator[float]:
        began = 0.0
        for seconds, pods in LOAD:
            count = round(seconds * pods / one)
            yield from (began + seconds * (n + 0.5) / count for n in range(count))
            began += seconds

    return of_rows((at, PROMPT, OUTPUT, PROMPT) for at in arrivals())


def draw(watched: Watched, outcome: Outcome) -> Figure:
    """Four panels over one time axis."""
    figure = Figure(figsize=(10, 8.6), layout="constrained")
    FigureCanvasAgg(figure)
    load, u, replicas, threads = figure.subplots(4, 1, sharex=True)
    minutes = [sample.now / 60 for sample, _ in watched.seen]
    _load(load, outcome)
    u.plot(minutes, [d.utilization for _, d in watched.seen], color=BLUE, label="U")
    u.axhline(SPEC.scaling.target_utilization, color=GREY, linestyle="--", label="U_target")
    u.set_ylabel("U")
    u.set_title("U: running and waiting work over N", loc="left")
    at = [moment.at / 60 for moment in outcome.moments]
    asked = [moment.asked for moment in outcome.moments]
    ready = [moment.ready for moment in outcome.moments]
    replicas.step(at, asked, where="post", color=BLUE, label="asked for")
    replicas.step(at, ready, where="post", color=GREEN, label="ready (60 s later)")
    replicas.yaxis.get_major_locator().set_params(integer=True)
    replicas.set_ylabel("replicas")
    replicas.set_title("N of replicas, decided every 5 s", loc="left")
    each = [_each(s, "threads") for s, _ in watched.seen]
    busy = [_each(s, "running") for s, _ in watched.seen]
    threads.plot(minutes, each, color=BLUE, label="threads")
    threads.plot(minutes, busy, color=ORANGE, linewidth=1, label="in use")
    threads.set_ylabel("per pod")
    threads.set_title("N of threads in each pod, decided every second", loc="left")
    threads.set_xlabel("minutes")
    _first_rise(replicas, watched)
    for axes in (load, u, replicas, threads):
        axes.set_ylim(0, None)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right", fontsize=9)
    figure.suptitle("N_new = N + α (U − U_target): a burst, simulated")
    return figure


def _each(sample: PoolSample, what: str) -> float | None:
    """The mean over the pods that take tasks."""
    values = [getattr(pod, what) for pod in sample.serving]
    return sum(values) / len(values) if values else None


def _load(axes: Any, outcome: Outcome) -> None:
    edges, pods = [0.0], [LOAD[0][1]]
    for seconds, level in LOAD:
        edges.append(edges[-1] + seconds / 60)
        pods.append(level)
    axes.step(edges, pods, where="pre", color=GREY, label="arriving work, in pods")
    axes.set_ylabel("pods of work")
    axes.set_title("What is asked", loc="left")
    queue = axes.twinx()
    at = [moment.at / 60 for moment in outcome.moments]
    queue.plot(at, [m.queued for m in outcome.moments], color=ORANGE, linewidth=1)
    queue.set_ylabel("tasks that wait", color=ORANGE)
    queue.set_ylim(0, None)


def _first_rise(axes: Any, watched: Watched) -> None:
    """The reason of the first decision to grow, in the operator's own words."""
    start = LOAD[0][0]
    rises = (d for s, d in watched.seen if s.now > start and d.desired > d.current)
    made = next(rises)
    axes.annotate(
        reason_of(made),
        (made.at / 60, made.desired),
        xytext=(8.3, 1.0),
        fontsize=8,
        arrowprops={"arrowstyle": "->", "color": GREY},
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )


def run() -> tuple[Watched, Outcome]:
    """The burst, simulated."""
    setting = Setting(SPEC, LLAMA2_70B, initial_replicas=3)
    watched = Watched(SPEC)
    return watched, simulate(burst(setting), setting, watched)


def main() -> int:
    """Simulate and draw."""
    watched, outcome = run()
    draw(watched, outcome).savefig(PICTURE, dpi=100, metadata={"Software": None})
    sys.stdout.write(
        f"{PICTURE.name}: {outcome.requests} requests, {100 * outcome.slo:.1f} % within their "
        f"objectives, {outcome.pod_hours:.2f} pod-hours, {outcome.actions} changes, "
        f"{outcome.flaps} flaps\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
