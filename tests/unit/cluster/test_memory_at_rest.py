"""What is kept of a pool at rest: there are thousands, and nothing of them is held twice."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from fakes.cluster_objects import worker_state
from fakes.controller_rig import AT_REST, Rig
from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.api.status import LaneStatus, LLMTaskPoolStatus
from llmtaskpool_worker.contract import LaneName, WorkerReport
from pydantic import BaseModel


def reports() -> set[int]:
    gc.collect()
    return {id(one) for one in gc.get_objects() if isinstance(one, WorkerReport)}


def manifests_of(kind: str) -> int:
    gc.collect()
    return sum(type(one) is dict and one.get("kind") == kind for one in gc.get_objects())


def at_rest() -> Rig:
    rig = Rig(**AT_REST).settled()
    for _ in range(14):
        rig.cluster.look_at_deployment()
        rig.now += 5
        rig.turn()
    assert rig.api.calls == []
    return rig


def test_of_what_a_pod_at_rest_says_again_and_again_one_copy_is_kept() -> None:
    before = reports()
    rig = at_rest()
    scripted = {id(state) for state in rig.cluster.states.values()}
    assert len(reports() - before - scripted) == 1


def test_the_manifests_of_children_that_were_made_are_not_kept() -> None:
    kinds = ("Service", "ServiceAccount", "NetworkPolicy", "PodDisruptionBudget", "Secret")
    before = {kind: manifests_of(kind) for kind in kinds}
    rig = at_rest()
    assert "NetworkPolicy" in {kind for kind, _, _ in rig.api.objects}
    rig.api.objects.clear()  # what the server has; the rest would be the operator's
    assert {kind: manifests_of(kind) for kind in kinds} == before


@pytest.mark.parametrize(
    "said",
    [
        worker_state("a"),
        LLMTaskPoolStatus(threads=[LaneStatus(lane=LaneName.IO, desired=1, observed=1)]),
    ],
)
def test_which_fields_were_given_is_kept_of_nothing_that_each_pool_has(said: BaseModel) -> None:
    read = type(said).model_validate_json(said.model_dump_json(by_alias=True))
    name = next(iter(type(said).model_fields))
    changed = read.model_copy(update={name: 3})
    assert [one.model_fields_set for one in (said, read)] == [set(), set()]
    assert read == said
    assert getattr(changed, name) == 3


def test_pools_that_leave_a_part_of_the_spec_out_share_its_defaults() -> None:
    said = {"scaling": {"mode": "Auto"}, "threads": {"io": {"initial": 2}}, "tenants": {}}
    one, other = LLMTaskPoolSpec(**said), LLMTaskPoolSpec(**said)
    assert own_parts(one, other) == sorted([*said, "threads.io"])


def own_parts(one: BaseModel, other: BaseModel, place: str = "") -> list[str]:
    """The objects of the API in ``one`` that are not the very ones in ``other``."""
    found = []
    for name, part in vars(one).items():
        same: Any = getattr(other, name)
        if isinstance(part, BaseModel) and part is not same:
            found += [f"{place}{name}", *own_parts(part, same, f"{place}{name}.")]
    return sorted(found)
