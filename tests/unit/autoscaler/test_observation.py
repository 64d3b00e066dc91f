"""How much work arrives, when pods come, restart, fall silent and are heard again."""

from __future__ import annotations

import pytest
from llmtaskpool_operator.autoscaler.observation import History, PodObservation, PoolObservation
from llmtaskpool_worker.contract import LaneName, LaneState, Phase, Work, WorkerState

WINDOW = 30.0
BEGAN = 1_800_000_000.0


def pod(name: str, *, now: float, up: float, arrived: float, age: float = 0.0) -> PodObservation:
    """A pod whose process began ``up`` seconds ago, as it said ``age`` seconds ago."""
    lane = LaneState(threads=4, threads_cap=64, active=1, queued=0, queue_limit=99)
    state = WorkerState(
        worker_id=name,
        started_at=now - up,
        observed_at=now - age,
        phase=Phase.READY,
        lanes={LaneName.COMPUTE: lane},
        work=Work(arrived_seconds_total=arrived),
    )
    return PodObservation(name, ready=True, state=state, age_seconds=age)


def rate(samples: list[list[PodObservation]]) -> float | None:
    history = History()
    for place, pods in enumerate(samples):
        seen = PoolObservation(len(pods), tuple(pods))
        history = history.extended(seen, BEGAN + 5 * place, WINDOW)
    return history.arrival_rate(5.0)


def test_a_pod_that_is_heard_again_after_a_silence_does_not_bring_all_the_work_of_its_life() -> (
    None
):
    """20 h with half a pod-second a second; nothing is heard of it for 45 s."""
    samples = []
    for place in range(20):
        now, up = BEGAN + 5 * place, 72_000.0 + 5 * place
        age = 5.0 * (place - 3) if 3 < place < 13 else 0.0
        samples.append([pod("a", now=now, up=up, arrived=(up - age) / 2, age=age)])
        if place >= 13:
            # What came in the 30 s before it was given up may count with what came after.
            assert 0.49 <= rate(samples) <= 1.0
    assert rate(samples) == pytest.approx(0.5)


def test_a_pod_that_answers_an_operator_late_after_its_start_is_counted_as_it_usually_works() -> (
    None
):
    old = {"up": 72_000.0, "arrived": 36_000.0}
    samples = [[pod("a", now=BEGAN, **old)]]
    samples.append([pod("a", now=BEGAN + 5, **old), pod("b", now=BEGAN + 5, **old)])
    assert rate(samples) == pytest.approx(0.5)


def test_all_that_arrived_at_a_pod_that_is_new_counts() -> None:
    samples = [[pod("a", now=BEGAN, up=100.0, arrived=10.0)]]
    samples.append([*samples[0], pod("b", now=BEGAN + 5, up=4.0, arrived=20.0)])
    assert rate(samples) == pytest.approx(4.0)


def test_all_that_arrived_since_a_process_began_anew_counts() -> None:
    samples = [[pod("a", now=BEGAN, up=100.0, arrived=50.0)]]
    samples.append([pod("a", now=BEGAN + 5, up=3.0, arrived=10.0)])
    assert rate(samples) == pytest.approx(2.0)
