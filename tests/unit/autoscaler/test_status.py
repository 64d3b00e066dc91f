"""Conditions for those who wait for a change: kubectl, Helm, Flux (kstatus)."""

from __future__ import annotations

from typing import Any

from fakes.cluster_objects import pool, worker_state
from llmtaskpool_operator.autoscaler.decide import PoolDecision
from llmtaskpool_operator.autoscaler.observation import PodObservation, PoolObservation, Problem
from llmtaskpool_operator.autoscaler.status import status_of

AT = "2026-01-01T00:00:00Z"
NOTHING = PoolDecision(None, ())
TWO = tuple(PodObservation(name, ready=True, state=worker_state(name)) for name in "ab")


def conditions(**seen: Any) -> dict[str, Any]:
    observed = PoolObservation(**({"replicas": 2, "pods": TWO} | seen))
    status = status_of(pool(), observed, NOTHING, (), None, AT)
    return {one.type: one for one in status.conditions}


def test_a_pool_at_rest_is_ready_and_nothing_is_under_way() -> None:
    found = conditions()
    assert found["Ready"].status == "True"
    assert "Reconciling" not in found
    assert "Stalled" not in found


def test_a_pool_that_rolls_out_is_ready_and_not_yet_what_its_spec_says() -> None:
    found = conditions(rollout="1 of 3 pods are as the spec says now")
    assert found["Ready"].status == "True"
    assert (found["Reconciling"].status, found["Reconciling"].reason) == ("True", "RollingOut")
    assert "1 of 3" in found["Reconciling"].message


def test_a_rollout_that_stalls_leaves_ready_to_the_pods_that_serve() -> None:
    broken = Problem("ImagePullBackOff", "new: no such image", stalled=True)
    new = PodObservation("new", ready=False)
    found = conditions(pods=(*TWO, new), problems=(broken,), rollout="1 of 3")
    assert found["Ready"].status == "True"
    assert (found["Stalled"].reason, found["Stalled"].message) == (broken.reason, broken.message)
    assert "Reconciling" not in found


def test_a_stall_is_why_a_pool_is_not_ready() -> None:
    broken = Problem("ImagePullBackOff", "new: no such image", stalled=True)
    found = conditions(pods=TWO[:1], problems=(broken,))
    assert (found["Ready"].status, found["Ready"].reason) == ("False", "ImagePullBackOff")


def test_what_blocks_makes_a_pool_unready_whatever_its_pods_say() -> None:
    taken = Problem("NameTaken", "a Service", stalled=True, blocks=True)
    found = conditions(problems=(taken,))
    assert (found["Ready"].status, found["Ready"].reason) == ("False", "NameTaken")


def test_a_pod_that_can_not_end_does_not_keep_the_pool_on_its_way_for_ever() -> None:
    goes = PodObservation("c", ready=False, draining=True)
    lost = PodObservation("c", ready=False, draining=True, lost=True)
    assert conditions(pods=(*TWO, goes))["Reconciling"].status == "True"
    assert "Reconciling" not in conditions(pods=(*TWO, lost))
