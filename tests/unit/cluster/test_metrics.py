"""The operator's /metrics, as Prometheus reads them."""

from __future__ import annotations

import pytest
from fakes.cluster_objects import NAME, NAMESPACE, worker_state
from fakes.cluster_objects import pool as pool_of
from llmtaskpool_operator.autoscaler.decide import PoolMemory, decide_pool
from llmtaskpool_operator.autoscaler.observation import PodObservation, PoolObservation
from llmtaskpool_operator.autoscaler.plan import plan
from llmtaskpool_operator.autoscaler.reconcile import LoopMemory, ReconcileResult
from llmtaskpool_operator.autoscaler.status import status_of
from llmtaskpool_operator.cluster.metrics import OperatorMetrics
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

POOL = {"namespace": NAMESPACE, "pool": NAME}


def samples(metrics: OperatorMetrics) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(generate_latest(metrics.registry).decode()):
        for one in family.samples:
            found.setdefault(one.name.removeprefix("llmtaskpool_operator_"), []).append(
                (one.labels, one.value)
            )
    return found


def value(metrics: OperatorMetrics, name: str, **labels: str) -> float | None:
    return next((v for found, v in samples(metrics).get(name, ()) if found == labels), None)


def pods(count: int, *, arrived: float = 0.0, queued: int = 0) -> tuple[PodObservation, ...]:
    return tuple(
        PodObservation(
            f"p{number}",
            ready=True,
            state=worker_state(arrived=arrived, active=4 if queued else 0, queued=queued),
        )
        for number in range(count)
    )


def turn(*looks: PoolObservation, every: float = 5.0, **scaling: object) -> ReconcileResult:
    """The last of as many turns as there are looks."""
    threads = {"compute": {"min": 4}}
    pool = pool_of(scaling={"maxReplicas": 9} | scaling, replicas=1, threads=threads)
    memory, at = PoolMemory(), 0.0
    for seen in looks:
        decided, memory = decide_pool(pool.spec, seen, memory, at)
        at += every
    actions = plan(pool.spec, seen, decided)
    status = status_of(pool, seen, decided, actions, None, "2026-01-01T00:00:00Z")
    return ReconcileResult(seen, decided, actions, (), status, LoopMemory(), 1.0)


def busy(count: int, per_second: float) -> tuple[PoolObservation, PoolObservation]:
    """Two looks, 5 s apart, at pods to which so much work came in all."""
    later = pods(count, arrived=per_second * 5 / count)
    return PoolObservation(count, pods(count)), PoolObservation(count, later)


def test_a_pools_replicas_utilization_and_offered_work_are_told() -> None:
    metrics = OperatorMetrics()
    metrics.decided(NAMESPACE, NAME, turn(*busy(4, 3.2)))
    assert value(metrics, "ready_replicas", **POOL) == 4
    assert value(metrics, "desired_replicas", **POOL) == 4
    assert value(metrics, "utilization", **POOL) == pytest.approx(0.8)
    assert value(metrics, "offered_work", **POOL) == pytest.approx(3.2)


def test_decisions_are_counted_from_0_so_that_the_first_of_them_is_seen_as_an_increase() -> None:
    metrics = OperatorMetrics()
    metrics.decided(NAMESPACE, NAME, turn(*busy(4, 3.2)))
    for what in ("replicas", "threads/io", "threads/compute"):
        for way in ("up", "down"):
            found = value(metrics, "decisions_total", what=what, direction=way, **POOL)
            assert found is not None, (what, way)
    assert value(metrics, "decisions_total", what="replicas", direction="down", **POOL) == 0


def test_offered_work_over_the_target_is_the_number_of_replicas_that_is_decided() -> None:
    """So that an HPA or KEDA that reads it comes to the same size."""
    for work in (0.5, 2.0, 3.3, 6.1):
        metrics = OperatorMetrics()
        metrics.decided(NAMESPACE, NAME, turn(*busy(1, work), tolerance=0))
        offered = value(metrics, "offered_work", **POOL)
        assert -(-offered // 0.9) == value(metrics, "desired_replicas", **POOL)


def test_changes_are_counted_by_what_and_direction() -> None:
    metrics = OperatorMetrics()
    up = turn(*busy(2, 6.0))
    for _ in range(3):
        metrics.decided(NAMESPACE, NAME, up)
    counted = POOL | {"what": "replicas"}
    assert value(metrics, "decisions_total", **counted, direction="up") == 3
    assert value(metrics, "decisions_total", **counted, direction="down") == 0
    down = turn(PoolObservation(3, pods(3)), mode="Fixed")
    metrics.decided(NAMESPACE, NAME, down)
    assert value(metrics, "decisions_total", **counted, direction="down") == 1


def test_threads_are_counted_by_their_lane() -> None:
    metrics = OperatorMetrics()
    metrics.decided(NAMESPACE, NAME, turn(PoolObservation(1, pods(1, queued=20))))
    labels = POOL | {"what": "threads/compute", "direction": "up"}
    assert value(metrics, "decisions_total", **labels) == 1


def test_a_turn_that_changed_nothing_counts_no_decision() -> None:
    metrics = OperatorMetrics()
    metrics.decided(NAMESPACE, NAME, turn(PoolObservation(1, pods(1))))
    assert {count for _, count in samples(metrics)["decisions_total"]} == {0}


def test_a_turn_without_a_decision_about_replicas_keeps_the_last_utilization() -> None:
    metrics = OperatorMetrics()
    metrics.decided(NAMESPACE, NAME, turn(*busy(4, 3.2)))
    metrics.decided(NAMESPACE, NAME, turn(*busy(4, 3.2), every=1.0))
    assert value(metrics, "utilization", **POOL) == pytest.approx(0.8)


def test_a_pool_that_is_gone_leaves_no_series_and_takes_none_of_others() -> None:
    metrics = OperatorMetrics()
    up = turn(*busy(2, 6.0))
    for namespace, name in ((NAMESPACE, NAME), (NAMESPACE, "other"), ("team-b", NAME)):
        metrics.decided(namespace, name, up)
    metrics.forget(NAMESPACE, NAME)
    left = {
        (labels["namespace"], labels["pool"])
        for series in samples(metrics).values()
        for labels, _ in series
        if "pool" in labels
    }
    assert left == {(NAMESPACE, "other"), ("team-b", NAME)}
    metrics.decided(NAMESPACE, NAME, turn(PoolObservation(1, pods(1))))
    assert value(metrics, "ready_replicas", **POOL) == 1


def test_a_pool_that_was_never_seen_can_be_forgotten() -> None:
    metrics = OperatorMetrics()
    metrics.forget(NAMESPACE, NAME)
    assert value(metrics, "ready_replicas", **POOL) is None


def test_turns_are_counted_by_how_they_ended_and_timed() -> None:
    metrics = OperatorMetrics()
    for result, seconds in (("ok", 0.02), ("ok", 0.3), ("failed", 7.0), ("fenced", 0.0)):
        metrics.turn(result, seconds)
    counted = {labels["result"]: n for labels, n in samples(metrics)["turns_total"]}
    assert counted == {"ok": 2, "failed": 1, "fenced": 1}
    assert value(metrics, "turn_seconds_count") == 4
    assert value(metrics, "turn_seconds_sum") == pytest.approx(7.32)
    assert value(metrics, "turn_seconds_bucket", le="0.5") == 3


def test_failed_requests_are_counted_by_verb_and_code() -> None:
    metrics = OperatorMetrics()
    for verb, code in (("patch", 409), ("patch", 409), ("get", 0)):
        metrics.api_error(verb, code)
    assert value(metrics, "api_errors_total", verb="patch", code="409") == 2
    assert value(metrics, "api_errors_total", verb="get", code="0") == 1


def test_queue_and_leadership_are_as_they_are_now() -> None:
    metrics = OperatorMetrics()
    assert value(metrics, "leader") == 0
    metrics.leading(True)
    metrics.queue(12, 3.5)
    assert value(metrics, "leader") == 1
    assert value(metrics, "queue_depth") == 12
    assert value(metrics, "queue_oldest_seconds") == 3.5
    metrics.leading(False)
    metrics.queue(0, 0.0)
    assert value(metrics, "leader") == 0
    assert value(metrics, "queue_depth") == 0


def test_how_far_each_watch_is_behind_is_told() -> None:
    metrics = OperatorMetrics()
    metrics.watches({"Pod": 31.0, "Deployment": 0.0})
    metrics.watches({"Pod": 0.0})
    assert value(metrics, "watch_behind_seconds", kind="Pod") == 0
    assert value(metrics, "watch_behind_seconds", kind="Deployment") == 0
    metrics.watches({"Pod": 7.0})
    assert value(metrics, "watch_behind_seconds", kind="Pod") == 7


def test_two_operators_in_one_process_count_apart() -> None:
    one, other = OperatorMetrics(), OperatorMetrics()
    one.leading(True)
    assert value(other, "leader") == 0
