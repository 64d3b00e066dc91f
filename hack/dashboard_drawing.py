"""A Grafana dashboard's panels as matplotlib draws them, from what Prometheus answered."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import DateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

DASHBOARD = Path(__file__).parents[1] / "helm" / "llmtaskpool" / "files" / "dashboard.json"
Answers = dict[str, list[dict[str, Any]]]
"""For each expression, Prometheus' series: `metric` (labels) and `values` (time, text)."""
COLUMNS, INCH_PER_COLUMN, INCH_PER_ROW = 24, 0.78, 0.40
GREY = "#57606a"
_SHORT = (" ", "k", "M", "G")


def panels() -> list[dict[str, Any]]:
    """All panels, rows too, as the dashboard has them."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> list[str]:
    """What the panels ask."""
    return [target["expr"] for panel in panels() for target in panel.get("targets", ())]


def without_data(answers: Answers) -> list[str]:
    """Titles of panels that show nothing and don't say why (`noValue`)."""
    return [
        panel["title"]
        for panel in panels()
        if panel["type"] != "row"
        and "noValue" not in panel["fieldConfig"]["defaults"]
        and not any(answers.get(target["expr"]) for target in panel["targets"])
    ]


def draw(answers: Answers) -> Figure:
    """The whole board."""
    rows = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels())
    size = (COLUMNS * INCH_PER_COLUMN, rows * INCH_PER_ROW)
    figure = Figure(figsize=size, facecolor="#f6f8fa")
    FigureCanvasAgg(figure)
    for panel in panels():
        place = panel["gridPos"]
        top = 1 - place["y"] / rows
        if panel["type"] == "row":
            figure.text(
                0.006, top - 0.6 / rows, panel["title"], fontsize=12, weight="bold", va="center"
            )
            continue
        left, width = place["x"] / COLUMNS, place["w"] / COLUMNS
        bottom, height = top - place["h"] / rows, place["h"] / rows
        frame = figure.add_axes((left + 0.003, bottom + 0.002, width - 0.006, height - 0.004))
        frame.set(xticks=[], yticks=[])
        frame.set_title(
            panel["title"], loc="left", fontsize=9, weight="bold", y=1.0, pad=-11, x=0.01
        )
        small = panel["type"] == "stat"
        inner = (
            (left + 0.006, bottom + 0.004, width - 0.012, height * 0.3)
            if small
            else (left + 0.032, bottom + height * 0.27, width - 0.042, height * 0.6)
        )
        axes = figure.add_axes(inner)
        (_stat if small else _series)(axes, panel, answers)
    return figure


def _lines(panel: dict[str, Any], answers: Answers) -> Iterator[tuple[str, list[Any], list[float]]]:
    """(legend, times, values) of each series; gaps are NaN, as in Grafana."""
    for target in panel["targets"]:
        for series in answers.get(target["expr"], ()):
            labels = series["metric"]
            legend = re.sub(
                r"\{\{(\w+)\}\}",
                lambda found, of=labels: of.get(found[1], ""),
                target["legendFormat"],
            )
            times = [datetime.fromtimestamp(float(at), UTC) for at, _ in series["values"]]
            values = [float(value) for _, value in series["values"]]
            yield legend, times, values


def _stat(axes: Axes, panel: dict[str, Any], answers: Answers) -> None:
    axes.axis("off")
    text = "No data"
    for _, times, values in _lines(panel, answers):
        axes.fill_between(times, values, color="#2da44e", alpha=0.35, linewidth=0)
        axes.set_ylim(0, max(1e-9, *values) * 1.1)
        text = shown(values[-1], _unit(panel))
    axes.text(
        0.5,
        1.75,
        text,
        transform=axes.transAxes,
        fontsize=19,
        ha="center",
        va="center",
        color="#1a7f37",
    )


def _series(axes: Axes, panel: dict[str, Any], answers: Answers) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults["custom"]
    lines = list(_lines(panel, answers))
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    style = "steps-post" if custom.get("lineInterpolation") == "stepAfter" else "default"
    if stacked and lines:
        _stack(axes, lines)
    else:
        for legend, times, values in lines:
            (line,) = axes.plot(times, values, label=legend, linewidth=1.2, drawstyle=style)
            if custom["fillOpacity"]:
                axes.fill_between(times, values, color=line.get_color(), alpha=0.1, linewidth=0)
    if not lines:
        axes.text(
            0.5,
            0.5,
            defaults.get("noValue", "No data"),
            transform=axes.transAxes,
            ha="center",
            color=GREY,
        )
    highest = max((v for _, _, values in lines for v in values if isfinite(v)), default=1.0)
    axes.set_ylim(0, defaults.get("max") or (axes.get_ylim()[1] if highest > 0 else 1.0))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, _unit(panel))))
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M"))
    axes.tick_params(labelsize=7, colors=GREY)
    axes.locator_params(axis="y", nbins=5)
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if lines:
        axes.legend(
            loc="upper left", bbox_to_anchor=(-0.02, -0.13), ncols=min(4, len(lines)),
            fontsize=7, frameon=False, columnspacing=1.0, handlelength=1.2, borderaxespad=0,
        )  # fmt: skip


def _stack(axes: Axes, lines: list[tuple[str, list[Any], list[float]]]) -> None:
    times = sorted({at for _, each, _ in lines for at in each})
    rows = [dict(zip(each, values, strict=True)) for _, each, values in lines]
    heights = [[row.get(at, 0.0) for at in times] for row in rows]
    axes.stackplot(times, heights, labels=[legend for legend, _, _ in lines], alpha=0.6)


def _unit(panel: dict[str, Any]) -> str:
    return str(panel["fieldConfig"]["defaults"]["unit"])


def shown(value: float, unit: str) -> str:
    """A number as Grafana writes it in this unit, nearly."""
    if not isfinite(value):
        return "-"
    if unit == "percentunit":
        return f"{100 * value:.3g}%"
    if unit == "bytes":
        power = next((p for p in (3, 2, 1) if abs(value) >= 1024**p), 0)
        return f"{value / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB')[power]}"
    if unit == "s":
        return f"{value:.3g} s" if abs(value) >= 1 or value == 0 else f"{1000 * value:.3g} ms"
    if unit in ("reqps", "ops"):
        return f"{value:.3g} {'req/s' if unit == 'reqps' else 'ops/s'}"
    power = next((p for p in (3, 2, 1) if abs(value) >= 1000**p), 0)
    return f"{value / 1000**power:.3g}{_SHORT[power]}".strip()
