"""What is in the way of pods and of their Deployment, and which remedy it is told with."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.cluster_objects import pod_body
from llmtaskpool_operator.cluster.pod_problems import problems, starting_in_silence


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


def test_a_sidecar_that_can_not_start_is_told_with_its_name() -> None:
    (problem,) = problems(None, (waits("a", "CrashLoopBackOff", container="istio-proxy"),))
    assert problem.message.startswith("a: container istio-proxy: CrashLoopBackOff: ")
    assert "kubectl logs a -c istio-proxy" in problem.message


def test_an_init_container_that_can_not_start_is_told_before_what_waits_for_it() -> None:
    waiting = {"state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}
    pod = waits("a", "PodInitializing")
    pod["status"]["initContainerStatuses"] = [{"name": "fetch"} | waiting]
    (problem,) = problems(None, (pod,))
    assert problem.reason == "ErrImagePull"
    assert problem.message.startswith("a: init container fetch: no such image: ")


def test_an_init_container_that_is_done_is_no_problem_even_if_it_failed_at_first() -> None:
    done = {
        "name": "fetch",
        "state": {"terminated": {"exitCode": 0, "reason": "Completed"}},
        "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
        "restartCount": 3,
    }
    pod = waits("a", "PodInitializing")
    pod["status"]["initContainerStatuses"] = [done]
    assert problems(None, (pod,)) == ()


def ended(name: str, reason: str, code: int, state: dict[str, Any], **more: Any) -> dict[str, Any]:
    last = {"terminated": {"reason": reason, "exitCode": code} | more.pop("words", {})}
    status = {"name": "worker", "ready": False, "state": state, "lastState": last} | more
    return pod_body(name, ready=False, containerStatuses=[status])


BACK_OFF = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting"}}
RUNS: dict[str, Any] = {"running": {}}


@pytest.mark.parametrize("state", [BACK_OFF, RUNS], ids=["waits", "runs again"])
def test_a_pod_without_memory_enough_is_told_so_with_its_limit(state: dict[str, Any]) -> None:
    (problem,) = problems(None, (ended("a", "OOMKilled", 137, state),), memory="512Mi")
    assert problem.reason == "OOMKilled"
    assert "its memory limit of 512Mi" in problem.message
    assert "spec.resources.limits.memory" in problem.message


def test_the_limit_that_the_pod_has_is_told_and_not_the_one_that_the_next_will_have() -> None:
    had = {"resources": {"limits": {"memory": "256Mi"}}}
    pod = ended("a", "OOMKilled", 137, BACK_OFF, **had)
    (problem,) = problems(None, (pod,), memory="512Mi")
    assert "256Mi" in problem.message
    (problem,) = problems(None, (ended("a", "OOMKilled", 137, BACK_OFF),))
    assert "it has no limit" in problem.message


def test_a_pod_that_is_ready_again_is_no_problem_whatever_ended_it_once() -> None:
    last = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    status = {"name": "worker", "ready": True, "state": RUNS, "lastState": last}
    assert problems(None, (pod_body("a", containerStatuses=[status | {"restartCount": 9}]),)) == ()


def test_a_worker_that_ends_again_and_again_is_told_with_its_last_words() -> None:
    words = {"words": {"message": "line one\nllmtaskpool-worker serve: --threads: no number\n"}}
    (problem,) = problems(None, (ended("a", "Error", 2, BACK_OFF, **words),))
    assert problem.reason == "CrashLoopBackOff"
    assert "exit code 2: llmtaskpool-worker serve: --threads: no number: read" in problem.message
    assert "kubectl logs a -c worker --previous" in problem.message


def test_between_two_ends_it_is_told_as_well() -> None:
    again = ended("a", "Error", 1, RUNS, restartCount=2)
    once = ended("a", "Error", 1, RUNS, restartCount=1)
    assert [problem.reason for problem in problems(None, (again,))] == ["CrashLoopBackOff"]
    assert problems(None, (once,)) == ()


def test_a_word_of_a_later_kubelet_is_told_too() -> None:
    (problem,) = problems(None, (waits("a", "GPUTooHot", "93 C"),))
    assert problem.reason == "ContainerWaits"
    assert problem.message == "a: GPUTooHot: 93 C: kubectl describe pod a"


def test_a_pod_that_never_ends_is_told_with_what_to_do() -> None:
    (problem,) = problems(None, (pod_body("a", going=True),), now=2_000_000_000.0)
    assert problem.reason == "StuckTerminating"
    assert "2026-01-01T00:00:00Z" in problem.message
    assert "kubectl delete pod a --force" in problem.message


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "CrashLoopBackOff"])
def test_a_rollout_stalls_with_the_reason_of_its_pods(reason: str) -> None:
    updating = deployment(Progressing={"status": "True", "reason": "ReplicaSetUpdated"})
    (problem,) = problems(updating, (pod_body("old"), waits("new", reason)))
    assert (problem.reason, problem.stalled) == (reason, True)


def test_a_pod_that_joins_those_of_its_kind_and_fails_does_not_stall_the_pool() -> None:
    rolled = deployment(Progressing={"status": "True", "reason": "NewReplicaSetAvailable"})
    (problem,) = problems(rolled, (pod_body("a"), waits("b", "ImagePullBackOff")))
    assert not problem.stalled


PLACED = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
AT = 1_767_225_600.0


def silent(name: str = "a", reason: str = "ContainerCreating", **about: Any) -> dict[str, Any]:
    pod = waits(name, reason)
    pod["status"]["conditions"] = [PLACED]
    pod["status"] |= about
    return pod


def test_a_pod_that_waits_for_its_volumes_starts_in_silence() -> None:
    assert starting_in_silence((silent(),), AT + 4) != ()
    assert starting_in_silence((silent(containerStatuses=None),), AT + 4) != ()
    assert starting_in_silence((silent(),), AT + 1) == ()


def test_a_pod_that_tells_or_runs_or_goes_or_has_no_node_is_not_silent() -> None:
    runs = {"name": "worker", "state": {"running": {}}}
    going = silent()
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    others = (
        silent(reason="ErrImagePull"),
        silent(containerStatuses=[runs]),
        silent(conditions=[]),
        going,
    )
    for pod in others:
        assert starting_in_silence((pod,), AT + 60) == ()


def test_a_pod_that_goes_is_no_problem_whatever_it_waits_for() -> None:
    pod = waits("a", "CrashLoopBackOff")
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert problems(None, (pod,)) == ()


def test_a_pod_that_no_node_takes_says_what_the_scheduler_says() -> None:
    (problem,) = problems(None, (unschedulable("chat-1"),))
    assert problem.reason == "Unschedulable"
    assert problem.message == "chat-1: 0/3 nodes have nvidia.com/gpu"
    assert not problem.stalled


def test_a_pod_that_a_queue_holds_says_who_lets_it_go() -> None:
    gated = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
    (problem,) = problems(None, (pod_body("chat-1", conditions=[gated]),))
    assert (problem.reason, problem.stalled) == ("SchedulingGated", False)
    assert "Kueue" in problem.message


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
    assert (problem.reason, problem.stalled) == ("RolloutStuck", True)


def test_the_gravest_problem_comes_first() -> None:
    late = {"status": "False", "reason": "ProgressDeadlineExceeded"}
    pods = (unschedulable("a"), waits("b", "CrashLoopBackOff"), waits("c", "InvalidImageName"))
    found = [problem.reason for problem in problems(deployment(Progressing=late), pods)]
    assert found == ["CrashLoopBackOff", "InvalidImageName", "RolloutStuck", "Unschedulable"]
