"""Slowness that other processes cause is no reason to run less."""

from __future__ import annotations

import pytest
from llmtaskpool_worker.scheduling.cost import CostModel
from llmtaskpool_worker.scheduling.hindrance import Unhindered
from llmtaskpool_worker.scheduling.latency_guard import LatencyGuard

SLO = 0.25
THREADS = 2


class Engine:
    """A step of n takes 20 + 2 n ms of both CPUs, times ``busy`` on a busy machine."""

    def __init__(self) -> None:
        self.busy, self.tells_cpu = 1.0, True
        self.now = 0.0
        self.cap = 24
        self.unhindered = Unhindered(THREADS)
        self.cost = CostModel(threads_max=32, tpot_slo_seconds=SLO)
        self.guard = LatencyGuard(SLO)

    def run(self, seconds: float) -> None:
        """A burst that fills whatever the cap allows; the operator looks once a second."""
        until, looks_at = self.now + seconds, self.now
        while self.now < until:
            own = 0.020 + 0.002 * self.cap
            wall, cpu = own * self.busy, own * THREADS * 0.95 * self.tells_cpu
            self.now += wall
            mine = self.unhindered.own_seconds(self.cap, wall, cpu)
            self.guard.observe(mine)
            self.cost.observe_step("m", self.cap, 0, wall, mine)
            if self.now >= looks_at:
                looks_at = self.now + 1.0
                knee = self.cost.model("m").knee(SLO)
                self.cap = self.guard.adjust(self.cap, knee, self.now)


@pytest.mark.parametrize("busy_first", [False, True])
def test_a_busy_machine_takes_no_threads(busy_first: bool) -> None:
    engine = Engine()
    if not busy_first:
        engine.run(30)
        before = engine.cap
        assert before > 16
    engine.busy = 8.0
    engine.run(60)
    assert engine.cap > 16


def test_an_engine_that_is_slow_by_itself_is_cut() -> None:
    unhindered, guard = Unhindered(THREADS), LatencyGuard(SLO)
    for _ in range(50):
        guard.observe(unhindered.own_seconds(24, 0.5, 0.5 * THREADS))
    assert guard.adjust(active=24, knee=24, now=0.0) < 24


def test_what_a_busy_time_left_in_the_curve_is_gone_within_seconds() -> None:
    """As when CPU seconds are not told: then slowness can't be told from the engine's own."""
    engine = Engine()
    engine.tells_cpu = False
    engine.run(30)
    before = engine.cap
    engine.busy = 12.0
    engine.run(60)
    assert engine.cap < before
    engine.busy = 1.0
    engine.run(8)
    assert engine.cap >= before / 2
    engine.run(22)
    assert engine.cap >= before - 1


def test_without_cpu_seconds_the_wall_time_counts() -> None:
    assert Unhindered(4).own_seconds(8, 0.3, 0.0) == 0.3
