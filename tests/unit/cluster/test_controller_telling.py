"""What turns tell of a pool: a status that is not noise, events, and specs that can't be read."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from fakes.cluster_objects import NAME, NAMESPACE, worker_state
from fakes.controller_rig import AT_REST, ODD, STATUS, Rig
from llmtaskpool_operator.api.names import KIND
from llmtaskpool_operator.autoscaler.law import DEFAULTS
from llmtaskpool_operator.cluster.api_client import ApiFailure
from llmtaskpool_operator.cluster.controller import CHILDREN_SECONDS, TAKEN_SECONDS


def test_numbers_that_move_with_the_load_are_written_every_ten_seconds_at_most() -> None:
    rig = Rig(**AT_REST).settled()
    rig.now += 60
    written = []
    for second in range(31):
        rig.now += 1
        rig.cluster.states["a"] = worker_state("a", active=second % 4)
        rig.turn()
        if rig.writes:
            assert rig.writes == [STATUS]
            written.append(rig.now)
    gaps = [after - before for before, after in pairwise(written)]
    assert len(written) >= 3
    assert min(gaps) >= 10.0


def test_a_pod_that_gets_ready_is_written_at_once() -> None:
    rig = Rig(**AT_REST)
    rig.turn()
    rig.cluster.pods("a", state=worker_state("a"))
    rig.now += 1
    rig.turn()
    assert STATUS in rig.writes
    assert rig.condition("Ready")["status"] == "True"


def test_utilization_within_the_dead_band_is_not_written() -> None:
    rig = Rig(**AT_REST, scaling={"maxReplicas": 1}).settled()
    arrived, told = 0.0, []
    for step in range(12):
        arrived += 5 * (0.50 if step < 8 else 0.52)
        rig.now += 5
        rig.cluster.states["a"] = worker_state("a", arrived=arrived)
        rig.turn()
        told.append(rig.status["utilization"])
    assert told[7] == pytest.approx(0.5, abs=0.06)
    assert told[8:] == [told[7]] * 4


def test_an_event_that_can_not_be_written_stops_nothing() -> None:
    rig = Rig(**AT_REST)

    def fail(call: Any) -> None:
        if call[1] == "Event":
            raise ApiFailure(403, "403: forbidden")

    rig.api.before = fail
    rig.cluster.pods("a", ready=False, conditions=[], phase="Pending")
    rig.settled()
    assert rig.status["readyReplicas"] == 1
    assert rig.events == []


def test_a_service_that_is_somebody_elses_is_told_at_every_turn_and_pods_run_on() -> None:
    rig = Rig(**AT_REST)
    rig.api.put({"kind": "Service", "metadata": {"namespace": NAMESPACE, "name": NAME}, "spec": {}})
    rig.settled()
    assert "Service chat" in rig.condition("Stalled")["message"]
    assert rig.status["readyReplicas"] == 1
    assert rig.events.count("Stalled") == 1


def test_a_name_that_is_taken_is_told_and_the_pool_stalls() -> None:
    rig = Rig(**AT_REST)
    theirs = {"kind": "Deployment", "metadata": {"namespace": NAMESPACE, "name": NAME}, "spec": {}}
    before = rig.api.put(theirs)
    for _ in range(4):
        rig.now += 30
        assert rig.turn() == DEFAULTS.period_seconds  # no failure: there is no retry of anything
    assert rig.condition("Stalled")["reason"] == "NameTaken"
    assert "Deployment chat" in rig.condition("Stalled")["message"]
    assert rig.condition("Ready")["status"] == "False"
    assert rig.api.find("Deployment", NAMESPACE, NAME) == before
    assert rig.events == ["DegradedTrue", "Stalled"]  # once, and nothing of replicas
    assert rig.status["lastDecisions"] == []
    del rig.api.objects["Deployment", NAMESPACE, NAME]
    rig.now += 5
    rig.turn()
    assert rig.cluster.deployment["spec"]["replicas"] == 1
    assert rig.condition("Stalled") == {}


def test_a_name_that_is_free_again_is_taken_within_a_quarter_of_a_minute() -> None:
    rig = Rig(**AT_REST)
    rig.api.put({"kind": "Service", "metadata": {"namespace": NAMESPACE, "name": NAME}, "spec": {}})
    rig.settled()
    del rig.api.objects["Service", NAMESPACE, NAME]
    rig.now += TAKEN_SECONDS + 1
    rig.turn()
    assert rig.api.find("Service", NAMESPACE, NAME) is not None
    assert rig.condition("Stalled") == {}


# A spec that can't be read


def test_an_invalid_spec_stalls_the_pool_and_touches_nothing() -> None:
    rig = Rig(**AT_REST).settled()
    before = {key: body for key, body in rig.api.objects.items() if key[0] not in (KIND, "Event")}
    rig.respec(**ODD)
    rig.turn()
    assert rig.writes == [STATUS]
    assert rig.events[-1] == "Stalled"
    after = {key: body for key, body in rig.api.objects.items() if key[0] not in (KIND, "Event")}
    assert after == before
    stalled = rig.condition("Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "InvalidSpec")
    assert "lower minReplicas or raise maxReplicas" in stalled["message"]
    assert rig.condition("Ready")["status"] == "False"
    assert rig.status["observedGeneration"] == 2
    assert rig.status["desiredReplicas"] == 1  # as it was left


def test_a_new_pool_with_an_invalid_spec_gets_no_children() -> None:
    rig = Rig(**ODD)
    rig.turn()
    assert {key[0] for key in rig.api.objects} == {KIND, "Event"}
    assert rig.condition("Stalled")["reason"] == "InvalidSpec"


def test_an_invalid_spec_is_told_once_with_the_time_when_it_became_so() -> None:
    rig = Rig(**AT_REST).settled()
    rig.respec(**ODD)
    rig.turn()
    told = rig.condition("Ready")["lastTransitionTime"]
    for _ in range(3):
        rig.now += CHILDREN_SECONDS
        rig.turn()
        assert rig.api.calls == []
    assert rig.condition("Ready")["lastTransitionTime"] == told


def test_a_spec_that_is_mended_goes_on_and_the_stall_is_over() -> None:
    rig = Rig(**AT_REST).settled()
    rig.respec(**ODD)
    rig.turn()
    rig.respec(**AT_REST)
    rig.now += 1
    rig.turn()
    assert rig.condition("Stalled") == {}
    assert rig.condition("Ready")["status"] == "True"
    assert rig.status["observedGeneration"] == 3
