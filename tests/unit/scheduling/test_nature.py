from __future__ import annotations

from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.scheduling.nature import ENOUGH, Nature


def seen(nature: Nature, compute: float, waiting: float, runs: int = ENOUGH) -> LaneName:
    for _ in range(runs):
        nature.observe("k", compute, waiting)
    return nature.lane("k")


def test_an_auto_kind_that_waits_moves_to_io_once_enough_was_seen() -> None:
    nature = Nature()
    nature.declare("k", LaneName.COMPUTE, movable=True)
    assert seen(nature, 0.1, 0.9, ENOUGH - 1) is LaneName.COMPUTE
    assert seen(nature, 0.1, 0.9, 1) is LaneName.IO


def test_an_auto_kind_that_computes_moves_to_compute() -> None:
    nature = Nature()
    nature.declare("k", LaneName.IO, movable=True)
    assert seen(nature, 0.9, 0.1) is LaneName.COMPUTE


def test_between_the_thresholds_a_kind_stays_where_it_is() -> None:
    for lane in LaneName:
        nature = Nature()
        nature.declare("k", lane, movable=True)
        assert seen(nature, 0.45, 0.55, 50) is lane


def test_a_declared_kind_keeps_its_lane_and_shows_its_numbers() -> None:
    nature = Nature()
    nature.declare("k", LaneName.COMPUTE, movable=False)
    assert seen(nature, 0.0, 1.0, 50) is LaneName.COMPUTE
    (verdict,) = nature.verdicts()
    assert (verdict.declared, verdict.runs, verdict.waiting_seconds) == (True, 50, 50.0)
