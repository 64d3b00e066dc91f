"""Whole turns of a pool on a cluster in memory: what is done, what is told, when it comes again."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from fakes.cluster_objects import NAME, NAMESPACE, UID, pod_body, pool_body, worker_state
from fakes.controller_rig import AT_REST, ODD, SECRET, STATUS, Rig
from fakes.memory_cluster import KEY
from llmtaskpool_operator.api.names import KIND
from llmtaskpool_operator.cluster.api_client import ApiFailure, Fenced
from llmtaskpool_operator.cluster.controller import (
    CHILD_SECONDS,
    CHILDREN_SECONDS,
    control_token,
)
from prometheus_client import generate_latest

# A pool's life


def test_the_first_turn_makes_all_children_and_the_second_tells_a_status() -> None:
    rig = Rig(scaling={"minReplicas": 2})
    assert rig.turn() == 1.0
    assert STATUS not in rig.api.calls  # the CRD's default says as much
    rig.now += 1
    rig.turn()
    kinds = [key[0] for key in rig.api.objects]
    for kind in ("ServiceAccount", "Secret", "NetworkPolicy", "Service", "Deployment"):
        assert kind in kinds
    assert rig.cluster.deployment["spec"]["replicas"] == 2
    assert rig.status["observedGeneration"] == 1
    assert rig.status["desiredReplicas"] == 2
    assert rig.status["selector"].endswith("llmtaskpool.io/pool=chat")
    assert rig.condition("Ready")["status"] == "False"


def test_a_new_pool_with_a_name_that_is_taken_is_told_at_once() -> None:
    rig = Rig()
    rig.api.put({"kind": "Service", "metadata": {"namespace": NAMESPACE, "name": NAME}, "spec": {}})
    rig.turn()
    assert rig.condition("Stalled")["reason"] == "NameTaken"


def test_work_that_arrives_makes_the_deployment_larger_and_an_event_tells_why() -> None:
    rig = Rig(scaling={"maxReplicas": 8}, **AT_REST).settled()
    rig.cluster.states["a"] = worker_state("a", active=4, arrived=100.0)
    rig.now += 5
    rig.turn()
    assert rig.cluster.deployment["spec"]["replicas"] > 1
    assert rig.status["desiredReplicas"] == rig.cluster.deployment["spec"]["replicas"]
    (event,) = [
        body
        for key, body in rig.api.objects.items()
        if key[0] == "Event" and body["reason"] == "ScalingReplicas"
    ]
    assert event["regarding"]["uid"] == UID
    assert event["type"] == "Normal"
    assert event["note"].startswith("1 -> ")
    assert event["reportingInstance"] == "replica-1"


def test_a_turn_in_which_nothing_happened_writes_nothing() -> None:
    rig = Rig(**AT_REST).settled()
    for _ in range(5):
        rig.now += 5
        rig.turn()
        assert rig.api.calls == []


def test_a_deleted_pool_has_no_next_turn_and_nothing_is_written() -> None:
    rig = Rig(**AT_REST).settled()
    rig.cluster.store.gone(KIND, rig.api.objects.pop((KIND, NAMESPACE, NAME)))
    assert rig.turn() is None
    assert rig.api.calls == []
    assert NAME.encode() not in generate_latest(rig.metrics.registry)


def test_a_pool_that_is_being_deleted_is_left_alone() -> None:
    rig = Rig(**AT_REST).settled()
    body = rig.api.find(KIND, NAMESPACE, NAME)
    body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    rig.cluster.put(body)
    rig.cluster.pods("a", ready=False)
    assert rig.turn() is None
    assert rig.api.calls == []


def test_a_pool_that_was_never_there_is_no_error() -> None:
    rig = Rig()
    rig.cluster.store.gone(KIND, rig.api.objects.pop((KIND, NAMESPACE, NAME)))
    assert rig.turn() is None


def test_a_pool_that_is_made_anew_under_its_name_begins_anew() -> None:
    rig = Rig(**AT_REST).settled()
    for (kind, _, _), gone in list(rig.api.objects.items()):
        if kind in ("Deployment", "Pod", KIND):
            rig.cluster.store.gone(kind, gone)
    rig.api.objects.clear()
    body = pool_body(**AT_REST)
    body["metadata"]["uid"] = "another"
    rig.cluster.put(body)
    rig.turn()
    (owner,) = rig.cluster.deployment["metadata"]["ownerReferences"]
    assert owner["uid"] == "another"
    assert [decision["after"] for decision in rig.status.get("lastDecisions", ())] == []
    secret = rig.api.find("Secret", NAMESPACE, f"{NAME}-llmtaskpool-control")
    told = base64.b64decode(secret["data"]["token"]).decode()
    assert told == control_token(SECRET, "another")


def test_children_are_looked_at_when_the_spec_changes_and_every_ten_minutes() -> None:
    rig = Rig(**AT_REST).settled()
    del rig.api.objects["Service", NAMESPACE, NAME]
    rig.now += CHILDREN_SECONDS / 2
    rig.turn()
    assert rig.api.find("Service", NAMESPACE, NAME) is None
    rig.now += CHILDREN_SECONDS / 2 + 1
    rig.turn()
    assert rig.api.find("Service", NAMESPACE, NAME) is not None
    del rig.api.objects["Service", NAMESPACE, NAME]
    rig.respec(**AT_REST, image="worker:2")
    rig.turn()
    assert rig.api.find("Service", NAMESPACE, NAME) is not None


def test_a_child_that_is_said_to_be_gone_comes_back_at_the_next_turn() -> None:
    rig = Rig(**AT_REST).settled()
    rig.controller.child_lost(KEY)
    for _ in range(2):
        del rig.api.objects["Service", NAMESPACE, NAME]
        rig.now += 1.5
        rig.turn()
    assert rig.api.find("Service", NAMESPACE, NAME) is None  # one word is good for one look
    rig.controller.child_lost(KEY)
    rig.now += 1.5
    rig.turn()
    assert rig.api.find("Service", NAMESPACE, NAME) is not None


def test_a_child_that_goes_when_it_was_just_looked_at_comes_back_too() -> None:
    rig = Rig(**AT_REST).settled()
    seen: list[str] = []
    gone: list[Any] = []

    def taken_away(call: Any) -> None:
        if "Service" in seen and not gone:
            gone.append(rig.api.objects.pop(("Service", NAMESPACE, NAME)))
            rig.controller.child_lost(KEY)
        seen.append(call[1])

    rig.controller.child_lost(KEY)
    rig.now += 3
    rig.api.before = taken_away
    assert rig.turn() == CHILD_SECONDS
    assert gone
    rig.now += CHILD_SECONDS
    rig.turn()
    assert rig.api.find("Service", NAMESPACE, NAME) is not None


def test_who_deletes_a_child_again_and_again_gets_it_back_every_two_seconds_at_most() -> None:
    rig = Rig(**AT_REST).settled()
    looks = 0
    for _ in range(40):
        rig.controller.child_lost(KEY)
        rig.now += 0.5
        rig.turn()
        looks += bool(rig.api.calls)
    assert looks == 10


def test_a_pod_that_starts_in_silence_makes_the_operator_look_for_what_it_may_miss() -> None:
    rig = Rig(**AT_REST).settled()
    token = ("Secret", NAMESPACE, f"{NAME}-llmtaskpool-control")
    del rig.api.objects[token]
    placed = {
        "type": "PodScheduled",
        "status": "True",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    rig.cluster.pods("b", ready=False, conditions=[placed], podIP="")
    for _ in range(2):
        rig.now += 1
        rig.turn()
    assert token in rig.api.objects


def test_a_deployment_that_somebody_deleted_comes_back_with_what_it_had() -> None:
    rig = Rig(scaling={"maxReplicas": 8, "minReplicas": 1}, **AT_REST).settled()
    rig.cluster.states["a"] = worker_state("a", active=4, arrived=100.0)
    rig.now += 5
    rig.turn()
    had = rig.cluster.deployment["spec"]["replicas"]
    assert had > 1
    rig.cluster.store.gone("Deployment", rig.api.objects.pop(("Deployment", NAMESPACE, NAME)))
    rig.now += 1
    rig.turn()
    assert rig.cluster.deployment["spec"]["replicas"] == had


def test_a_deployment_that_somebody_changes_at_rest_is_mended_at_the_next_turn() -> None:
    rig = Rig(**AT_REST).settled()
    body = rig.cluster.deployment
    body["spec"]["template"]["spec"]["hostNetwork"] = True
    body["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 1
    rig.cluster.put(body)
    rig.now += 5
    rig.turn()
    assert rig.cluster.deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 1


def test_a_new_leader_goes_on_where_the_last_one_stopped() -> None:
    rig = Rig(scaling={"maxReplicas": 8}, **AT_REST).settled()
    rig.cluster.states["a"] = worker_state("a", active=4, arrived=100.0)
    rig.now += 5
    rig.turn()
    before = rig.status
    assert before["lastDecisions"]
    rig.controller = rig.another()
    rig.now += 1
    rig.turn()
    assert rig.status["lastDecisions"] == before["lastDecisions"]
    assert rig.status["desiredReplicas"] == before["desiredReplicas"]
    times = {c["type"]: c["lastTransitionTime"] for c in before["conditions"]}
    for condition in rig.status["conditions"]:
        if condition["type"] == "Ready":
            assert condition["lastTransitionTime"] == times["Ready"]


@pytest.mark.parametrize("status", [{"replicas": -4}, {"conditions": "none"}, {"unknown": 1}])
def test_an_odd_status_that_was_left_behind_is_made_anew(status: dict[str, Any]) -> None:
    rig = Rig(**AT_REST)
    rig.cluster.put(rig.api.find(KIND, NAMESPACE, NAME) | {"status": status})
    rig.turn()
    rig.now += 1
    rig.turn()
    assert rig.status["observedGeneration"] == 1


# When the next turn is


def test_an_idle_pool_at_rest_is_looked_at_every_five_seconds() -> None:
    rig = Rig(**AT_REST).settled()
    assert rig.turn() == 5.0


@pytest.mark.parametrize("state", [{"active": 1}, {"queued": 1}])
def test_a_busy_pool_is_looked_at_every_second(state: dict[str, int]) -> None:
    rig = Rig(**AT_REST).settled()
    rig.cluster.states["a"] = worker_state("a", **state)
    rig.now += 1
    assert rig.turn() == 1.0


@pytest.mark.parametrize("name", ["a", "b"], ids=["its one pod", "one too many"])
@pytest.mark.parametrize("pod", [{"ready": False}, {"going": True}, {}])
def test_a_pool_that_is_on_its_way_is_looked_at_every_second(
    name: str, pod: dict[str, bool]
) -> None:
    rig = Rig(**AT_REST).settled()
    rig.cluster.states[name] = worker_state(name)
    rig.cluster.put(pod_body(name, **pod))
    assert rig.turn() == (5.0 if name == "a" and not pod else 1.0)


def test_a_pool_with_a_silent_pod_is_looked_at_every_second() -> None:
    rig = Rig(**AT_REST).settled()
    rig.controller = rig.another()
    rig.cluster.states.clear()
    assert rig.turn() == 1.0


def test_a_pool_without_pods_is_at_rest_when_it_wants_none() -> None:
    rig = Rig(scaling={"minReplicas": 0}, **AT_REST)
    rig.turn()
    rig.now += 5
    assert rig.turn() == 5.0
    assert rig.cluster.deployment["spec"]["replicas"] == 0


def test_a_pool_that_can_not_be_read_is_looked_at_rarely() -> None:
    assert Rig(**ODD).turn() == CHILDREN_SECONDS


# Failures


@pytest.mark.parametrize("error", [ApiFailure(500, "500: no"), Fenced("does not lead")])
@pytest.mark.parametrize("verb", ["make", "apply/status"])
def test_a_write_that_fails_is_the_callers_to_try_again(error: Exception, verb: str) -> None:
    rig = Rig(**AT_REST)

    def fail(call: Any) -> None:
        if call[0] == verb:
            raise error

    rig.api.before = fail
    with pytest.raises(type(error)):
        rig.settled()
    rig.api.before = lambda _call: None
    rig.settled()
    assert rig.condition("Ready")["status"] == "True"


def test_replicas_that_could_not_be_written_fail_the_turn_and_the_next_one_writes_them() -> None:
    rig = Rig(scaling={"maxReplicas": 8}, **AT_REST).settled()
    rig.cluster.states["a"] = worker_state("a", active=4, arrived=100.0)

    def fail(call: Any) -> None:
        if call[:2] == ("apply", "Deployment"):
            raise ApiFailure(500, "500: no")

    rig.api.before = fail
    rig.now += 5
    with pytest.raises(ApiFailure):
        rig.turn()
    assert rig.cluster.deployment["spec"]["replicas"] == 1
    assert "ScalingReplicas" not in rig.events
    assert rig.status["desiredReplicas"] == 1
    rig.api.before = lambda _call: None
    rig.now += 5
    rig.turn()
    assert rig.cluster.deployment["spec"]["replicas"] > 1


def test_a_worker_that_refuses_its_threads_fails_no_turn() -> None:
    rig = Rig(threads={"compute": {"min": 4}}).settled()
    rig.cluster.states["a"] = worker_state("a", active=4, queued=40)
    rig.cluster.refuses = True
    rig.now += 1
    assert rig.turn() == 1.0
    rig.cluster.refuses = False
    rig.now += 1
    rig.turn()
    assert [name for name, _, _ in rig.cluster.threads] == ["a"]


def test_what_is_forgotten_when_another_leads_leaves_no_series() -> None:
    rig = Rig(**AT_REST).settled()
    assert NAME.encode() in generate_latest(rig.metrics.registry)
    rig.controller.forget_all()
    assert NAME.encode() not in generate_latest(rig.metrics.registry)


# The control token


def test_a_pools_control_token_is_stable_and_differs_for_each_pool_and_each_operator() -> None:
    token = control_token(SECRET, UID)
    assert token == control_token(SECRET, UID)
    assert token != control_token(SECRET, "another pool")
    assert token != control_token(b"another operator", UID)
    assert len(token) >= 43  # 256 bits
    assert set(token) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


def test_workers_are_asked_with_the_token_that_their_secret_holds() -> None:
    rig = Rig(**AT_REST).settled()
    secret = rig.api.find("Secret", NAMESPACE, f"{NAME}-llmtaskpool-control")
    assert rig.cluster.tokens == {base64.b64decode(secret["data"]["token"]).decode()}
    assert SECRET.decode() not in str(rig.api.objects)
