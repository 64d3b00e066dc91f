"""A new operator version changes a few pools at one time, and what somebody asks for at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fakes.cluster_objects import NAME, NAMESPACE, worker_state
from fakes.controller_rig import AT_REST, SECRET, Rig
from fakes.memory_cluster import KEY
from llmtaskpool_operator.api.names import KIND
from llmtaskpool_operator.cluster.controller import Controller, OperatorIdentity
from llmtaskpool_operator.cluster.rollouts import Rollouts
from llmtaskpool_operator.cluster.store import PoolKey

OTHER = PoolKey("team-b", "busy")


class Upgraded(Rig):
    """A pool at rest, and then an operator of another version, with room for one rollout."""

    def __init__(self, **spec: Any) -> None:
        super().__init__(**spec)
        self.settled()
        self.done()
        self.rollouts = Rollouts(1)
        access = replace(self.cluster.access, rollouts=self.rollouts)
        identity = OperatorIdentity("new", "llmtaskpool-system", "worker:2", SECRET)
        self.controller = Controller(access, identity, self.metrics, lambda: self.now)

    def done(self) -> None:
        """Kubernetes has replaced all pods."""
        live = self.cluster.deployment
        seen = {"observedGeneration": live["metadata"]["generation"]}
        self.cluster.put(live | {"status": seen | {"replicas": 1, "updatedReplicas": 1}})

    def turns(self, count: int = 1) -> None:
        for _ in range(count):
            self.now += 5
            self.turn()

    @property
    def image(self) -> str:
        return self.cluster.deployment["spec"]["template"]["spec"]["containers"][0]["image"]


def test_a_pool_waits_while_another_is_changed_and_says_for_whom() -> None:
    rig = Upgraded(**AT_REST)
    rig.rollouts.begins(OTHER)
    rig.turns(3)
    assert rig.image == "worker:1"
    told = rig.condition("Reconciling")
    assert told["reason"] == "RollingOut"
    assert "at most 1 pools are changed at one time, and team-b/busy are" in told["message"]
    assert "maxConcurrentRollouts" in told["message"]
    assert rig.condition("Ready")["status"] == "True"
    rig.rollouts.ended(OTHER)
    rig.turns()
    assert rig.image == "worker:2"
    rig.done()
    rig.turns()
    assert rig.condition("Reconciling") == {}
    assert rig.rollouts.begins(OTHER)


def test_a_pool_that_waits_asks_the_server_nothing() -> None:
    rig = Upgraded(**AT_REST)
    rig.rollouts.begins(OTHER)
    rig.turns(2)
    for _ in range(5):
        rig.turns()
        assert rig.api.calls == []


def test_what_somebody_changes_of_a_pool_is_done_at_once() -> None:
    rig = Upgraded(**AT_REST)
    rig.rollouts.begins(OTHER)
    rig.turns(2)
    rig.respec(**AT_REST, image="mine:3")
    rig.turns()
    assert rig.image == "mine:3"


def test_a_label_of_the_pool_that_is_to_reach_its_pods_does_and_leaves_them_with_it() -> None:
    rig = Rig(propagateLabels=["cost-center", "kueue.x-k8s.io/queue-name"], **AT_REST).settled()

    def labels() -> tuple[dict[str, str], dict[str, str]]:
        live = rig.cluster.deployment
        return live["metadata"]["labels"], live["spec"]["template"]["metadata"]["labels"]

    for given in ({"cost-center": "7", "mine": "x"}, {"cost-center": "8"}):
        body = rig.api.find(KIND, NAMESPACE, NAME)
        rig.cluster.put(body | {"metadata": body["metadata"] | {"labels": given}})
        rig.now += 5
        rig.turn()
        for found in labels():
            assert found["cost-center"] == given["cost-center"]
            assert "mine" not in found
            assert found["app.kubernetes.io/name"] == "llmtaskpool-worker"


def test_a_changed_pool_is_applied_even_where_nothing_that_it_asks_for_is_missing() -> None:
    rig = Rig(**AT_REST, nodeSelector={"gpu": "yes"}).settled()
    rig.respec(**AT_REST)
    rig.turn()
    assert ("apply", "Deployment", NAME) in rig.api.calls
    rig.turn()
    assert ("apply", "Deployment", NAME) not in rig.api.calls


def test_a_pool_that_waits_grows_with_its_load_as_it_is() -> None:
    rig = Upgraded(scaling={"maxReplicas": 8}, **AT_REST)
    rig.rollouts.begins(OTHER)
    rig.turns(2)
    for arrived in (100.0, 200.0, 300.0):
        rig.cluster.states["a"] = worker_state("a", active=4, queued=40, arrived=arrived)
        rig.turns()
    assert rig.cluster.deployment["spec"]["replicas"] > 1
    assert rig.image == "worker:1"


def test_a_pool_that_goes_while_it_is_changed_makes_room() -> None:
    rig = Upgraded(**AT_REST)
    rig.turns()
    assert rig.image == "worker:2"
    assert not rig.rollouts.begins(OTHER)
    rig.controller.forget(KEY)
    assert rig.rollouts.begins(OTHER)


def test_a_rollout_that_was_under_way_when_the_operator_came_counts() -> None:
    rig = Upgraded(**AT_REST)
    live = rig.cluster.deployment
    rig.cluster.put(live | {"status": live["status"] | {"replicas": 2}})
    rig.turns()
    assert not rig.rollouts.begins(OTHER)


def test_of_many_pools_so_many_begin_as_may_and_the_next_follows_each_that_ends() -> None:
    rollouts = Rollouts(2)
    keys = [PoolKey("n", f"p{number}") for number in range(5)]
    assert [rollouts.begins(key) for key in keys] == [True, True, False, False, False]
    assert rollouts.held(keys[2])
    rollouts.ended(keys[0])
    assert not rollouts.held(keys[2])
    assert rollouts.begins(keys[2])
    assert rollouts.waits(keys[2]) == ""
    assert "n/p1, n/p2 are" in rollouts.waits(keys[3])
