"""Two operators that see one pool: the second stands back while the first lives, and says so."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from fakes.cluster_objects import NAME, NAMESPACE
from fakes.controller_rig import AT_REST, SECRET, Rig
from llmtaskpool_operator.api.names import KIND
from llmtaskpool_operator.cluster.access import ClusterAccess
from llmtaskpool_operator.cluster.api_client import ApiFailure
from llmtaskpool_operator.cluster.claims import LEASE_SECONDS, LOOK_SECONDS, OtherOperators
from llmtaskpool_operator.cluster.controller import (
    STAND_BACK_SECONDS,
    Controller,
    OperatorIdentity,
)
from llmtaskpool_operator.cluster.manifests import OPERATOR

FIRST, SECOND = "llmtaskpool-system/llmtaskpool-operator", "b/b-operator"
TOKEN = ("Secret", NAMESPACE, f"{NAME}-llmtaskpool-control")


class Two(Rig):
    """Two operators; the first serves the pool, and renews its Lease as ``lives`` says."""

    def __init__(self, **spec: Any) -> None:
        super().__init__(**spec)
        self.first = self.controller
        others = OtherOperators(self.api, SECOND, lambda: self.now)
        cluster = self.cluster
        access = ClusterAccess(cluster.store, cluster.api, cluster.access.worker, others)
        identity = OperatorIdentity("pod-b", "b", "worker:2", SECRET, "b-operator")
        self.second = Controller(access, identity, self.metrics, lambda: self.now)
        self.lives = True

    def turns(self, who: Controller, count: int = 1) -> float | None:
        self.controller = who
        for _ in range(count):
            self.now += 5
            if self.lives:
                self.renew()
            wait = self.turn()
        return wait

    def renew(self) -> None:
        spec = {"holderIdentity": "pod-a", "renewTime": str(self.now), "leaseDurationSeconds": 15}
        namespace, _, name = FIRST.partition("/")
        self.api.put(
            {"kind": "Lease", "metadata": {"namespace": namespace, "name": name}, "spec": spec}
        )

    @property
    def served_by(self) -> str:
        return self.api.objects[TOKEN]["metadata"]["annotations"][OPERATOR]

    @property
    def image(self) -> str:
        return self.cluster.deployment["spec"]["template"]["spec"]["containers"][0]["image"]


def test_the_second_stands_back_says_so_once_and_writes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    two = Two(**AT_REST)
    two.turns(two.first, 3)
    before = {
        key: body for key, body in two.api.objects.items() if key[0] not in ("Event", "Lease")
    }
    with caplog.at_level(logging.WARNING):
        assert two.turns(two.second, 20) == STAND_BACK_SECONDS
    after = {key: body for key, body in two.api.objects.items() if key[0] not in ("Event", "Lease")}
    assert after == before
    assert two.events.count("OtherOperator") == 1
    said = [line for line in caplog.messages if "stands back" in line]
    assert len(said) == 1
    assert f"b/b-operator stands back: {FIRST} serves this pool" in said[0]
    assert "the chart's `namespaces`, or uninstall one" in said[0]


def test_the_second_does_not_look_at_the_pools_objects_while_it_stands_back() -> None:
    two = Two(**AT_REST)
    two.turns(two.first, 3)
    two.turns(two.second, 2)
    del two.api.objects[TOKEN]  # somebody deletes what the claim stands on
    two.turns(two.second, 4)
    assert TOKEN not in two.api.objects
    assert {call[1] for call in two.api.calls} <= {"Lease"}


def test_the_second_takes_the_pool_when_the_first_has_not_renewed_for_its_lease() -> None:
    two = Two(**AT_REST)
    two.turns(two.first, 3)
    two.turns(two.second, 2)
    two.lives = False
    two.turns(two.second, 1)
    assert two.served_by == FIRST
    two.turns(two.second, int((LEASE_SECONDS + LOOK_SECONDS) / 5) + 1)
    assert two.served_by == SECOND
    assert two.image == "worker:2"


@pytest.mark.parametrize("code", [None, 403])
def test_the_second_takes_the_pool_at_once_when_the_first_was_uninstalled(code: int | None) -> None:
    two = Two(**AT_REST)
    two.turns(two.first, 3)
    two.lives = False
    for key in [key for key in two.api.objects if key[0] == "Lease"]:
        del two.api.objects[key]

    def refuse(call: Any) -> None:
        if code and call[1] == "Lease":
            raise ApiFailure(code, "403: forbidden")

    two.api.before = refuse
    two.turns(two.second, 2)
    assert two.served_by == SECOND


def test_the_first_that_comes_back_finds_its_pool_taken_and_stands_back() -> None:
    two = Two(**AT_REST)
    two.turns(two.first, 3)
    two.lives = False
    two.turns(two.second, 6)
    assert two.served_by == SECOND
    spec = {"holderIdentity": "pod-b", "renewTime": "now", "leaseDurationSeconds": 15}
    meta = {"namespace": "b", "name": "b-operator"}
    two.api.put({"kind": "Lease", "metadata": meta, "spec": spec})
    two.lives = True
    two.first.forget_all()  # it leads anew
    assert two.turns(two.first) == STAND_BACK_SECONDS
    assert two.image == "worker:2"


def test_of_two_that_begin_at_one_moment_one_gets_the_pool() -> None:
    two = Two(**AT_REST)
    two.renew()

    def first_is_faster(call: Any) -> None:
        if call[:2] == ("make", "Secret"):
            two.api.before = lambda _call: None
            theirs = {"kind": "Secret", "metadata": {"namespace": NAMESPACE, "name": TOKEN[2]}}
            owner = two.api.find(KIND, NAMESPACE, NAME)["metadata"]["uid"]
            theirs["metadata"] |= {
                "ownerReferences": [{"uid": owner, "controller": True}],
                "annotations": {OPERATOR: FIRST},
            }
            two.api.put(theirs)

    two.api.before = first_is_faster
    assert two.turns(two.second) == STAND_BACK_SECONDS
    assert {key[0] for key in two.api.objects} == {KIND, "Secret", "Lease", "Event"}
    assert two.served_by == FIRST


def test_a_pool_that_was_never_claimed_is_taken_by_whoever_writes_first() -> None:
    two = Two(**AT_REST)
    two.turns(two.first, 3)
    secret = two.api.find(*TOKEN)
    del secret["metadata"]["annotations"]
    two.api.put(secret)
    two.turns(two.second, 2)
    assert two.served_by == SECOND


# delete --cascade=orphan, and the same pool again


def orphaned(rig: Rig) -> None:
    """The pool goes, its children stay without an owner, and it is made again."""
    pool = rig.api.objects.pop((KIND, NAMESPACE, NAME))
    rig.cluster.store.gone(KIND, pool)
    rig.controller.forget_all()
    for key, body in list(rig.api.objects.items()):
        if body["metadata"].pop("ownerReferences", None):
            rig.api.put(body)
            assert key
    rig.cluster.catch_up()
    pool["metadata"] |= {"uid": "the next", "generation": 1}
    pool.pop("status", None)
    rig.cluster.put(pool)


def test_what_a_pool_left_behind_is_taken_over_by_the_pool_of_its_name_and_its_pods_stay() -> None:
    rig = Rig(**AT_REST).settled()
    before = rig.cluster.deployment["spec"]
    orphaned(rig)
    for _ in range(3):
        rig.now += 5
        rig.turn()
    assert rig.condition("Stalled") == {}
    assert rig.condition("Ready")["status"] == "True"
    for kind in ("Deployment", "Service", "Secret", "ServiceAccount", "NetworkPolicy"):
        (body,) = [body for key, body in rig.api.objects.items() if key[0] == kind]
        assert [one["uid"] for one in body["metadata"]["ownerReferences"]] == ["the next"], kind
    assert rig.cluster.deployment["spec"] == before


def test_what_only_looks_like_left_behind_is_somebody_elses() -> None:
    rig = Rig(**AT_REST).settled()
    orphaned(rig)
    service = rig.api.find("Service", NAMESPACE, NAME)
    del service["metadata"]["labels"]["app.kubernetes.io/managed-by"]
    rig.api.put(service)
    rig.now += 5
    rig.turn()
    assert rig.condition("Stalled")["reason"] == "NameTaken"
    assert rig.api.find("Service", NAMESPACE, NAME) == rig.api.find("Service", NAMESPACE, NAME)
    assert "ownerReferences" not in rig.api.find("Service", NAMESPACE, NAME)["metadata"]
