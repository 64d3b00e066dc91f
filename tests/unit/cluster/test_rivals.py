"""Who else writes replicas: told when it happens, with the way out, and not for ever."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.cluster_objects import NAME, NAMESPACE
from fakes.controller_rig import AT_REST, Rig
from llmtaskpool_operator.api.names import KIND
from llmtaskpool_operator.cluster.rivals import TOLD_SECONDS

SCALED = ("merge/scale", KIND, NAME)
EXTERNAL: dict[str, Any] = {"mode": "External", "minReplicas": 1, "maxReplicas": 4}


def scaled(rig: Rig, replicas: int) -> None:
    """Somebody writes /scale, which leaves no manager on record."""
    body = rig.api.find(KIND, NAMESPACE, NAME)
    body["spec"]["replicas"] = replicas
    rig.cluster.put(body)
    rig.now += 1
    rig.turn()


def by_hand(rig: Rig, replicas: int, manager: str = "kubectl-scale") -> None:
    """Somebody scales the Deployment."""
    live = rig.cluster.deployment
    live["spec"]["replicas"] = replicas
    fields = {"f:spec": {"f:replicas": {}}}
    entry = {"manager": manager, "time": "2027-01-15T08:00:00Z", "fieldsV1": fields}
    live["metadata"]["managedFields"] = [entry]
    rig.cluster.put(live)


# Mode Auto


def test_one_kubectl_scale_is_told_with_the_way_out_and_ends() -> None:
    rig = Rig(**AT_REST).settled()
    scaled(rig, 3)
    conflict = rig.condition("ScalingConflict")
    assert (
        "set scaling.mode to External, or stop it and remove spec.replicas" in (conflict["message"])
    )
    assert rig.cluster.deployment["spec"]["replicas"] == 1
    rig.now += TOLD_SECONDS - 5
    rig.turn()
    assert rig.condition("ScalingConflict") != {}
    rig.now += 10
    rig.turn()
    assert rig.condition("ScalingConflict") == {}
    scaled(rig, 4)
    assert rig.condition("ScalingConflict") != {}
    assert rig.events.count("ScalingConflict") == 2


def test_the_conflict_ends_at_once_when_spec_replicas_is_removed() -> None:
    rig = Rig(**AT_REST).settled()
    scaled(rig, 3)
    body = rig.api.find(KIND, NAMESPACE, NAME)
    del body["spec"]["replicas"]
    rig.cluster.put(body)
    rig.turn()
    assert rig.condition("ScalingConflict") == {}


def test_another_leader_neither_forgets_the_conflict_nor_begins_it_anew() -> None:
    rig = Rig(**AT_REST).settled()
    scaled(rig, 3)
    rig.controller = rig.another()
    rig.now += TOLD_SECONDS / 2
    rig.turn()
    assert rig.condition("ScalingConflict") != {}
    rig.controller = rig.another()
    rig.now += TOLD_SECONDS / 2 + 5
    rig.turn()
    assert rig.condition("ScalingConflict") == {}
    rig.controller = rig.another()
    rig.now += 5
    rig.turn()
    assert rig.condition("ScalingConflict") == {}


def test_a_pool_that_comes_from_external_has_no_conflict_with_what_was_written_there() -> None:
    rig = Rig(scaling=EXTERNAL, **AT_REST).settled()
    scaled(rig, 3)
    body = rig.api.find(KIND, NAMESPACE, NAME)
    body["spec"]["scaling"]["mode"] = "Auto"
    rig.cluster.put(body)
    rig.turn()
    assert rig.condition("ScalingConflict") == {}


def test_who_scaled_the_deployment_is_told_for_ten_minutes() -> None:
    rig = Rig(**AT_REST).settled()
    rig.now = 1_800_000_060.0  # 2027-01-15T08:01:00Z
    by_hand(rig, 1)
    rig.turn()
    assert "kubectl-scale (on the Deployment)" in rig.condition("ScalingConflict")["message"]
    rig.now += TOLD_SECONDS
    rig.turn()
    assert rig.condition("ScalingConflict") == {}


# Mode External


def test_scale_can_be_read_from_the_first_turn_and_no_number_is_written_twice() -> None:
    rig = Rig(scaling=EXTERNAL | {"minReplicas": 2}, **AT_REST)
    rig.turn()
    assert rig.api.calls.count(SCALED) == 1
    assert rig.api.find(KIND, NAMESPACE, NAME)["spec"]["replicas"] == 2
    for _ in range(3):
        rig.now += 5
        rig.turn()
        assert SCALED not in rig.api.calls


def test_a_number_that_is_taken_away_comes_back_as_it_is_and_not_as_the_minimum() -> None:
    rig = Rig(scaling=EXTERNAL, **AT_REST).settled()
    scaled(rig, 3)
    rig.respec(scaling=EXTERNAL, **AT_REST)  # kubectl replace
    rig.now += 1
    rig.turn()
    assert rig.api.find(KIND, NAMESPACE, NAME)["spec"]["replicas"] == 3
    rig.turn()
    assert rig.cluster.deployment["spec"]["replicas"] == 3


def test_a_number_that_somebody_writes_at_that_moment_holds() -> None:
    rig = Rig(scaling=EXTERNAL, **AT_REST)

    def write(call: Any) -> None:
        if call == SCALED:
            body = rig.api.find(KIND, NAMESPACE, NAME)
            body["spec"]["replicas"] = 4
            rig.api.put(body)

    rig.api.before = write
    rig.turn()
    rig.now += 1
    rig.turn()
    assert rig.api.find(KIND, NAMESPACE, NAME)["spec"]["replicas"] == 4
    assert rig.cluster.deployment["spec"]["replicas"] == 4


@pytest.mark.parametrize("mode", ["Auto", "Advise"])
def test_in_other_modes_the_users_spec_is_never_written(mode: str) -> None:
    rig = Rig(scaling={"mode": mode}, **AT_REST).settled()
    assert "replicas" not in rig.api.find(KIND, NAMESPACE, NAME)["spec"]


@pytest.mark.parametrize(
    ("asked", "gets", "reason", "bound"),
    [(9, 4, "TooManyReplicas", "maxReplicas is 4"), (0, 2, "TooFewReplicas", "minReplicas is 2")],
)
def test_the_bounds_hold_and_a_write_beyond_them_is_told_until_it_is_within(
    asked: int, gets: int, reason: str, bound: str
) -> None:
    rig = Rig(scaling=EXTERNAL | {"minReplicas": 2}, **AT_REST).settled()
    scaled(rig, asked)
    assert rig.cluster.deployment["spec"]["replicas"] == gets
    told = rig.condition("ScalingLimited")
    assert (told["status"], told["reason"]) == ("True", reason)
    assert (
        f"spec.replicas is {asked}, written through /scale, and scaling.{bound}"
        in (told["message"])
    )
    scaled(rig, 3)
    assert rig.cluster.deployment["spec"]["replicas"] == 3
    assert rig.condition("ScalingLimited") == {}


def test_a_deployment_that_somebody_scaled_by_hand_is_put_back_and_that_is_told() -> None:
    rig = Rig(scaling=EXTERNAL, **AT_REST).settled()
    by_hand(rig, 3)
    rig.turn()
    assert rig.cluster.deployment["spec"]["replicas"] == 1
    assert "kubectl scale llmtaskpool/chat" in rig.condition("ScalingConflict")["message"]
    assert "ScalingConflict" in rig.events
    decision = rig.status["lastDecisions"][0]
    assert "kubectl-scale (on the Deployment) had asked for 3" in decision["reason"]


# minReplicas: 0


def test_a_pool_without_pods_whose_gate_cant_start_says_that_nothing_wakes_it() -> None:
    rig = Rig(scaling={"minReplicas": 0}, **AT_REST)
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    status = {"containerStatuses": [{"name": "gate", "state": waiting}]}
    rig.cluster.gate("g", ready=False, **status)
    for _ in range(2):
        rig.turn()
        rig.now += 5
    told = rig.condition("Degraded")
    assert (told["status"], told["reason"]) == ("True", "NothingWakes")
    assert "no such image" in told["message"]
    assert "raise minReplicas, or give scaling.schedules" in told["message"]
    assert rig.turn() == 5.0  # it rests all the same


OFFICE = {"start": "0 8 * * 1-5", "end": "0 18 * * 1-5", "minReplicas": 2}


@pytest.mark.parametrize(
    "scaling", [EXTERNAL | {"minReplicas": 0}, {"minReplicas": 0, "schedules": [OFFICE]}]
)
def test_a_pool_that_somebody_or_the_clock_wakes_is_well_without_pods(scaling: Any) -> None:
    rig = Rig(scaling=scaling, **AT_REST)
    rig.now = 1_800_129_600.0  # a night
    for _ in range(2):
        rig.turn()
        rig.now += 5
    assert rig.condition("Degraded")["status"] == "False"
