"""What runs came to, for people and for programs: JSON, a table, plots."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from rich.table import Table

from llmtaskpool_operator.simulation.simulator import Outcome

_ROWS, _LEAST_COLUMNS, _MOST_COLUMNS = 16, 40, 120


def as_json(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The numbers of each law; a time that nobody has (no request was served) is null."""
    return {
        "laws": [
            {
                "law": outcome.law,
                "slo": _known(outcome.slo, 6),
                "pod_hours": round(outcome.pod_hours, 4),
                "flaps": outcome.flaps,
                "actions": outcome.actions,
                "ttft_p50_s": _known(outcome.ttft_p50, 4),
                "ttft_p95_s": _known(outcome.ttft_p95, 4),
                "ttft_p99_s": _known(outcome.ttft_p99, 4),
                "tpot_missed": _known(outcome.tpot_missed, 6),
                "requests": outcome.requests,
                "unfinished": outcome.unfinished,
                "max_replicas": max((m.asked for m in outcome.moments), default=0),
            }
            for outcome in outcomes
        ]
    }


def table(outcomes: Sequence[Outcome]) -> Table:
    """One line for each law."""
    made = Table(box=None, header_style="bold")
    made.add_column("law", no_wrap=True, min_width=17)
    for title in ("SLO %", "pod-h", "TTFT p50", "p95", "p99 s", "slow %", "changes"):
        made.add_column(title, justify="right")
    made.add_column("flaps", justify="right")
    for one in outcomes:
        made.add_row(
            one.law, f"{100 * one.slo:.2f}", f"{one.pod_hours:.2f}",
            *(f"{value:.2f}" for value in (one.ttft_p50, one.ttft_p95, one.ttft_p99)),
            f"{100 * one.tpot_missed:.2f}", str(one.actions), str(one.flaps),
        )  # fmt: skip
    return made


def terminal_plot(outcome: Outcome, columns: int) -> str:
    """Replicas over time as text, without colours; empty where there is nothing to draw."""
    if len(outcome.moments) < 2:
        return ""
    import plotext

    figure = plotext.figure
    figure.clear()
    figure.plot_size(min(max(columns, _LEAST_COLUMNS), _MOST_COLUMNS), _ROWS)
    figure.title(f"replicas that {outcome.law} asked for, by minutes")
    signal = figure.signal(*_steps(outcome), marker="braille")
    signal.lines()
    figure.draw(signal)
    return str(plotext.uncolorize(str(figure.build())))


def write_plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """A PNG: replicas asked for above, tasks that wait below. Raises OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    for outcome in outcomes:
        minutes = [moment.at / 60 for moment in outcome.moments]
        label = f"{outcome.law}: {100 * outcome.slo:.1f} %, {outcome.pod_hours:.1f} pod-h"
        asked = [moment.asked for moment in outcome.moments]
        above.step(minutes, asked, where="post", label=label, linewidth=1.2)
        below.plot(minutes, [moment.queued for moment in outcome.moments], linewidth=1.0)
    above.set_ylabel("replicas asked for")
    below.set_ylabel("tasks that wait")
    below.set_xlabel("minutes")
    for axes in (above, below):
        axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
        axes.grid(alpha=0.3)
    if outcomes:
        above.legend(fontsize=8, loc="upper left")
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None})


def _known(value: float, digits: int) -> float | None:
    return round(value, digits) if isfinite(value) else None


def _steps(outcome: Outcome) -> tuple[list[float], list[int]]:
    """The corners of the staircase: a day has too many moments for a terminal."""
    times, asked = [0.0], [outcome.moments[0].asked]
    for moment in outcome.moments:
        if moment.asked != asked[-1]:
            times += [moment.at / 60, moment.at / 60]
            asked += [asked[-1], moment.asked]
    times.append(outcome.moments[-1].at / 60)
    asked.append(asked[-1])
    return times, asked
