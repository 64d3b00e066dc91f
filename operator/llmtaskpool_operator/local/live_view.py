"""What a local pool shows while it runs: a live table, plain lines, or JSON lines.

Three ways to tell one thing, a Snapshot; which one is chosen by ``view_for``. Pure rendering:
nothing here asks a worker or decides.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from llmtaskpool_worker.contract import LaneName, LaneState
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

LINES_SHOWN = 6
_PHASE_COLORS = {"ready": "green", "draining": "yellow", "starting": "cyan", "failed": "red"}


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One worker as shown. ``loading`` is its slowest model's (stage, fraction 0 to 1)."""

    id: str
    phase: str
    age_seconds: float
    lanes: dict[LaneName, LaneState] = field(default_factory=dict)
    connections: int = 0
    loading: tuple[str, float] | None = None
    rss_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The pool as shown, at one moment. ``utilization`` is U of the replica law."""

    pool: str
    url: str
    desired: int
    ready: int
    limits: tuple[int, int]
    utilization: float | None
    target: float
    workers: tuple[WorkerRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """Something that happened, ``at`` seconds after the start."""

    at: float
    kind: Literal["decision", "notice"]
    text: str
    data: dict[str, Any] = field(default_factory=dict)


class View(Protocol):
    """Shows what happens. ``close`` leaves the terminal as it was."""

    def show(self, snapshot: Snapshot) -> None:
        """The pool as it is now."""

    def tell(self, line: Line) -> None:
        """Something happened."""

    def below(self, renderable: RenderableType | None) -> None:
        """What else to show under the table (the demo's progress); None: nothing."""

    def say(self, renderable: RenderableType) -> None:
        """Print something that stays."""

    def close(self) -> None:
        """Show no more."""


def view_for(output: Literal["text", "json"], console: Console) -> View:
    """A live table on a terminal, plain lines elsewhere, JSON lines when asked for."""
    if output == "json":
        return JsonView()
    return LiveView(console) if console.is_terminal else PlainView(console)


class LiveView:
    """A table that is drawn anew, for terminals."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lines: deque[Line] = deque(maxlen=LINES_SHOWN)
        self._snapshot: Snapshot | None = None
        self._below: RenderableType | None = None
        self._live = Live(
            console=console, auto_refresh=False, transient=True, vertical_overflow="crop"
        )
        self._live.start()

    def show(self, snapshot: Snapshot) -> None:
        """Draw it."""
        self._snapshot = snapshot
        self._draw()

    def tell(self, line: Line) -> None:
        """Draw it among the last lines."""
        self._lines.append(line)
        self._draw()

    def below(self, renderable: RenderableType | None) -> None:
        """Draw it under the table."""
        self._below = renderable
        self._draw()

    def say(self, renderable: RenderableType) -> None:
        """Print it above the table."""
        self._console.print(renderable, soft_wrap=isinstance(renderable, Text))

    def close(self) -> None:
        """Take the table away."""
        self._live.stop()

    def _draw(self) -> None:
        parts: list[RenderableType] = []
        if self._snapshot is not None:
            parts += [header(self._snapshot), worker_table(self._snapshot.workers)]
        parts += [line_text(line) for line in self._lines]
        if self._below is not None:
            parts.append(self._below)
        self._live.update(Group(*parts), refresh=True)


class PlainView:
    """One line per event, for files and pipes."""

    def __init__(self, console: Console, *, every_seconds: float = 10.0) -> None:
        self._console = console
        self._every = every_seconds
        self._shown: tuple[int, int, tuple[str, ...]] | None = None
        self._loading: dict[str, int] = {}

    def show(self, snapshot: Snapshot) -> None:
        """Print a line when workers came, went or changed their phase, and of slow loading."""
        phases = tuple(f"{row.id} {row.phase}" for row in snapshot.workers)
        state = (snapshot.desired, snapshot.ready, phases)
        if state != self._shown:
            self._shown = state
            self._print(
                f"replicas: {snapshot.ready} ready of {snapshot.desired}"
                + (f" ({', '.join(phases)})" if phases else "")
            )
        for row in snapshot.workers:
            if row.loading is not None and row.phase == "starting":
                stage, fraction = row.loading
                tenth = int(fraction * 10)
                if tenth > self._loading.get(row.id, 0):
                    self._loading[row.id] = tenth
                    self._print(f"{row.id} loads: {stage} {fraction:.0%}")

    def tell(self, line: Line) -> None:
        """Print it."""
        self._print(line_text(line).plain)

    def below(self, renderable: RenderableType | None) -> None:
        """Nothing is drawn twice here."""

    def say(self, renderable: RenderableType) -> None:
        """Print it."""
        self._console.print(renderable, soft_wrap=isinstance(renderable, Text))

    def close(self) -> None:
        """Nothing to do."""

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class JsonView:
    """One JSON object per event on standard output."""

    def __init__(self, write: Callable[[str], object] = sys.stdout.write) -> None:
        self._write = write
        self._shown: dict[str, Any] | None = None

    def show(self, snapshot: Snapshot) -> None:
        """Write it when replicas, phases or threads changed."""
        value = {
            "desired": snapshot.desired,
            "ready": snapshot.ready,
            "workers": {
                row.id: {
                    "phase": row.phase,
                    "threads": {lane.value: state.threads for lane, state in row.lanes.items()},
                }
                for row in snapshot.workers
            },
        }
        if value != self._shown:
            self._shown = value
            self.write({"event": "state", **value, "utilization": snapshot.utilization})

    def tell(self, line: Line) -> None:
        """Write it."""
        self.write({"event": line.kind, "at": round(line.at, 3), "message": line.text, **line.data})

    def below(self, renderable: RenderableType | None) -> None:
        """Nothing: it is for eyes."""

    def say(self, renderable: RenderableType) -> None:
        """Nothing: it is for eyes."""

    def close(self) -> None:
        """Nothing to do."""

    def write(self, value: dict[str, Any]) -> None:
        """One line."""
        self._write(json.dumps(value) + "\n")
        sys.stdout.flush()


def header(snapshot: Snapshot) -> Text:
    """The pool in one line."""
    text = Text()
    text.append(f"{snapshot.pool} ", style="bold")
    text.append(f"{snapshot.url}/v1  ", style="cyan")
    low, high = snapshot.limits
    text.append(f"replicas {snapshot.ready} ready / {snapshot.desired} desired ({low}..{high})  ")
    if snapshot.utilization is not None:
        over = snapshot.utilization > snapshot.target
        text.append("utilization ")
        text.append(f"{snapshot.utilization:.2f}", style="bold yellow" if over else "green")
        text.append(f" of target {snapshot.target:.2f}")
    return text


def worker_table(rows: Sequence[WorkerRow]) -> Table:
    """The workers, one row each."""
    table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
    for name in ("worker", "phase", "compute", "N", "active", "queued", "io", "N", "active",
                 "queued", "memory", "age"):  # fmt: skip
        right = name in ("N", "active", "queued", "memory", "age")
        table.add_column(name, justify="right" if right else "left")
    for row in rows:
        cells: list[RenderableType] = [row.id, _phase(row)]
        for lane in (LaneName.COMPUTE, LaneName.IO):
            cells += _lane_cells(row.lanes.get(lane))
        memory = "" if row.rss_bytes is None else f"{row.rss_bytes / 2**20:.0f} MiB"
        table.add_row(*cells, memory, f"{row.age_seconds:.0f} s")
    return table


def _phase(row: WorkerRow) -> RenderableType:
    if row.loading is not None and row.phase == "starting":
        stage, fraction = row.loading
        return Text(f"{stage} {fraction:.0%}", style="cyan")
    return Text(row.phase, style=_PHASE_COLORS.get(row.phase, ""))


def _lane_cells(lane: LaneState | None) -> list[RenderableType]:
    if lane is None:
        return ["", "", "", ""]
    used = min(1.0, lane.active / lane.threads) if lane.threads else 0.0
    return [
        ProgressBar(total=1.0, completed=used, width=8, finished_style="yellow"),
        str(lane.threads),
        str(lane.active),
        Text(str(lane.queued), style="yellow" if lane.queued else ""),
    ]


def line_text(line: Line) -> Text:
    """A line of the log, with the seconds since the start before it."""
    text = Text(f"{line.at:6.1f} s  ", style="dim")
    text.append(line.text, style="" if line.kind == "notice" else "bold")
    return text
