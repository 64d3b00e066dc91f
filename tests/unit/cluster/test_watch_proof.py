"""Watches held against lists: which are believed to work."""

from __future__ import annotations

from typing import Any

import pytest
from llmtaskpool_operator.cluster.watch_proof import LATE_SECONDS, WatchProof


def at(version: int, namespace: str = "a") -> dict[str, Any]:
    return {"metadata": {"namespace": namespace, "resourceVersion": str(version)}}


class Watched:
    """A proof and its clock."""

    def __init__(self, **options: bool) -> None:
        self.now = 0.0
        self.proof = WatchProof(lambda: self.now, **options)

    def later(self, seconds: float = LATE_SECONDS + 1) -> str:
        self.now += seconds
        return self.proof.fault()


def test_a_watch_that_brings_what_lists_show_works_and_is_never_behind() -> None:
    of = Watched()
    of.proof.delivered("Pod", at(7))
    of.proof.listed("Pod", [at(5), at(7)])
    assert of.proof.fault() == ""
    assert of.later(1000) == ""
    assert of.proof.behind() == {"Pod": 0.0}


def test_where_there_is_nothing_nothing_is_owed() -> None:
    of = Watched()
    of.proof.listed("Pod", [])
    assert of.later() == ""


def test_a_watch_that_has_not_brought_all_that_is_there_is_not_believed_yet() -> None:
    of = Watched()
    of.proof.listed("Pod", [at(7)])
    assert of.proof.fault() == "the watch of Pod has not caught up yet"
    of.proof.delivered("Pod", at(6))
    assert of.proof.fault() != ""
    of.proof.delivered("Pod", at(7))
    assert of.proof.fault() == ""


def test_a_frozen_watch_is_named_after_a_while_and_believed_again_when_it_brings_what_it_owes() -> (
    None
):
    of = Watched()
    of.proof.delivered("Pod", at(7))
    of.proof.delivered("Deployment", at(3))
    of.proof.listed("Pod", [at(7)])
    of.proof.listed("Pod", [at(9)])
    of.proof.listed("Deployment", [at(3)])
    assert of.later(LATE_SECONDS - 1) == ""  # it may only be slow
    of.proof.listed("Pod", [at(12)])
    assert of.later(2) == "the watch of Pod has not brought for 16 s what lists show"
    assert of.proof.behind() == {"Pod": 16.0, "Deployment": 0.0}
    of.proof.delivered("Pod", at(9))
    assert of.proof.fault() == ""


def test_a_watch_that_lags_behind_a_busy_server_but_moves_is_believed() -> None:
    of = Watched()
    of.proof.delivered("Pod", at(1))
    for version in range(1, 60):
        of.proof.listed("Pod", [at(version)])
        assert of.later(LATE_SECONDS - 5) == ""
        of.proof.delivered("Pod", at(version))


def test_what_was_owed_and_is_deleted_is_owed_no_more() -> None:
    of = Watched()
    of.proof.delivered("Pod", at(7))
    of.proof.listed("Pod", [at(7), at(9)])
    of.proof.listed("Pod", [at(7)])
    assert of.later() == ""


@pytest.mark.parametrize(("scoped", "broken"), [(True, True), (False, False)])
def test_each_namespace_has_a_watch_of_its_own_where_namespaces_are_named(
    scoped: bool, broken: bool
) -> None:
    of = Watched(scoped=scoped)
    for namespace in ("a", "b"):
        of.proof.delivered("Pod", at(7, namespace))
    of.proof.listed("Pod", [at(9, "a")], within="a" if scoped else "")
    of.proof.delivered("Pod", at(12, "b"))
    assert bool(of.later()) is broken
