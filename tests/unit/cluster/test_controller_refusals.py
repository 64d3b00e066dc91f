"""Turns of a pool of which the server refuses something: it is told, and the pool lives on."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.cluster_objects import NAME, worker_state
from fakes.controller_rig import AT_REST, Rig
from llmtaskpool_operator.cluster.api_client import ApiFailure

INVALID = '422: Deployment "chat" is invalid: spec.template.spec.nodeSelector: Invalid value: "a b"'


def refuses(rig: Rig, *calls: str, text: str = INVALID, code: int = 422) -> None:
    """The server refuses writes of these kinds that ask for more than replicas."""

    def refuse(call: Any) -> None:
        if call[0] in ("make", "apply") and call[1] in calls:
            raise ApiFailure(code, text)

    rig.api.before = refuse


def test_a_new_pool_whose_deployment_is_refused_says_so_at_once() -> None:
    rig = Rig(**AT_REST)
    refuses(rig, "Deployment")
    rig.turn()
    for kind in ("Stalled", "Degraded"):
        told = rig.condition(kind)
        assert (told["status"], told["reason"]) == ("True", "Refused")
        assert 'nodeSelector: Invalid value: "a b"' in told["message"]
        assert "change spec.nodeSelector of the pool" in told["message"]
    assert rig.condition("Ready")["status"] == "False"
    assert rig.status["observedGeneration"] == 1
    assert "Stalled" in rig.events


def test_a_webhook_that_is_down_is_told_and_what_waited_for_it_comes_with_it() -> None:
    rig = Rig(**AT_REST)
    refuses(rig, "Deployment", text='500: failed calling webhook "p": refused', code=500)
    rig.turn()
    assert rig.condition("Degraded")["reason"] == "WebhookFails"
    assert rig.condition("Ready")["status"] == "False"
    assert rig.condition("Stalled") == {}
    rig.api.before = lambda _call: None
    rig.now += 5
    rig.turn()
    assert rig.condition("Degraded")["status"] == "False"
    assert rig.cluster.deployment["spec"]["replicas"] == 1


@pytest.mark.parametrize("kind", ["Service", "Secret", "NetworkPolicy", "ServiceAccount"])
def test_a_child_that_is_refused_is_told_and_all_others_are_made(kind: str) -> None:
    rig = Rig(**AT_REST)
    quota = "403: services is forbidden: exceeded quota: few"
    refuses(rig, kind, text=quota, code=403)
    rig.settled()
    assert rig.condition("Stalled")["reason"] == "Refused"
    assert "exceeded quota: few: raise the quota" in rig.condition("Stalled")["message"]
    assert rig.condition("Ready")["status"] == "False"
    made = {key[0] for key in rig.api.objects}
    assert {"Deployment", "Service", "Secret", "NetworkPolicy", "ServiceAccount"} - made == {kind}
    rig.api.before = lambda _call: None
    rig.now += 16
    rig.turn()
    assert rig.condition("Stalled") == {}
    assert rig.condition("Ready")["status"] == "True"


def loaded(rig: Rig, arrived: float) -> None:
    rig.cluster.states["a"] = worker_state("a", active=4, queued=40, arrived=arrived)
    rig.now += 5
    rig.turn()


def test_while_a_change_is_refused_threads_and_replicas_follow_the_load() -> None:
    spec: dict[str, Any] = {
        "threads": {"compute": {"min": 4, "max": 32}},
        "scaling": {"maxReplicas": 8},
    }
    rig = Rig(**spec).settled()
    before = rig.cluster.deployment["spec"]["template"]
    refuses(rig, "Deployment")
    rig.respec(**spec, nodeSelector={"a": "c"})
    rig.now += 1
    rig.turn()
    assert rig.condition("Stalled")["reason"] == "Refused"
    assert rig.condition("Ready")["status"] == "True"  # its pods serve as before
    assert rig.status["observedGeneration"] == 2
    rig.cluster.threads.clear()
    for arrived in (100.0, 200.0, 300.0):
        loaded(rig, arrived)
    assert rig.cluster.deployment["spec"]["replicas"] > 1
    assert rig.cluster.deployment["spec"]["template"] == before
    assert rig.cluster.threads != []
    assert "ScalingReplicas" in rig.events


def test_a_change_that_is_refused_is_not_asked_for_at_each_turn_and_is_taken_when_it_may() -> None:
    rig = Rig(**AT_REST).settled()
    refuses(rig, "Deployment")
    rig.respec(**AT_REST, image="worker:2")
    asked = 0
    for _ in range(60):
        rig.now += 1
        rig.turn()
        asked += rig.api.calls.count(("apply", "Deployment", NAME))
    assert 4 <= asked <= 7
    assert rig.events.count("Stalled") == 1
    rig.api.before = lambda _call: None
    rig.now += 31
    rig.turn()
    containers = rig.cluster.deployment["spec"]["template"]["spec"]["containers"]
    assert containers[0]["image"] == "worker:2"
    assert rig.condition("Stalled") == {}


def test_another_number_of_replicas_that_is_refused_is_told_and_threads_follow_on() -> None:
    rig = Rig(threads={"compute": {"min": 4, "max": 32}}, scaling={"maxReplicas": 8}).settled()
    refuses(rig, "Deployment", text="403: forbidden: exceeded quota: few", code=403)
    rig.cluster.threads.clear()
    for arrived in (100.0, 200.0, 300.0):
        loaded(rig, arrived)
    assert rig.condition("Stalled")["reason"] == "Refused"
    assert "the number of replicas of Deployment chat" in rig.condition("Stalled")["message"]
    assert rig.condition("Ready")["status"] == "True"
    assert rig.cluster.threads != []
    rig.api.before = lambda _call: None
    rig.now += 30
    loaded(rig, 900.0)
    loaded(rig, 1200.0)
    assert rig.cluster.deployment["spec"]["replicas"] > 1
    assert rig.condition("Stalled") == {}
