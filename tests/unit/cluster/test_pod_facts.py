"""What the status of a pod and of a Deployment says: ready, going, lost, rolled out."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.cluster_objects import pod_body
from llmtaskpool_operator.cluster import pod_facts


def test_a_pods_address_is_its_ip_and_an_ipv6_address_gets_brackets() -> None:
    assert pod_facts.address(pod_body("a", podIP="10.0.0.7")) == "10.0.0.7"
    assert pod_facts.address(pod_body("a", podIP="fd00::7")) == "[fd00::7]"


@pytest.mark.parametrize("status", [{}, {"podIP": ""}, {"podIP": None}, None])
def test_a_pod_that_just_began_has_no_address_and_is_not_ready(status: Any) -> None:
    pod = pod_body("a") | {"status": status}
    assert pod_facts.address(pod) is None
    assert not pod_facts.is_ready(pod)
    assert not pod_facts.is_over(pod)


def test_a_pod_is_ready_when_kubernetes_says_so() -> None:
    assert pod_facts.is_ready(pod_body("a"))
    assert not pod_facts.is_ready(pod_body("a", ready=False))
    unknown = [{"type": "Ready", "status": "Unknown"}]
    assert not pod_facts.is_ready(pod_body("a", conditions=unknown))


def test_a_pod_that_goes_is_not_ready_even_while_it_still_answers() -> None:
    going = pod_body("a", going=True)
    assert pod_facts.is_going(going)
    assert not pod_facts.is_ready(going)
    assert not pod_facts.is_going(pod_body("a"))


@pytest.mark.parametrize(
    ("phase", "over"),
    [("Failed", True), ("Succeeded", True), ("Running", False), ("Pending", False)],
)
def test_a_pod_whose_containers_ended_for_good_is_over(phase: str, over: bool) -> None:
    assert pod_facts.is_over(pod_body("a", phase=phase)) is over


ENDS = 1_767_225_600.0
"""2026-01-01T00:00:00Z, by when a pod that goes should have ended."""


def test_a_pod_that_should_long_have_ended_is_lost_and_one_that_drains_is_not() -> None:
    going = pod_body("a", going=True)
    assert not pod_facts.is_lost(going, ENDS - 60)
    assert not pod_facts.is_lost(going, ENDS + 9)
    assert pod_facts.is_lost(going, ENDS + 11)
    assert not pod_facts.is_lost(pod_body("a"), ENDS + 11)


def deployment(generation: int = 2, **status: Any) -> dict[str, Any]:
    return {"metadata": {"generation": generation}, "status": status}


def test_a_change_that_kubernetes_has_not_looked_at_is_a_rollout() -> None:
    seen = {"replicas": 3, "updatedReplicas": 3}
    assert "not looked" in pod_facts.rollout(deployment(observedGeneration=1, **seen))
    assert pod_facts.rollout(deployment(observedGeneration=2, **seen)) == ""
    assert "not looked" in pod_facts.rollout(deployment())


def test_a_rollout_lasts_until_the_last_old_pod_is_gone_and_counts_them() -> None:
    left = pod_facts.rollout(deployment(observedGeneration=2, replicas=4, updatedReplicas=1))
    assert left == "1 of 4 pods are as the spec says now: 3 old ones go"
    assert pod_facts.rollout(deployment(observedGeneration=2)) == ""
