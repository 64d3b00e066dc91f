"""Whoever crashes an engine is found, and nobody else is called guilty."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llmtaskpool_worker.scheduling.suspicion import BYSTANDER_CRASHES, Suspicion


@dataclass
class Engine:
    """Runs ``slots`` at once; the first step with a poisonous one kills it; others end by chance.

    Suspects and ordinary work wait in one line, in any order that ``draw`` says.
    """

    poisonous: set[str]
    slots: int
    draw: st.DataObject | None
    suspicion: Suspicion = field(default_factory=lambda: Suspicion(3))
    waiting: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    convicted: list[str] = field(default_factory=list)
    crashes: int = 0

    def choose(self, most: int) -> int:
        return self.draw.draw(st.integers(0, most)) if self.draw and most else 0

    def start_what_may(self) -> None:
        while len(self.running) < self.slots:
            able = [i for i in self.waiting if self._may(i)]
            if not able:
                return
            task = able[self.choose(len(able) - 1)]
            self.waiting.remove(task)
            self.running.append(task)

    def _may(self, task: str) -> bool:
        group = self.suspicion.group_of(task)
        return self.suspicion.allows(group.number if group else None, len(self.running))

    def turn(self) -> None:
        self.start_what_may()
        if self.poisonous & set(self.running):
            self.crashes += 1
            guilty = self.suspicion.crashed(self.running, alone=len(self.running) == 1)
            self.convicted += guilty
            self.waiting = [i for i in self.running if i not in guilty] + self.waiting
            self.running = []
            return
        assert self.running, "with something waiting, something may start"
        task = self.running.pop(self.choose(len(self.running) - 1))
        self.suspicion.left(task)
        self.ended.append(task)


names = st.integers(0, 39).map(str)


@settings(max_examples=150, deadline=None)
@given(
    poisonous=st.sets(names, max_size=6),
    slots=st.integers(1, 33),
    count=st.integers(1, 40),
    data=st.data(),
)
def test_all_who_are_poisonous_are_found_and_nobody_else(
    poisonous: set[str], slots: int, count: int, data: st.DataObject
) -> None:
    tasks = [str(number) for number in range(count)]
    guilty = poisonous & set(tasks)
    engine = Engine(poisonous, slots, data, waiting=list(tasks))
    bound = len(guilty) * (BYSTANDER_CRASHES + ceil(log2(slots)) + 1 + 3)
    while engine.waiting or engine.running:
        engine.turn()
        assert engine.crashes <= bound
    assert sorted(engine.convicted) == sorted(guilty)
    assert sorted(engine.ended) == sorted(set(tasks) - guilty)
    assert engine.suspicion.tried is None, "no suspicion is left"


@pytest.mark.parametrize("n", [1, 2, 3, 8, 32, 64])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_one_among_n_costs_about_log2_n_crashes(n: int, place: str) -> None:
    guilty = {"first": 0, "middle": n // 2, "last": n - 1}[place]
    engine = Engine({str(guilty)}, n, None, waiting=[str(i) for i in range(n)])
    while engine.waiting or engine.running:
        engine.turn()
    assert engine.convicted == [str(guilty)]
    assert engine.crashes <= max(3, ceil(log2(n)) + 1)


@pytest.mark.parametrize("n", [8, 32])
def test_with_ordinary_work_beside_it_one_crash_more(n: int) -> None:
    engine = Engine({"0"}, n, None, waiting=[str(i) for i in range(n)])
    fresh = iter(range(1000, 9000))
    while "0" not in engine.convicted:
        engine.waiting += [str(next(fresh)) for _ in range(4)]
        engine.turn()
    assert engine.crashes <= ceil(log2(n)) + 2


def test_ordinary_work_goes_on_beside_suspects() -> None:
    suspicion = Suspicion(3)
    suspicion.crashed(["a", "b", "c", "d"], alone=False)
    tried = suspicion.tried
    assert tried is not None
    assert list(tried.members) == ["a", "b"]
    assert suspicion.allows(None, 4)
    assert suspicion.allows(tried.number, 4)
    other = suspicion.group_of("c")
    assert other is not None
    assert not suspicion.allows(other.number, 0)
    for task in "ab":
        suspicion.left(task)
    assert suspicion.allows(other.number, 4), "the first half was innocent"
