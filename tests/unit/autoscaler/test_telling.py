"""What is told of a turn: a status that is not written each second, and events when things turn."""

from __future__ import annotations

from typing import Any

import pytest
from llmtaskpool_operator.api.status import Condition, LLMTaskPoolStatus
from llmtaskpool_operator.autoscaler.plan import SetReplicas, SetThreads
from llmtaskpool_operator.autoscaler.telling import (
    COUNTS_SECONDS,
    REFRESH_SECONDS,
    notes,
    rfc3339,
    worth_writing,
)
from llmtaskpool_worker.contract import LaneName

EARLIER, NOW = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"
SOON, LATE = 1.0, REFRESH_SECONDS


def condition(
    kind: str, status: str = "True", *, reason: str = "Why", message: str = "because"
) -> Condition:
    return Condition(
        type=kind, status=status, reason=reason, message=message, last_transition_time=EARLIER
    )


def status(*conditions: Condition) -> LLMTaskPoolStatus:
    return LLMTaskPoolStatus(conditions=list(conditions))


def wire(**changed: Any) -> dict[str, Any]:
    same: dict[str, Any] = {
        "observedGeneration": 1,
        "desiredReplicas": 3,
        "readyReplicas": 3,
        "utilization": 0.8,
        "queued": 4,
        "threads": [{"lane": "compute", "desired": 4, "observed": 4, "active": 2, "queued": 4}],
        "lastDecisions": [
            {"time": EARLIER, "what": "replicas", "before": 2, "after": 3, "reason": "r"}
        ],
        "conditions": [condition("Ready", message="3 of 3").wire()],
    }
    return same | changed


@pytest.mark.parametrize("since", [0.0, SOON, LATE, 1e9, float("inf")])
def test_the_same_status_is_never_written_again(since: float) -> None:
    assert not worth_writing(wire(), wire(), since)


@pytest.mark.parametrize(
    "changed",
    [
        {"queued": 900},
        {"utilization": 1.7},
        {"threads": []},
        {"conditions": [condition("Ready", message="3 of 3; utilization 0.81").wire()]},
        {
            "lastDecisions": [
                {"time": NOW, "what": "threads/compute", "before": 4, "after": 9, "reason": "r"},
                *wire()["lastDecisions"],
            ]
        },
    ],
)
def test_what_moves_with_the_load_is_written_every_ten_seconds(changed: dict[str, Any]) -> None:
    assert not worth_writing(wire(), wire(**changed), SOON)
    assert not worth_writing(wire(), wire(**changed), REFRESH_SECONDS - 0.01)
    assert worth_writing(wire(), wire(**changed), REFRESH_SECONDS)


@pytest.mark.parametrize(
    "changed",
    [
        {"desiredReplicas": 4},
        {"observedGeneration": 2},
        {"conditions": [condition("Ready", "False").wire()]},
        {"conditions": [condition("Ready", reason="Other").wire()]},
        {"conditions": [condition("Ready").wire(), condition("Stalled").wire()]},
        {"conditions": []},
        {
            "lastDecisions": [
                {"time": NOW, "what": "replicas", "before": 3, "after": 4, "reason": "r"},
                *wire()["lastDecisions"],
            ]
        },
    ],
)
def test_what_people_and_tools_wait_for_is_written_at_once(changed: dict[str, Any]) -> None:
    assert worth_writing(wire(), wire(**changed), 0.0)


@pytest.mark.parametrize(
    "changed", [{"replicas": 4}, {"readyReplicas": 2}, {"drainingReplicas": 1}]
)
def test_pods_that_start_together_are_counted_once_a_second(changed: dict[str, Any]) -> None:
    assert not worth_writing(wire(), wire(**changed), 0.0)
    assert not worth_writing(wire(), wire(**changed), COUNTS_SECONDS - 0.01)
    assert worth_writing(wire(), wire(**changed), COUNTS_SECONDS)


STARTS = [condition("Ready", "False").wire(), condition("Degraded", "False").wire()]


def test_a_new_pool_that_only_starts_gets_its_status_after_a_second() -> None:
    assert not worth_writing({}, wire(conditions=STARTS), COUNTS_SECONDS - 0.01)
    assert worth_writing({}, wire(conditions=STARTS), COUNTS_SECONDS)


@pytest.mark.parametrize(
    "conditions",
    [
        [condition("Ready").wire(), condition("Degraded", "False").wire()],
        [condition("Ready", "False").wire(), condition("Degraded", "True").wire()],
        [*STARTS, condition("Stalled").wire()],
    ],
)
def test_a_new_pool_that_is_ready_or_not_well_gets_its_status_at_once(conditions: list) -> None:
    assert worth_writing({}, wire(conditions=conditions), 0.0)


def test_a_change_of_replicas_is_an_event_with_its_reason() -> None:
    plan = (
        SetThreads("a", 4, {LaneName.COMPUTE: 8}, "threads are no event"),
        SetReplicas(5, (), "utilization 1.40 over target 0.90"),
    )
    (note,) = notes(status(), status(), 3, plan)
    assert (note.type, note.reason) == ("Normal", "ScalingReplicas")
    assert note.text == "3 -> 5: utilization 1.40 over target 0.90"


def test_a_turn_without_news_is_no_event() -> None:
    same = status(condition("Ready"), condition("Degraded", "True"), condition("Stalled"))
    assert notes(same, same, 3, ()) == ()


@pytest.mark.parametrize(
    ("kind", "bad", "good"), [("MetricsAvailable", "False", "True"), ("Degraded", "True", "False")]
)
def test_a_condition_that_turns_bad_is_a_warning_and_that_turns_good_is_not(
    kind: str, bad: str, good: str
) -> None:
    now_bad, now_good = status(condition(kind, bad, message="m")), status(condition(kind, good))
    (worse,) = notes(now_good, now_bad, 1, ())
    assert (worse.type, worse.reason, worse.text) == ("Warning", f"{kind}{bad}", "m")
    (better,) = notes(now_bad, now_good, 1, ())
    assert (better.type, better.reason) == ("Normal", f"{kind}{good}")
    assert notes(now_bad, now_bad, 1, ()) == ()


def test_a_new_pool_that_is_well_is_no_event_and_one_that_is_not_is() -> None:
    well = status(condition("MetricsAvailable", "True"), condition("Degraded", "False"))
    assert notes(None, well, 1, ()) == ()
    ill = status(condition("MetricsAvailable", "False"), condition("Degraded", "True"))
    assert [note.type for note in notes(None, ill, 1, ())] == ["Warning", "Warning"]


def test_not_knowing_is_no_event_and_the_first_pod_of_a_new_pool_is_none() -> None:
    unknown = status(condition("MetricsAvailable", "Unknown"))
    assert notes(unknown, status(condition("MetricsAvailable", "True")), 1, ()) == ()
    (worse,) = notes(unknown, status(condition("MetricsAvailable", "False")), 1, ())
    assert worse.type == "Warning"
    assert notes(status(condition("MetricsAvailable", "True")), unknown, 1, ()) == ()


@pytest.mark.parametrize("kind", ["Stalled", "ScalingConflict"])
def test_a_pool_that_can_not_go_on_is_told_once(kind: str) -> None:
    stuck = status(condition(kind, message="remove it"))
    (note,) = notes(status(), stuck, 1, ())
    assert (note.type, note.reason, note.text) == ("Warning", kind, "remove it")
    assert notes(stuck, stuck, 1, ()) == ()
    assert notes(stuck, status(), 1, ()) == ()


def test_readiness_alone_is_no_event() -> None:
    """Deployments and pods have events of their own about it."""
    assert notes(status(condition("Ready")), status(condition("Ready", "False")), 1, ()) == ()


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_800_000_000.987654, "2027-01-15T08:00:00Z"),
    ],
)
def test_times_are_written_as_kubernetes_writes_them(at: float, text: str) -> None:
    assert rfc3339(at) == text


def test_lease_times_have_microseconds_even_when_they_are_none() -> None:
    assert rfc3339(1_800_000_000, microseconds=True) == "2027-01-15T08:00:00.000000Z"
    assert rfc3339(1_800_000_000.25, microseconds=True) == "2027-01-15T08:00:00.250000Z"
