"""Observation to plan to status: what a tick makes of a pool."""

from __future__ import annotations

import pytest
from llmtaskpool_operator.api.pool import LLMTaskPool
from llmtaskpool_operator.api.status import LLMTaskPoolStatus
from llmtaskpool_operator.autoscaler.decide import PoolMemory, decide_pool
from llmtaskpool_operator.autoscaler.observation import PodObservation, PoolObservation
from llmtaskpool_operator.autoscaler.plan import SetReplicas, SetThreads, plan, victims
from llmtaskpool_operator.autoscaler.status import status_of
from llmtaskpool_worker.contract import (
    GpuReading,
    LaneName,
    LaneState,
    Phase,
    Work,
    WorkerState,
)


def pool(**scaling: object) -> LLMTaskPool:
    """Its compute threads are the law's to move; those of io stay."""
    lanes = {"io": {"mode": "Fixed", "initial": 16}, "compute": {"initial": 4, "min": 4}}
    spec: dict[str, object] = {"scaling": {"maxReplicas": 8} | scaling, "threads": lanes}
    if scaling.get("mode") in ("Fixed", "External"):
        spec["replicas"] = 3
    return LLMTaskPool.model_validate(
        {
            "apiVersion": "llmtaskpool.io/v1alpha1",
            "kind": "LLMTaskPool",
            "metadata": {"name": "p", "generation": 4},
            "spec": spec,
        }
    )


def pod(
    name: str,
    *,
    arrived: float = 0.0,
    waiting: float = 0.0,
    active: int = 0,
    queued: int = 0,
    threads: int = 4,
    age: float = 0.0,
    **more: object,
) -> PodObservation:
    def lane(active: int, queued: int, n: int) -> LaneState:
        return LaneState(threads=n, threads_cap=64, active=active, queued=queued, queue_limit=100)

    state = WorkerState(
        worker_id=name,
        started_at=0.0,
        observed_at=0.0,
        phase=Phase.READY,
        threads_generation=7,
        lanes={LaneName.COMPUTE: lane(active, queued, threads), LaneName.IO: lane(13, 0, 16)},
        work=Work(arrived_seconds_total=arrived, waiting_seconds=waiting),
        gpus=more.pop("gpus", ()),
    )
    return PodObservation(name, ready=True, state=state, age_seconds=age, **more)


def tick(
    of: LLMTaskPool, *ticks: PoolObservation, period: float = 5.0
) -> tuple[list[SetReplicas | SetThreads], LLMTaskPoolStatus]:
    memory, status, actions = PoolMemory(), None, ()
    for number, seen in enumerate(ticks):
        decided, memory = decide_pool(of.spec, seen, memory, number * period)
        actions = plan(of.spec, seen, decided)
        at = f"2026-01-01T00:00:{number:02d}Z"
        status = status_of(of, seen, decided, actions, status, at)
    assert status is not None
    return list(actions), status


def test_work_that_arrives_faster_than_the_pods_can_do_it_asks_for_more() -> None:
    actions, status = tick(
        pool(),
        PoolObservation(2, (pod("a"), pod("b"))),
        PoolObservation(2, (pod("a", arrived=10), pod("b", arrived=8))),
    )
    assert actions == [SetReplicas(4, (), actions[0].reason)]
    assert "offered 3.6" in actions[0].reason
    assert status.desired_replicas == 4
    assert [d.after for d in status.last_decisions] == [4]


def test_a_restarted_worker_can_not_make_the_rate_negative() -> None:
    actions, _ = tick(
        pool(),
        PoolObservation(1, (pod("a", arrived=1000),)),
        PoolObservation(1, (pod("a", arrived=2),)),
    )
    assert actions == []


def test_a_flooded_lane_gets_threads_at_once_with_the_next_generation() -> None:
    actions, _ = tick(pool(), PoolObservation(1, (pod("a", active=4, queued=20),)))
    (action,) = actions
    assert isinstance(action, SetThreads)
    assert (action.pod, action.generation, action.threads) == ("a", 8, {LaneName.COMPUTE: 30})


@pytest.mark.parametrize(
    ("scaling", "wanted"),
    [
        ({"mode": "Fixed"}, 3),
        ({"mode": "External"}, 3),
        ({"mode": "Advise"}, None),
        ({"paused": True}, None),
    ],
)
def test_the_mode_says_whose_the_replicas_are(scaling: dict, wanted: int | None) -> None:
    busy = [PoolObservation(1, (pod("a", arrived=a),)) for a in (0.0, 40.0)]
    actions, _ = tick(pool(**scaling), *busy)
    sizes = [a.replicas for a in actions if isinstance(a, SetReplicas)]
    assert sizes == ([] if wanted is None else [wanted])


def test_a_silent_pod_is_named_and_forbids_a_fall() -> None:
    silent = PodObservation("b", ready=True, state=None)
    of = pool(behavior={"scaleDown": {"stabilizationWindowSeconds": 0}})
    quiet = [PoolObservation(2, (pod("a"), silent))] * 3
    actions, status = tick(of, *quiet)
    assert actions == []
    (metrics,) = [c for c in status.conditions if c.type == "MetricsAvailable"]
    assert (metrics.status, metrics.reason) == ("False", "PodsSilent")
    assert "b" in metrics.message


def test_what_was_wrong_with_the_answer_of_a_silent_pod_is_told() -> None:
    odd = PodObservation("b", ready=True, error="answered oddly: work.arrived_seconds_total: NaN")
    _, status = tick(pool(), PoolObservation(2, (pod("a"), odd)))
    (metrics,) = [c for c in status.conditions if c.type == "MetricsAvailable"]
    assert "b (answered oddly: work.arrived_seconds_total: NaN)" in metrics.message


def test_a_pod_without_a_gpu_reading_is_named_and_forbids_a_fall_but_no_rise() -> None:
    def full(name: str) -> PodObservation:
        return pod(name, gpus=(GpuReading(index=0, name="g", utilization=1.0),))

    now = {"scaleDown": {"stabilizationWindowSeconds": 0}}
    of = pool(metric="GPUUtilization", behavior=now)
    actions, status = tick(of, PoolObservation(2, (full("a"), pod("b"))))
    assert actions == []
    (metrics,) = [c for c in status.conditions if c.type == "MetricsAvailable"]
    assert (metrics.status, metrics.reason) == ("False", "MetricMissing")
    assert "gpus.utilization from b" in metrics.message
    actions, _ = tick(of, PoolObservation(2, (full("a"), full("c"), pod("b"))))
    assert [a.replicas for a in actions if isinstance(a, SetReplicas)] == [3]
    actions, _ = tick(of, PoolObservation(2, (pod("a"), pod("b"))))
    assert actions == []


def test_a_pool_that_can_not_be_scaled_is_not_asked_to() -> None:
    actions, status = tick(pool(minReplicas=2), PoolObservation(0, scalable=False))
    assert actions == []
    assert status.last_decisions == []


def test_the_pods_that_lose_least_go_first() -> None:
    starting = PodObservation("z", ready=False)
    pods = [pod("a", active=2), pod("b"), pod("c", queued=9), starting, pod("d")]
    assert victims(pods, 3) == ("z", "b", "d")
    assert victims(pods, 0) == ()
    assert victims(pods, -1) == ()


@pytest.mark.parametrize(
    ("metric", "pods", "wanted"),
    [
        ("ThreadUtilization", [pod("a", active=4, queued=4)], 3),
        ("GPUUtilization", [pod("a", gpus=(GpuReading(index=0, name="g", utilization=1.0),))], 2),
        ("GPUUtilization", [pod("a", active=4, queued=4)], None),
    ],
)
def test_a_pool_may_choose_its_metric(metric: str, pods: list, wanted: int | None) -> None:
    actions, _ = tick(pool(metric=metric), PoolObservation(1, tuple(pods)))
    sizes = [a.replicas for a in actions if isinstance(a, SetReplicas)]
    assert sizes == ([] if wanted is None else [wanted])


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    seen = PoolObservation(2, (pod("a"), PodObservation("b", ready=False)))
    _, early = tick(pool(), seen)
    _, late = tick(pool(), seen, seen, seen)
    assert [c for c in early.conditions if c.type == "Ready"] == [
        c for c in late.conditions if c.type == "Ready"
    ]
    (reconciling,) = [c for c in late.conditions if c.type == "Reconciling"]
    assert reconciling.message == "1 of 2 replicas are ready"
    assert late.observed_generation == 4


def test_utilization_is_written_only_when_it_moved() -> None:
    def seen(*rates: float) -> list[PoolObservation]:
        total, made = 0.0, [PoolObservation(4, (pod("a"),))]
        for rate in rates:
            total += rate * 5
            made.append(PoolObservation(4, (pod("a", arrived=total),)))
        return made

    _, first = tick(pool(), *seen(3.0))
    _, moved_little = tick(pool(), *seen(3.0, 3.1))
    assert moved_little.utilization == first.utilization == pytest.approx(0.75)
