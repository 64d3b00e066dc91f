"""A pool on a cluster in memory: what is read of it, and what is written to it, when and how."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fakes.cluster_objects import NAME, NAMESPACE, UID, pod_body
from fakes.memory_cluster import AROUND, KEY, MemoryCluster, backend, with_deployment
from llmtaskpool_operator.api.status import LLMTaskPoolStatus
from llmtaskpool_operator.autoscaler.plan import SetReplicas, SetThreads
from llmtaskpool_operator.cluster.api_client import ApiFailure, Fenced
from llmtaskpool_operator.cluster.backend import VICTIM_COST
from llmtaskpool_operator.cluster.store import has_template
from llmtaskpool_operator.workers.client import ThreadsRefused, WorkerUnreachable
from llmtaskpool_worker.contract import LaneName

APPLIED = ("apply", "Deployment", NAME)
CHILDREN = {"ServiceAccount", "Secret", "NetworkPolicy", "Service", "PodDisruptionBudget"}


# Children


def test_all_children_are_made_once_and_then_left_alone() -> None:
    cluster = MemoryCluster()
    of = backend(cluster)
    assert asyncio.run(of.ensure_children()) == ()
    assert {kind for _, kind, _ in cluster.api.writes} == CHILDREN
    cluster.api.calls.clear()
    asyncio.run(of.ensure_children())
    # The token's Secret can't be read: who does not know what he wrote writes it once more.
    assert [kind for _, kind, _ in cluster.api.writes] == ["Secret"]


def test_no_secret_is_ever_read() -> None:
    cluster = MemoryCluster()
    for _ in range(2):
        asyncio.run(backend(cluster).ensure_children())
    assert ("get", "Secret") not in {call[:2] for call in cluster.api.calls}


@pytest.mark.parametrize("kind", sorted(CHILDREN - {"Secret"}))
def test_a_child_that_somebody_changed_is_mended_and_no_other_is_written(kind: str) -> None:
    cluster = MemoryCluster()
    asyncio.run(backend(cluster).ensure_children())
    (name,) = [n for k, _, n in cluster.api.objects if k == kind]
    spoilt = cluster.api.find(kind, NAMESPACE, name)
    spoilt["metadata"]["labels"] = {"app": "mine"}
    cluster.api.put(spoilt)
    cluster.api.calls.clear()
    asyncio.run(backend(cluster).ensure_children())
    assert {k for _, k, _ in cluster.api.writes} == {kind, "Secret"}
    assert "llmtaskpool.io/pool" in cluster.api.find(kind, NAMESPACE, name)["metadata"]["labels"]


def test_a_child_that_was_deleted_is_made_again() -> None:
    cluster = MemoryCluster()
    asyncio.run(backend(cluster).ensure_children())
    del cluster.api.objects["Service", NAMESPACE, NAME]
    asyncio.run(backend(cluster).ensure_children())
    assert cluster.api.find("Service", NAMESPACE, NAME) is not None


def test_each_child_of_a_new_pool_costs_one_request() -> None:
    cluster, written = MemoryCluster(), {}
    of = backend(cluster)
    asyncio.run(of.ensure_children(written, new=True))
    asyncio.run(of.ensure_deployment(new=True))
    assert len(cluster.api.calls) == len(CHILDREN | {"Deployment"})
    assert {kind for kind, _, _ in cluster.api.objects} == CHILDREN | {"Deployment"}
    cluster.api.calls.clear()
    asyncio.run(of.ensure_children(written))
    asyncio.run(of.ensure_deployment())
    assert cluster.api.writes == []


def test_children_that_are_there_when_a_pool_only_seems_new_are_mended() -> None:
    cluster = MemoryCluster()
    asyncio.run(backend(cluster).ensure_children())
    (name,) = [n for k, _, n in cluster.api.objects if k == "NetworkPolicy"]
    spoilt = cluster.api.find("NetworkPolicy", NAMESPACE, name)
    cluster.api.put(spoilt | {"spec": {}})
    assert asyncio.run(backend(cluster).ensure_children(new=True)) == ()
    assert cluster.api.find("NetworkPolicy", NAMESPACE, name)["spec"] != {}


@pytest.mark.parametrize("new", [True, False])
def test_somebody_elses_service_of_the_same_name_is_told_and_never_written(new: bool) -> None:
    cluster = MemoryCluster()
    theirs = {"kind": "Service", "metadata": {"namespace": NAMESPACE, "name": NAME}, "spec": {}}
    before = cluster.api.put(theirs)
    (problem,) = asyncio.run(backend(cluster).ensure_children(new=new))
    assert (problem.reason, problem.stalled) == ("NameTaken", True)
    assert "Service chat" in problem.message
    assert "remove it, or rename the pool" in problem.message
    assert cluster.api.find("Service", NAMESPACE, NAME) == before
    assert {kind for kind, _, _ in cluster.api.objects} == CHILDREN


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("owners", [[], [{"uid": "the pool before", "controller": True}]])
def test_somebody_elses_secret_of_the_same_name_is_told_and_never_written(
    owners: list, new: bool
) -> None:
    cluster = MemoryCluster()
    meta = {"namespace": NAMESPACE, "name": f"{NAME}-llmtaskpool-control"}
    theirs = {"kind": "Secret", "metadata": meta | {"ownerReferences": owners}, "data": {"a": "b"}}
    before = cluster.api.put(theirs)
    (problem,) = asyncio.run(backend(cluster).ensure_children(new=new))
    assert (problem.reason, problem.stalled) == ("NameTaken", True)
    assert f"Secret {NAME}-llmtaskpool-control" in problem.message
    assert cluster.api.find("Secret", NAMESPACE, meta["name"]) == before


def test_the_tokens_secret_is_written_again_only_when_somebody_wrote_it() -> None:
    cluster, written = MemoryCluster(), {}
    asyncio.run(backend(cluster).ensure_children(written))
    cluster.api.calls.clear()
    asyncio.run(backend(cluster).ensure_children(written))
    assert cluster.api.writes == []
    spoilt = cluster.api.find("Secret", NAMESPACE, f"{NAME}-llmtaskpool-control")
    cluster.api.put(spoilt | {"data": {"token": "bWluZQ=="}})
    asyncio.run(backend(cluster).ensure_children(written))
    assert [kind for _, kind, _ in cluster.api.writes] == ["Secret"]


def test_children_and_deployment_belong_to_the_pool_by_uid() -> None:
    cluster = MemoryCluster()
    of = backend(cluster)
    asyncio.run(of.ensure_children())
    asyncio.run(of.ensure_deployment())
    for body in cluster.api.objects.values():
        (owner,) = body["metadata"]["ownerReferences"]
        assert owner["uid"] == UID


# The Deployment


@pytest.mark.parametrize(
    ("spec", "replicas"),
    [
        ({}, 1),
        ({"scaling": {"minReplicas": 3}}, 3),
        ({"scaling": {"minReplicas": 0}}, 0),
        ({"scaling": {"mode": "Advise", "minReplicas": 2}}, 2),
        ({"scaling": {"mode": "Fixed"}, "replicas": 4}, 4),
        ({"scaling": {"mode": "External", "minReplicas": 0}, "replicas": 0}, 0),
        ({"scaling": {"mode": "External"}, "replicas": 0}, 1),
        ({"scaling": {"mode": "External", "maxReplicas": 5}, "replicas": 9}, 5),
        ({"scaling": {"mode": "External", "minReplicas": 2}}, 2),
        ({"replicas": 8}, 1),
    ],
)
def test_a_new_pool_starts_with_its_minimum_or_with_what_its_owner_says(spec, replicas) -> None:
    cluster = MemoryCluster()
    assert asyncio.run(backend(cluster, **spec).ensure_deployment()) == ()
    assert cluster.deployment["spec"]["replicas"] == replicas


@pytest.mark.parametrize(("had", "gets"), [(7, 7), (0, 2), (1, 2), (500, 10)])
def test_a_deployment_that_was_deleted_comes_back_with_what_it_had(had: int, gets: int) -> None:
    cluster = MemoryCluster()
    status = LLMTaskPoolStatus(desired_replicas=had)
    scaling = {"minReplicas": 2, "maxReplicas": 10}
    asyncio.run(backend(cluster, status=status, scaling=scaling).ensure_deployment())
    assert cluster.deployment["spec"]["replicas"] == gets


def test_a_deployment_as_it_should_be_costs_no_request() -> None:
    cluster = with_deployment(5)
    asyncio.run(backend(cluster).ensure_deployment())
    assert cluster.api.calls == []


def test_a_deployment_that_agreed_is_kept_without_its_template_and_costs_no_request() -> None:
    cluster = with_deployment(5)
    agreed = cluster.store.drop_template(KEY)
    assert not has_template(agreed)
    asyncio.run(backend(cluster).ensure_deployment(agreed))
    assert cluster.api.calls == []
    assert asyncio.run(backend(cluster).observe(50.0)).replicas == 5


def test_a_template_that_somebody_changed_after_it_agreed_is_mended() -> None:
    cluster = with_deployment(5)
    agreed = cluster.store.drop_template(KEY)
    theirs = cluster.deployment
    theirs["spec"]["template"]["spec"]["containers"][0]["image"] = "mine"
    cluster.api.put(theirs)
    cluster.catch_up()
    asyncio.run(backend(cluster).ensure_deployment(agreed))
    assert cluster.api.calls == [APPLIED]
    assert cluster.deployment["spec"]["template"]["spec"]["containers"][0]["image"] != "mine"


@pytest.mark.parametrize("missed", [True, False])
def test_who_compares_a_deployment_without_its_template_reads_it_anew(missed: bool) -> None:
    cluster = with_deployment(5)
    cluster.store.drop_template(KEY)
    if missed:  # by the watch
        theirs = cluster.deployment
        theirs["spec"]["template"]["spec"]["containers"][0]["image"] = "mine"
        cluster.api.put(theirs)
    asyncio.run(backend(cluster).ensure_deployment())
    assert [call[0] for call in cluster.api.calls] == ["get", *(["apply"] if missed else [])]
    assert cluster.deployment["spec"]["template"]["spec"]["containers"][0]["image"] != "mine"


def test_a_new_spec_changes_the_template_and_keeps_the_replicas() -> None:
    cluster = with_deployment(5)
    asyncio.run(backend(cluster, image="worker:2").ensure_deployment())
    assert cluster.api.calls == [APPLIED]
    spec = cluster.deployment["spec"]
    assert spec["replicas"] == 5
    assert spec["template"]["spec"]["containers"][0]["image"] == "worker:2"


@pytest.mark.parametrize("new", [True, False])
def test_a_deployment_that_the_watch_has_not_told_of_yet_is_not_overwritten(new: bool) -> None:
    cluster = with_deployment(5)
    cluster.store.gone("Deployment", cluster.deployment)
    newer = cluster.deployment
    newer["spec"]["replicas"] = 6
    cluster.api.put(newer)  # and no event of it
    asyncio.run(backend(cluster).ensure_deployment(new=new))
    assert APPLIED not in cluster.api.calls
    assert cluster.deployment["spec"]["replicas"] == 6


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("owners", [[], [{"uid": "the pool before", "controller": True}]])
def test_somebody_elses_deployment_is_told_and_never_written(known: bool, owners: list) -> None:
    cluster = with_deployment(5)
    theirs = cluster.deployment
    theirs["metadata"]["ownerReferences"] = owners
    theirs["metadata"]["labels"] = {"llmtaskpool.io/pool": NAME}  # not all that ours have
    cluster.api.put(theirs)
    if known:
        cluster.catch_up()
    else:
        cluster.store.gone("Deployment", theirs)
        cluster.api.put(theirs)
    of = backend(cluster, image="worker:2")
    (problem,) = asyncio.run(of.ensure_deployment())
    assert (problem.reason, problem.stalled) == ("NameTaken", True)
    with pytest.raises(ApiFailure, match="no Deployment of ours"):
        asyncio.run(of.apply(SetReplicas(2, ("a",), "r")))
    assert asyncio.run(of.observe(50.0)).replicas == 0
    assert cluster.api.writes == []


# Replicas


def test_growing_is_one_write_on_the_condition_that_nothing_changed() -> None:
    cluster = with_deployment(3, "a", "b", "c")
    asked: list[str | None] = []
    apply = cluster.api.apply

    async def recorded(manifest: Any, *, version: str | None = None, **more: Any) -> Any:
        asked.append(version)
        return await apply(manifest, version=version, **more)

    cluster.api.apply = recorded
    version = cluster.deployment["metadata"]["resourceVersion"]
    asyncio.run(backend(cluster).apply(SetReplicas(5, (), "r")))
    assert cluster.api.calls == [APPLIED]
    assert asked == [version]
    assert cluster.deployment["spec"]["replicas"] == 5
    assert cluster.marked() == []


def test_shrinking_marks_the_victims_and_nobody_else_and_then_asks_for_fewer() -> None:
    cluster = with_deployment(4, "a", "b", "c", "d")
    asyncio.run(backend(cluster).apply(SetReplicas(2, ("b", "d"), "r")))
    marks = {("merge", "Pod", "b"), ("merge", "Pod", "d")}
    assert set(cluster.api.calls[:2]) == marks
    assert cluster.api.calls[2:] == [APPLIED]
    assert cluster.marked() == ["b", "d"]
    assert cluster.cost("b") == VICTIM_COST
    assert int(VICTIM_COST) < 0  # those without a mark count 0
    assert cluster.deployment["spec"]["replicas"] == 2


def test_marks_of_an_earlier_plan_are_taken_away_from_who_stays() -> None:
    cluster = with_deployment(4, "a", "b", "c", "d")
    of = backend(cluster)
    asyncio.run(of.apply(SetReplicas(3, ("a",), "r")))
    asyncio.run(of.apply(SetReplicas(2, ("b", "c"), "r")))
    assert cluster.marked() == ["b", "c"]


def test_a_pod_that_is_marked_already_is_not_written_again() -> None:
    cluster = with_deployment(4, "a", "b", "c", "d")
    of = backend(cluster)
    asyncio.run(of.apply(SetReplicas(3, ("a",), "r")))
    cluster.api.calls.clear()
    asyncio.run(of.apply(SetReplicas(2, ("a", "b"), "r")))
    assert cluster.api.calls == [("merge", "Pod", "b"), APPLIED]


def test_a_pod_that_goes_already_is_not_marked() -> None:
    cluster = with_deployment(3, "a", "b")
    cluster.put(pod_body("c", going=True))
    asyncio.run(backend(cluster).apply(SetReplicas(1, ("a", "c"), "r")))
    assert cluster.marked() == ["a"]


def test_a_victim_that_is_gone_by_now_stops_nothing() -> None:
    cluster = with_deployment(3, "a", "b", "c")
    del cluster.api.objects["Pod", NAMESPACE, "a"]
    asyncio.run(backend(cluster).apply(SetReplicas(2, ("a",), "r")))
    assert cluster.deployment["spec"]["replicas"] == 2


@pytest.mark.parametrize("error", [ApiFailure(500, "500: no"), Fenced("does not lead")])
def test_without_its_marks_a_fall_does_not_happen(error: Exception) -> None:
    """Else Kubernetes would choose the victims, and might take the busiest."""
    cluster = with_deployment(3, "a", "b", "c")

    def fail(call: Any) -> None:
        if call[0] == "merge":
            raise error

    cluster.api.before = fail
    with pytest.raises(type(error)):
        asyncio.run(backend(cluster).apply(SetReplicas(2, ("a",), "r")))
    assert APPLIED not in cluster.api.calls
    assert cluster.deployment["spec"]["replicas"] == 3


def moved(cluster: MemoryCluster, times: int, **change: Any) -> None:
    """Somebody writes the Deployment just before each of our next writes."""
    left = [times]

    def write(call: Any) -> None:
        if call == APPLIED and left[0]:
            left[0] -= 1
            live = cluster.deployment
            live["status"] = {"readyReplicas": left[0]}
            live["spec"] |= change
            cluster.api.put(live)

    cluster.api.before = write


def test_a_write_that_met_a_change_of_the_status_is_tried_again() -> None:
    cluster = with_deployment(3)
    moved(cluster, 2)
    asyncio.run(backend(cluster).apply(SetReplicas(5, (), "r")))
    assert cluster.deployment["spec"]["replicas"] == 5
    assert cluster.api.calls.count(APPLIED) == 3


def test_a_write_that_always_meets_a_change_of_the_status_ends() -> None:
    cluster = with_deployment(3)
    moved(cluster, 100)
    with pytest.raises(ApiFailure) as failed:
        asyncio.run(backend(cluster).apply(SetReplicas(5, (), "r")))
    assert failed.value.code == 409
    assert cluster.api.calls.count(APPLIED) <= 5


def test_a_write_that_met_a_change_of_the_spec_is_given_up_and_decided_anew() -> None:
    cluster = with_deployment(3)
    moved(cluster, 1, replicas=9)
    of = backend(cluster)
    with pytest.raises(ApiFailure) as failed:
        asyncio.run(of.apply(SetReplicas(5, (), "r")))
    assert failed.value.code == 409
    assert cluster.deployment["spec"]["replicas"] == 9
    assert asyncio.run(of.observe(50.0)).replicas == 9  # the next turn knows of it


def test_a_write_that_met_a_deletion_makes_the_deployment_again() -> None:
    cluster = with_deployment(3)
    key = ("Deployment", NAMESPACE, NAME)
    cluster.api.before = lambda call: call == APPLIED and cluster.api.objects.pop(key, None)
    asyncio.run(backend(cluster).apply(SetReplicas(5, (), "r")))
    assert cluster.deployment["spec"]["replicas"] == 5


@pytest.mark.parametrize("code", [0, 403, 422, 500])
def test_other_failures_are_the_callers(code: int) -> None:
    cluster = with_deployment(3)

    def fail(_: Any) -> None:
        raise ApiFailure(code, "no")

    cluster.api.before = fail
    with pytest.raises(ApiFailure) as failed:
        asyncio.run(backend(cluster).apply(SetReplicas(5, (), "r")))
    assert failed.value.code == code
    assert len(cluster.api.calls) == 1


def test_what_was_written_is_known_at_once() -> None:
    """Not only when the watch tells of it: else the next turn would decide on old replicas."""
    cluster = with_deployment(3)
    of = backend(cluster)
    asyncio.run(of.apply(SetReplicas(5, (), "r")))
    assert asyncio.run(of.observe(50.0)).replicas == 5


# Threads


def test_threads_are_set_at_the_pods_own_control_port_with_the_pools_token() -> None:
    cluster = with_deployment(2, "a", "b")
    action = SetThreads("b", 4, {LaneName.COMPUTE: 12}, "r")
    asyncio.run(backend(cluster).apply(action))
    assert cluster.threads == [("b", 4, {LaneName.COMPUTE: 12})]
    assert cluster.tokens == {AROUND.control_token}
    assert cluster.api.calls == []


def test_threads_of_a_pod_that_is_gone_or_has_no_address_are_told() -> None:
    cluster = with_deployment(1)
    cluster.put(pod_body("new", podIP=""))
    for name in ("gone", "new"):
        with pytest.raises(WorkerUnreachable, match=name):
            asyncio.run(backend(cluster).apply(SetThreads(name, 1, {LaneName.COMPUTE: 2}, "r")))


def test_a_worker_that_knows_better_is_heard() -> None:
    cluster = with_deployment(1, "a")
    cluster.refuses = True
    with pytest.raises(ThreadsRefused):
        asyncio.run(backend(cluster).apply(SetThreads("a", 1, {LaneName.COMPUTE: 2}, "r")))
