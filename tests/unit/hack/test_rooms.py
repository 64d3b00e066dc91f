"""The rooms as a newcomer meets them: few, on floors, with pictures that are current."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


def loaded(name: str) -> Any:
    """A program of hack/, by its file: on the path its neighbours would hide folders of tests."""
    spec = importlib.util.spec_from_file_location(f"hack_{name}", ROOT / "hack" / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rooms = loaded("rooms")


def of(*arrows: str) -> Any:
    """Rooms of ``p`` with arrows such as "a > b"; each room is one module."""
    pairs = [(f"p.{one}.m", f"p.{other}.m") for one, other in (a.split(" > ") for a in arrows)]
    return rooms.rooms_of("p", pairs, [name.split(".")[1] for pair in pairs for name in pair])


def test_a_room_stands_above_all_that_it_imports() -> None:
    found = of("a > b", "b > c", "a > c", "d > c")
    assert found.floors == {"c": 0, "b": 1, "d": 1, "a": 2}
    assert found.on(1) == ["b", "d"]
    assert not found.ups


def test_imports_within_a_room_are_no_arrows() -> None:
    found = rooms.rooms_of("p", [("p.a.m", "p.a.n"), ("p.a.m", "p.b")], ["a", "b"])
    assert found.arrows == {("a", "b")}


def test_rooms_that_import_each_other_run_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rooms.PACKAGES, "p", ("p", 9, 9))
    found = of("a > b", "b > c", "c > a", "c > d")
    assert found.ups == {("a", "b"), ("b", "c"), ("c", "a")}
    assert rooms.faults(found) == ["p: a -> b runs up", "p: b -> c runs up", "p: c -> a runs up"]


def test_more_rooms_or_arrows_than_a_newcomer_can_hold_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(rooms.PACKAGES, "p", ("p", 2, 1))
    assert rooms.faults(of("a > b", "b > c")) == ["p: 3 rooms, at most 2", "p: 2 arrows, at most 1"]


def test_an_arrow_that_a_longer_way_stands_for_is_not_drawn() -> None:
    assert rooms.shortest({("a", "b"), ("b", "c"), ("a", "c")}) == {("a", "b"), ("b", "c")}


def test_our_rooms_are_few_and_no_arrow_runs_up() -> None:
    for found in rooms.seen():
        assert len(found.floors) > 6
        assert rooms.faults(found) == []


def test_the_pictures_of_the_rooms_are_current() -> None:
    for found in rooms.seen():
        assert rooms.picture_of(found).read_text() == rooms.drawn(found), (
            "run `python hack/rooms.py --write`"
        )


def test_no_file_of_the_product_is_longer_than_one_sitting() -> None:
    sizes = {
        str(file.relative_to(ROOT)): len(file.read_text().splitlines())
        for root in ("operator", "worker")
        for file in (ROOT / root).rglob("*.py")
    }
    assert len(sizes) > 130
    assert {name: lines for name, lines in sizes.items() if lines > 400} == {}
