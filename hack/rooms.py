"""The rooms of both packages, as their imports draw them: run as `python hack/rooms.py`.

A room is what stands directly in a package: a folder, or a module. A room imports only rooms below
it, so each has a floor: 0 when it imports no other room of its package, else one above the highest
that it imports. Prints rooms, floors and arrows; `--write` draws them into docs/img, `--check`
ends with code 1 when there are more of them than a newcomer can hold, when one runs up, or when a
picture isn't current.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import sys
import textwrap
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import grimp
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
# This tree's packages, also where another one's are installed.
sys.path[:0] = [str(ROOT / "operator"), str(ROOT / "worker")]
PICTURES = ROOT / "docs" / "img"
PACKAGES = {
    "llmtaskpool_operator": ("operator", 9, 24),
    "llmtaskpool_worker": ("worker", 13, 36),
}
"""Each package with its short name and the most rooms and arrows that it may have."""
ENTRY = "__main__"
"""Stands on top, also where it imports the rooms below only when a command is called."""
_WIDTH, _BOX, _HIGH, _GAP = 960, 216, 74, 46
_STEP = _HIGH + _GAP


@dataclass(frozen=True, slots=True)
class Rooms:
    """A package's rooms with their floors, and which room imports which.

    ``ups`` are the arrows that close a circle: there is no floor on which they would run down.
    """

    package: str
    floors: Mapping[str, int]
    arrows: frozenset[tuple[str, str]]
    ups: frozenset[tuple[str, str]]

    def on(self, floor: int) -> list[str]:
        """The rooms of a floor, by name."""
        return sorted(room for room, its in self.floors.items() if its == floor)


def rooms_of(package: str, imports: Iterable[tuple[str, str]], names: Iterable[str]) -> Rooms:
    """The rooms that these imports (module, imported module) draw in a package."""
    arrows = frozenset(
        (one.split(".")[1], other.split(".")[1])
        for one, other in imports
        if one.count(".") and other.count(".") and one.split(".")[1] != other.split(".")[1]
    )
    rooms = sorted(set(names))
    below = {room: reached(room, arrows) for room in rooms}
    ups = frozenset((one, other) for one, other in arrows if one in below[other])
    down = arrows - ups
    floors: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in floors:
            floors[room] = max((1 + floor(low) for high, low in down if high == room), default=0)
        return floors[room]

    for room in rooms:
        floor(room)
    if ENTRY in floors:
        floors[ENTRY] = 1 + max(its for room, its in floors.items() if room != ENTRY)
    return Rooms(package, floors, arrows, ups)


def reached(room: str, arrows: Iterable[tuple[str, str]]) -> set[str]:
    """All rooms that a room imports, also by way of others."""
    found: set[str] = set()
    to_see = [room]
    while to_see:
        high = to_see.pop()
        new = {low for one, low in arrows if one == high} - found
        found |= new
        to_see += new
    return found


def seen() -> list[Rooms]:
    """Both packages as they are."""
    graph = grimp.build_graph(*PACKAGES)
    found = []
    for package in PACKAGES:
        modules = [one for one in graph.modules if one.startswith(f"{package}.")]
        imports = [
            (one, other)
            for one in modules
            for other in graph.find_modules_directly_imported_by(one)
            if other.startswith(f"{package}.")
        ]
        found.append(rooms_of(package, imports, [one.split(".")[1] for one in modules]))
    return found


def faults(rooms: Rooms) -> list[str]:
    """What a newcomer would stumble over."""
    name, most_rooms, most_arrows = PACKAGES[rooms.package]
    found = [f"{name}: {one} -> {other} runs up" for one, other in sorted(rooms.ups)]
    if len(rooms.floors) > most_rooms:
        found.append(f"{name}: {len(rooms.floors)} rooms, at most {most_rooms}")
    if len(rooms.arrows) > most_arrows:
        found.append(f"{name}: {len(rooms.arrows)} arrows, at most {most_arrows}")
    return found


def purpose(package: str, room: str) -> str:
    """The first sentence of a room's docstring."""
    tree = ast.parse(_file_of(package, room).read_text())
    text = " ".join((ast.get_docstring(tree) or "").split())
    return text.split(". ")[0].rstrip(".").replace("``", "")


def _file_of(package: str, room: str) -> Path:
    """Where a room says what it is for."""
    place = Path(next(iter(importlib.import_module(package).__path__))) / room
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def pure() -> set[str]:
    """The rooms that an import contract keeps pure, as ``package.room``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    (contract,) = (one for one in contracts if one["id"] == "pure-rooms")
    return set(contract["source_modules"])


def drawn(rooms: Rooms) -> str:
    """The rooms as SVG, a row for each floor. An arrow that others imply is left out."""
    top = max(rooms.floors.values())
    places: dict[str, tuple[float, float]] = {}
    for floor in range(top + 1):
        row = rooms.on(floor)
        left = (_WIDTH - len(row) * (_BOX + 20) + 20) / 2
        for column, room in enumerate(row):
            places[room] = (left + column * (_BOX + 20), 20.0 + (top - floor) * _STEP)
    high = 20 + (top + 1) * _STEP
    parts = [_HEAD.format(width=_WIDTH, high=high)]
    rows = [[places[room][0] for room in rooms.on(floor)] for floor in range(top, -1, -1)]
    parts += [_line("line", places[a], places[b], rows) for a, b in sorted(shortest(rooms.arrows))]
    if not any(one == ENTRY for one, _ in rooms.arrows):
        late = rooms.on(top - 1)
        parts += [_line("line late", places[ENTRY], places[room], rows) for room in late]
    for room, place in places.items():
        parts += _box(rooms.package, room, place)
    parts.append(
        f'<text class="dim" x="20" y="{high - 14}">Green: pure. No clients, no clocks, no '
        "randomness, no event loop. Arrows: imports; those that others imply are left out; dashed: "
        "imported when it is called.</text>"
    )
    return "\n".join([*parts, "</svg>\n"])


def _line(
    kind: str, high: tuple[float, float], low: tuple[float, float], rows: list[list[float]]
) -> str:
    """An arrow; where it crosses a floor it takes the gap between boxes that is nearest to it."""
    x, y = high[0] + _BOX / 2, high[1] + _HIGH
    end = low[0] + _BOX / 2
    curve = f"M{x:g} {y:g}"
    floors = range(1 + round((high[1] - 20) / _STEP), round((low[1] - 20) / _STEP))
    for left in floors:
        edges = [place - 10 for place in rows[left]] + [rows[left][-1] + _BOX + 10]
        straight = x + (end - x) / (len(floors) + 1)
        # Beside each other: lines that share a gap would read as one.
        gap = min(edges, key=lambda edge: abs(edge - straight)) + 6 * (len(floors) % 3 - 1)
        top = 20.0 + left * _STEP
        curve += f" C{x:g} {top - _GAP / 2:g} {gap:g} {top - _GAP / 2:g} {gap:g} {top:g}"
        x, y = gap, top + _HIGH
        curve += f" V{y:g}"
    middle = (y + low[1]) / 2
    curve += f" C{x:g} {middle:g} {end:g} {middle:g} {end:g} {low[1] - 3:g}"
    return f'<path class="{kind}" d="{curve}"/>'


def _box(package: str, room: str, place: tuple[float, float]) -> list[str]:
    x, y = place
    kind = "pure" if f"{package}.{room}" in pure() else "box"
    name = f"{room}.py" if _file_of(package, room).stem == room else f"{room}/"
    lines = textwrap.wrap(purpose(package, room), 34)[:3]
    return [
        f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{_BOX}" height="{_HIGH}"/>',
        f'<text class="b" x="{x + 10:g}" y="{y + 19:g}">{name}</text>',
        *(
            f'<text class="dim" x="{x + 10:g}" y="{y + 36 + 14 * n:g}">{escape(line)}</text>'
            for n, line in enumerate(lines)
        ),
    ]


_HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {high}" \
font-family="system-ui, sans-serif" font-size="13">
<!-- Drawn by hack/rooms.py; don't edit. -->
<style>
rect {{ rx: 7px; stroke-width: 1.2; }}
.box {{ fill: #f6f8fa; stroke: #57606a; }} .pure {{ fill: #dafbe1; stroke: #1a7f37; }}
.line {{ stroke: #57606a; stroke-width: 1.3; fill: none; marker-end: url(#tip); }}
.late {{ stroke-dasharray: 5 4; }}
text {{ fill: #1f2328; }} .dim {{ fill: #57606a; font-size: 11px; }} .b {{ font-weight: 600; }}
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" \
orient="auto"><path d="M0 0 8 4 0 8z" fill="#57606a"/></marker></defs>
<rect width="{width}" height="{high}" fill="#ffffff"/>"""


def shortest(arrows: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows without those that a longer way stands for (the transitive reduction)."""
    kept = set(arrows)
    return {
        (one, other)
        for one, other in kept
        if not any(
            other in reached(between, kept) for high, between in kept if high == one != between
        )
    }


def picture_of(rooms: Rooms) -> Path:
    """Where its picture stands."""
    return PICTURES / f"rooms-{PACKAGES[rooms.package][0]}.svg"


def tables(found: Iterable[Rooms], console: Console) -> None:
    """A table for each package, top floor first."""
    for rooms in found:
        name, most_rooms, most_arrows = PACKAGES[rooms.package]
        title = (
            f"{name}: {len(rooms.floors)} rooms (at most {most_rooms}), "
            f"{len(rooms.arrows)} arrows (at most {most_arrows}), {len(rooms.ups)} up"
        )
        table = Table("floor", "room", "imports", title=title)
        for room, floor in sorted(rooms.floors.items(), key=lambda one: (-one[1], one[0])):
            low = sorted(other for one, other in rooms.arrows if one == room)
            table.add_row(str(floor), room, ", ".join(low))
        console.print(table)


def main() -> int:
    """Print, write or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="end with 1 when something is wrong")
    parser.add_argument("--write", action="store_true", help="draw the pictures anew")
    parser.add_argument("--output", choices=("text", "json"), default="text")
    asked = parser.parse_args()
    found = seen()
    if asked.write:
        for rooms in found:
            picture_of(rooms).write_text(drawn(rooms))
    if asked.output == "json":
        as_json = {
            rooms.package: {"floors": dict(rooms.floors), "arrows": sorted(rooms.arrows)}
            for rooms in found
        }
        sys.stdout.write(json.dumps(as_json) + "\n")
    else:
        tables(found, Console())
    wrong = [fault for rooms in found for fault in faults(rooms)]
    for rooms in found:
        picture = picture_of(rooms)
        if not picture.exists() or picture.read_text() != drawn(rooms):
            name = picture.relative_to(ROOT)
            wrong.append(f"{name} is not current: run `python hack/rooms.py --write`")
    for fault in wrong:
        sys.stderr.write(fault + "\n")
    return 1 if asked.check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
