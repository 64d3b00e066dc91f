"""What a replay came to, for people and for programs: JSON, tables, plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

import plotext
from rich.table import Table
from rich.text import Text

from llmtaskpool_operator.autoscaler.reasons import reason_of
from llmtaskpool_operator.autoscaler.telling import rfc3339
from llmtaskpool_operator.replay.replay import Moment, Replay, Result

_ROWS, _LEAST_COLUMNS, _MOST_COLUMNS = 16, 40, 120
_PLOT_POINTS = 400


@dataclass(frozen=True, slots=True)
class Difference:
    """A decision after which recorded and replayed N differ, and why each is what it is."""

    at: float
    recorded: tuple[int, int]
    replayed: tuple[int, int]
    recorded_reason: str | None
    replayed_reason: str


def differences(made: Replay) -> tuple[Difference, ...]:
    """The moments at which either N moved and after which they are not the same."""
    return tuple(
        Difference(
            at=moment.at,
            recorded=(moment.found[0], moment.left[0]),
            replayed=(moment.found[1], moment.left[1]),
            recorded_reason=moment.recorded_reason,
            replayed_reason=reason_of(moment.decision),
        )
        for place, moment in enumerate(made.moments)
        if moment.left[0] != moment.left[1] and (moment.changed or place == 0)
    )


def as_json(pool: str, made: Replay) -> dict[str, Any]:
    """All numbers; times are RFC 3339 in UTC."""
    return {
        "pool": pool,
        "from": rfc3339(made.moments[0].at),
        "to": rfc3339(made.moments[-1].at),
        "decisions": len(made.moments),
        "mode": made.mode.value,
        "start_up_s": round(made.start_up, 3),
        "start_up_measured": made.start_up_measured,
        "gap_s": round(made.gap_seconds, 3),
        "reproduced": {"same": made.reproduced, "of": made.decided},
        "recorded": _numbers(made.recorded),
        "replayed": _numbers(made.replayed),
        "differences": [
            asdict(one) | {"at": rfc3339(one.at), "after_s": round(one.at - made.moments[0].at, 3)}
            for one in differences(made)
        ],
        "moments": [
            {
                "at": moment.at,
                "recorded": moment.left[0],
                "replayed": moment.left[1],
                "ready": moment.ready,
                "demand": [_rounded(value) for value in moment.demand],
                "backlog": [_rounded(value) for value in moment.backlog],
            }
            for moment in made.moments
        ],
    }


def table(made: Replay, recorded: str) -> Table:
    """Recorded and replayed N, a line each; ``recorded`` is the first one's name."""
    shown = Table(box=None, header_style="bold")
    shown.add_column("", no_wrap=True)
    titles = ("pod-h", "pods", "changes", "flaps", "overloaded", "short of pods", "backlog pod-s")
    for title in titles:
        shown.add_column(title, justify="right")
    for name, one in ((recorded, made.recorded), ("replayed", made.replayed)):
        shown.add_row(
            name,
            f"{one.pod_hours:.3f}",
            f"{one.least}" if one.least == one.most else f"{one.least} to {one.most}",
            str(one.changes),
            str(one.flaps),
            span(one.overloaded_seconds),
            f"{one.shortfall:.1f}",
            f"{one.backlog:.0f}",
        )
    return shown


def moments_that_differ(made: Replay, most: int) -> Table:
    """The first ``most`` differences, with the reason of each side that moved."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    shown.add_column("after", justify="right")
    shown.add_column("recorded", justify="right")
    shown.add_column("replayed", justify="right")
    shown.add_column("why", overflow="fold")
    began = made.moments[0].at
    for one in differences(made)[:most]:
        why = one.replayed_reason
        if one.replayed[0] == one.replayed[1] and one.recorded[0] != one.recorded[1]:
            why = f"{why} (recorded: {one.recorded_reason or 'somebody else decided'})"
        shown.add_row(
            span(one.at - began), _change(*one.recorded), _change(*one.replayed), Text(why)
        )
    return shown


def terminal_plot(made: Replay, columns: int) -> str:
    """Both N over time, and the demand, as text without colours."""
    figure = plotext.figure
    figure.clear()
    figure.plot_size(min(max(columns, _LEAST_COLUMNS), _MOST_COLUMNS), _ROWS)
    figure.title("replicas by minutes: recorded ⠒, replayed *; demand in pods .")
    few = made.moments[:: max(1, len(made.moments) // _PLOT_POINTS)]
    began = made.moments[0].at
    minutes = [(moment.at - began) / 60 for moment in few]
    figure.draw(figure.signal(minutes, [moment.demand[0] for moment in few], marker="."))
    for which, marker in ((0, "braille"), (1, "*")):
        signal = figure.signal(*_steps(made.moments, which), marker=marker)
        signal.lines()
        figure.draw(signal)
    return str(plotext.uncolorize(str(figure.build())))


def write_plot(pool: str, made: Replay, path: Path) -> None:
    """A PNG: both N over the demand above, the backlogs below. Raises OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    began = made.moments[0].at
    minutes = [(moment.at - began) / 60 for moment in made.moments]
    demand = [moment.demand[0] for moment in made.moments]
    above.fill_between(minutes, demand, step="post", alpha=0.25, color="gray", label="demand")
    for which, one in enumerate((made.recorded, made.replayed)):
        name = ("recorded", "replayed")[which]
        sizes = [moment.left[which] for moment in made.moments]
        label = f"{name}: {one.pod_hours:.2f} pod-h, overloaded {span(one.overloaded_seconds)}"
        above.step(minutes, sizes, where="post", label=label, linewidth=1.4)
        below.plot(minutes, [m.backlog[which] for m in made.moments], linewidth=1.0, label=name)
    above.set_title(f"{pool}, from {rfc3339(began)}", fontsize=10)
    above.set_ylabel("replicas asked for")
    below.set_ylabel("backlog in pod-seconds")
    below.set_xlabel("minutes")
    for axes in (above, below):
        axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper left")
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None})


def span(seconds: float) -> str:
    """A time for people: 42 s, 7.5 min, 3.2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def clock(at: float) -> str:
    """A moment for people, in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _numbers(one: Result) -> dict[str, Any]:
    return {
        "pod_hours": round(one.pod_hours, 4),
        "changes": one.changes,
        "flaps": one.flaps,
        "overloaded_s": round(one.overloaded_seconds, 3),
        "shortfall_pods": _rounded(one.shortfall),
        "backlog_pod_s": _rounded(one.backlog),
        "least_replicas": one.least,
        "most_replicas": one.most,
    }


def _rounded(value: float) -> float | None:
    return round(value, 4) if isfinite(value) else None


def _change(before: int, after: int) -> str:
    return str(after) if before == after else f"{before} -> {after}"


def _steps(moments: Sequence[Moment], which: int) -> tuple[list[float], list[int]]:
    """The corners of the staircase, in minutes."""
    began = moments[0].at
    times, sizes = [0.0], [moments[0].left[which]]
    for moment in moments:
        if moment.left[which] != sizes[-1]:
            times += [(moment.at - began) / 60] * 2
            sizes += [sizes[-1], moment.left[which]]
    times.append((moments[-1].at - began) / 60)
    sizes.append(sizes[-1])
    return times, sizes
