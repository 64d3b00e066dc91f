"""What a pool on a cluster in memory is seen as."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fakes.cluster_objects import NAME, NAMESPACE, pod_body, worker_state
from fakes.cluster_objects import pool as pool_of
from fakes.memory_cluster import AROUND, KEY, MemoryCluster, backend, with_deployment
from llmtaskpool_operator.autoscaler.plan import SetThreads
from llmtaskpool_operator.cluster.backend import KubernetesBackend
from llmtaskpool_operator.workers.states import PodStates
from llmtaskpool_worker.contract import LaneName


def test_pods_are_seen_with_what_they_say_of_themselves() -> None:
    cluster = with_deployment(4)
    cluster.pods("busy", state=worker_state("busy", active=3))
    cluster.pods("starting", ready=False, state=worker_state("starting"))
    cluster.put(pod_body("going", going=True))
    cluster.pods("silent")
    cluster.pods("over", phase="Failed")
    seen = asyncio.run(backend(cluster).observe(53.0))
    found = {pod.name: pod for pod in seen.pods}
    assert sorted(found) == ["busy", "going", "silent", "starting"]
    assert seen.replicas == 4
    assert found["busy"].state.lanes[LaneName.COMPUTE].active == 3
    assert found["busy"].age_seconds == pytest.approx(3.0)
    assert found["busy"].ready
    assert not found["starting"].ready
    assert found["going"].draining
    assert not found["going"].ready
    assert found["silent"].state is None
    assert seen.missing == ("silent",)


def test_a_pod_that_falls_silent_keeps_its_last_answer_and_it_gets_older() -> None:
    cluster = with_deployment(1)
    cluster.pods("a", state=worker_state())
    now = [50.0]
    states = PodStates(lambda: now[0])
    of = KubernetesBackend(pool_of(), AROUND, cluster.access, states)

    async def twice() -> tuple[Any, Any]:
        first = await of.observe(50.0)
        cluster.states.clear()
        now[0] = 70.0
        return first, await of.observe(70.0)

    first, later = asyncio.run(twice())
    assert first.pods[0].age_seconds == 0
    assert later.pods[0].state == first.pods[0].state
    assert later.pods[0].age_seconds == pytest.approx(20.0)


def test_a_pod_whose_clock_stands_still_gets_as_old_as_one_that_is_silent() -> None:
    cluster = with_deployment(1)
    cluster.pods("a", state=worker_state())
    cluster.frozen = True
    now = [50.0]
    of = KubernetesBackend(pool_of(), AROUND, cluster.access, PodStates(lambda: now[0]))

    async def twice() -> tuple[Any, Any]:
        first = await of.observe(50.0)
        now[0] = 90.0
        return first, await of.observe(90.0)

    first, later = asyncio.run(twice())
    assert first.missing == ()
    assert later.missing == ("a",)
    assert later.pods[0].age_seconds == pytest.approx(40.0)
    assert later.pods[0].error == "observed_at stands still at 0.000"


def test_a_pod_that_has_just_answered_is_not_asked_again() -> None:
    cluster = with_deployment(1)
    cluster.pods("a", state=worker_state())
    now = [50.0]
    of = KubernetesBackend(pool_of(), AROUND, cluster.access, PodStates(lambda: now[0]))

    async def asked(at: float) -> int:
        now[0], before = at, cluster.answers
        await of.observe(at)
        return cluster.answers - before

    async def thrice() -> list[int]:
        return [await asked(50.0), await asked(50.2), await asked(51.0)]

    assert asyncio.run(thrice()) == [1, 0, 1]


def test_a_pod_that_was_given_other_threads_is_asked_at_once_what_it_has_now() -> None:
    cluster = with_deployment(1)
    cluster.pods("a", state=worker_state())
    of = backend(cluster)

    async def changed() -> int:
        await of.observe(50.0)
        await of.apply(SetThreads("a", 3, {LaneName.COMPUTE: 8}, "more work than threads"))
        await of.observe(50.0)
        return cluster.answers

    assert asyncio.run(changed()) == 2


def test_a_pool_without_pods_and_deployment_is_seen_as_empty() -> None:
    cluster = MemoryCluster()
    seen = asyncio.run(backend(cluster).observe(50.0))
    assert (seen.replicas, seen.pods, seen.problems, seen.rival) == (0, (), (), None)


def test_a_deployment_that_names_no_replicas_asks_for_one() -> None:
    cluster = with_deployment(3)
    live = cluster.deployment
    del live["spec"]["replicas"]
    cluster.put(live)
    assert asyncio.run(backend(cluster).observe(50.0)).replicas == 1


def test_what_is_in_the_way_is_seen() -> None:
    cluster = with_deployment(1)
    waiting = {"waiting": {"reason": "ImagePullBackOff"}}
    cluster.pods("a", ready=False, containerStatuses=[{"name": "worker", "state": waiting}])
    (problem,) = asyncio.run(backend(cluster).observe(50.0)).problems
    assert problem.reason == "ImagePullBackOff"


def written_by(cluster: MemoryCluster, kind: str, manager: str) -> None:
    body = cluster.api.find(kind, NAMESPACE, NAME)
    fields = {"f:spec": {"f:replicas": {}}}
    entry = {"manager": manager, "time": "2026-01-01T00:00:00Z", "fieldsV1": fields}
    body["metadata"]["managedFields"] = [entry]
    cluster.put(body)


def test_who_else_writes_the_deployments_replicas_is_named() -> None:
    cluster = with_deployment(3)
    written_by(cluster, "Deployment", "kubectl-edit")
    assert "kubectl-edit" in asyncio.run(backend(cluster).observe(50.0)).rival
    fixed = {"scaling": {"mode": "External"}, "replicas": 3}
    assert asyncio.run(backend(cluster, **fixed).observe(50.0)).rival is None


def test_our_own_writes_are_no_rivals() -> None:
    cluster = with_deployment(3)
    written_by(cluster, "Deployment", "llmtaskpool")
    assert asyncio.run(backend(cluster).observe(50.0)).rival is None


def test_who_writes_scale_is_a_rival_and_who_applied_the_pool_is_none() -> None:
    cluster = with_deployment(3, replicas=4)
    assert "/scale" in asyncio.run(backend(cluster, replicas=4).observe(50.0)).rival
    written_by(cluster, "LLMTaskPool", "kubectl-client-side-apply")
    assert asyncio.run(backend(cluster, replicas=4).observe(50.0)).rival is None


def test_another_pools_pods_are_not_seen() -> None:
    cluster = with_deployment(1, "a")
    other = pod_body("b")
    other["metadata"]["labels"]["llmtaskpool.io/pool"] = "other"
    cluster.put(other)
    seen = asyncio.run(backend(cluster).observe(50.0))
    assert [pod.name for pod in seen.pods] == ["a"]
    assert cluster.store.pods(KEY)[0]["metadata"]["name"] == "a"
