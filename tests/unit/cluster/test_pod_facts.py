"""What the status of pods and of their Deployment says, and which remedy it is told with."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.cluster_objects import pod_body
from llmtaskpool_operator.cluster import pod_facts
from llmtaskpool_operator.cluster.pod_facts import problems


def waits(name: str, reason: str, message: str = "", container: str = "worker") -> dict[str, Any]:
    waiting = {"reason": reason} | ({"message": message} if message else {})
    statuses = [{"name": container, "state": {"waiting": waiting}}]
    return pod_body(name, ready=False, containerStatuses=statuses)


def unschedulable(name: str) -> dict[str, Any]:
    conditions = [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/3 nodes have nvidia.com/gpu",
        }
    ]
    return pod_body(name, conditions=conditions)


def deployment(**conditions: dict[str, str]) -> dict[str, Any]:
    return {"status": {"conditions": [{"type": k} | v for k, v in conditions.items()]}}


def test_a_pods_address_is_its_ip_and_an_ipv6_address_gets_brackets() -> None:
    assert pod_facts.address(pod_body("a", podIP="10.0.0.7")) == "10.0.0.7"
    assert pod_facts.address(pod_body("a", podIP="fd00::7")) == "[fd00::7]"


@pytest.mark.parametrize("status", [{}, {"podIP": ""}, {"podIP": None}, None])
def test_a_pod_that_just_began_has_no_address_and_is_not_ready(status: Any) -> None:
    pod = pod_body("a") | {"status": status}
    assert pod_facts.address(pod) is None
    assert not pod_facts.is_ready(pod)
    assert not pod_facts.is_over(pod)
    assert problems(None, (pod,)) == ()


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


def test_pods_that_are_well_are_no_problem() -> None:
    fine = deployment(Progressing={"status": "True", "reason": "NewReplicaSetAvailable"})
    assert problems(fine, (pod_body("a"), pod_body("b", ready=False))) == ()
    assert problems(None, ()) == ()


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("InvalidImageName", "correct the image's name"),
        ("ErrImageNeverPull", "load the image onto the node"),
        ("CreateContainerConfigError", "correct the name"),
    ],
)
def test_what_does_not_go_away_by_itself_stalls_the_pool(reason: str, remedy: str) -> None:
    (problem,) = problems(None, (waits("chat-1", reason, 'secret "keys" not found'),))
    assert (problem.reason, problem.stalled) == (reason, True)
    assert problem.message.startswith('chat-1: secret "keys" not found: ')
    assert problem.message.endswith(remedy)


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("ImagePullBackOff", "pull secret"),
        ("ErrImagePull", "pull secret"),
        ("CrashLoopBackOff", "kubectl logs"),
    ],
)
def test_what_kubernetes_tries_again_does_not_stall_the_pool(reason: str, remedy: str) -> None:
    (problem,) = problems(None, (waits("chat-1", reason),))
    assert (problem.reason, problem.stalled) == (reason, False)
    assert problem.message.startswith(f"chat-1: {reason}: ")
    assert remedy in problem.message


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing", ""])
def test_a_pod_that_is_on_its_way_is_no_problem(reason: str) -> None:
    assert problems(None, (waits("a", reason),)) == ()


def test_a_sidecars_trouble_is_not_the_pools() -> None:
    assert problems(None, (waits("a", "CrashLoopBackOff", container="istio-proxy"),)) == ()


def test_a_pod_that_goes_is_no_problem_whatever_it_waits_for() -> None:
    pod = waits("a", "CrashLoopBackOff")
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert problems(None, (pod,)) == ()


def test_a_pod_that_no_node_takes_says_what_the_scheduler_says() -> None:
    (problem,) = problems(None, (unschedulable("chat-1"),))
    assert problem.reason == "Unschedulable"
    assert problem.message == "chat-1: 0/3 nodes have nvidia.com/gpu"
    assert not problem.stalled


def test_a_hundred_pods_with_one_trouble_are_one_problem() -> None:
    many = tuple(waits(f"chat-{i:03}", "ImagePullBackOff") for i in range(100))
    (problem,) = problems(None, many)
    assert problem.message.startswith("chat-000: ")


def test_pods_that_are_refused_stall_the_pool_with_the_reason() -> None:
    quota = {"status": "True", "reason": "FailedCreate", "message": "exceeded quota: gpus"}
    (problem,) = problems(deployment(ReplicaFailure=quota), ())
    assert (problem.reason, problem.stalled) == ("PodsRefused", True)
    assert "exceeded quota: gpus" in problem.message
    assert problems(deployment(ReplicaFailure=quota | {"status": "False"}), ()) == ()


def test_a_rollout_that_takes_too_long_is_told() -> None:
    late = {"status": "False", "reason": "ProgressDeadlineExceeded"}
    (problem,) = problems(deployment(Progressing=late), ())
    assert (problem.reason, problem.stalled) == ("RolloutStuck", False)


def test_the_gravest_problem_comes_first() -> None:
    late = {"status": "False", "reason": "ProgressDeadlineExceeded"}
    pods = (unschedulable("a"), waits("b", "CrashLoopBackOff"), waits("c", "InvalidImageName"))
    found = [problem.reason for problem in problems(deployment(Progressing=late), pods)]
    assert found == ["InvalidImageName", "RolloutStuck", "Unschedulable", "CrashLoopBackOff"]
