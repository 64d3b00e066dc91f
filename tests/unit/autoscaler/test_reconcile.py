"""The loop over scripted backends: what is seen is decided on, and failures stay alone."""

from __future__ import annotations

import asyncio

import pytest
from llmtaskpool_operator.api.names import API_VERSION, KIND
from llmtaskpool_operator.api.pool import LLMTaskPool
from llmtaskpool_operator.autoscaler.observation import PodObservation, PoolObservation
from llmtaskpool_operator.autoscaler.plan import SetReplicas, SetThreads
from llmtaskpool_operator.autoscaler.reconcile import LoopMemory, reconcile
from llmtaskpool_worker.contract import LaneName, LaneState, Phase, Work, WorkerState

NOW = 1_800_000_000.0


def pool(**scaling) -> LLMTaskPool:
    return LLMTaskPool.model_validate(
        {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": "p"},
            "spec": {"scaling": {"minReplicas": 1, "maxReplicas": 5, **scaling}},
        }
    )


def pod(name: str, *, arrived=0.0, queued=0, active=4, threads=4) -> PodObservation:
    lane = LaneState(threads=threads, threads_cap=64, active=active, queued=queued, queue_limit=100)
    state = WorkerState(
        worker_id=name,
        started_at=0,
        observed_at=0,
        phase=Phase.READY,
        threads_generation=6,
        lanes={LaneName.COMPUTE: lane},
        work=Work(arrived_seconds_total=arrived),
    )
    return PodObservation(name, ready=True, state=state)


class Scripted:
    """Observes what it is given; applies, or fails for the pods in ``broken``."""

    def __init__(self, *pods: PodObservation, broken=()) -> None:
        self.seen = PoolObservation(replicas=len(pods), pods=pods)
        self.broken = broken
        self.applied = []

    async def observe(self, now):
        return self.seen

    async def apply(self, action):
        if getattr(action, "pod", None) in self.broken:
            raise ConnectionError("no answer within 2 s")
        self.applied.append(action)


def turn(backend, *, memory=None, now=NOW, **scaling):
    return asyncio.run(reconcile(pool(**scaling), backend, memory or LoopMemory(), now))


def test_an_empty_pool_asks_for_its_minimum():
    backend = Scripted()
    result = turn(backend, minReplicas=2)
    assert [action.replicas for action in backend.applied] == [2]
    assert result.status.desired_replicas == 2


def test_a_queue_raises_threads_absolutely_with_the_next_generation_and_a_reason():
    backend = Scripted(pod("a", queued=12))
    turn(backend)
    (action,) = backend.applied
    assert isinstance(action, SetThreads)
    assert (action.pod, action.generation, action.threads[LaneName.COMPUTE]) == ("a", 7, 20)
    assert "over target 0.80" in action.reason


def test_one_actions_failure_stops_no_other_and_is_told():
    backend = Scripted(pod("a", queued=8), pod("b", queued=8), broken=("a",))
    result = turn(backend, minReplicas=4)
    assert {type(a) for a in backend.applied} == {SetThreads, SetReplicas}
    (failure,) = result.failures
    assert failure.action.pod == "a"
    assert "no answer" in str(failure.error)


def test_threads_are_decided_at_every_turn_and_replicas_every_five_seconds():
    memory, decided = LoopMemory(), []
    for second in range(11):
        result = turn(Scripted(pod("a")), memory=memory, now=NOW + second)
        memory = result.memory
        assert len(result.decisions.threads) == 1
        assert result.requeue_after == 1.0
        decided.append(result.decisions.replicas is not None)
    assert [second for second, was in enumerate(decided) if was] == [0, 5, 10]


def test_arriving_work_raises_replicas_from_one_decision_to_the_next():
    memory = turn(Scripted(pod("a"))).memory
    backend = Scripted(pod("a", arrived=15.0))
    result = turn(backend, memory=memory, now=NOW + 5)
    assert backend.applied[-1].replicas == 4  # 3 pod-seconds per second over 0.9
    assert result.status.last_decisions[0].what == "replicas"
    assert result.status.last_decisions[0].after == 4


def test_the_same_turn_twice_gives_the_same_plan():
    memory = turn(Scripted(pod("a"))).memory
    one, two = (
        turn(Scripted(pod("a", arrived=15.0)), memory=memory, now=NOW + 5) for _ in range(2)
    )
    assert one == two


def test_advice_is_decided_and_published_and_nothing_is_done():
    memory = turn(Scripted(pod("a")), mode="Advise").memory
    backend = Scripted(pod("a", arrived=15.0, queued=9))
    result = turn(backend, memory=memory, now=NOW + 5, mode="Advise")
    assert backend.applied == []
    assert result.decisions.replicas.desired == 4


def test_a_pool_that_can_not_be_observed_is_the_callers_to_try_again():
    class Blind(Scripted):
        async def observe(self, now):
            raise ConnectionError("the API server is away")

    with pytest.raises(ConnectionError):
        turn(Blind())
