"""What the operator knows of a cluster, fed by events and lists in any order."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from fakes.cluster_objects import NAME, NAMESPACE, pod_body, pool_body
from llmtaskpool_operator.api.names import KIND
from llmtaskpool_operator.cluster.store import ClusterStore, PoolKey, status_in

KEY = PoolKey(NAMESPACE, NAME)


class Watched(ClusterStore):
    """With the turns that it asked for."""

    def __init__(self) -> None:
        self.turns: list[PoolKey] = []
        super().__init__(lambda key, _kind: self.turns.append(key))

    def news(self) -> int:
        """Turns asked for since the last call."""
        found = len(self.turns)
        self.turns.clear()
        return found

    def names(self) -> list[str]:
        return names_of(self, KEY)


def pool(version: int = 10, **metadata: Any) -> dict[str, Any]:
    body = pool_body(version=version)
    body["metadata"] |= metadata
    return body


def names_of(store: ClusterStore, key: PoolKey) -> list[str]:
    return [pod["metadata"]["name"] for pod in store.pods(key)]


def version_of(body: dict[str, Any] | None) -> str | None:
    return None if body is None else body["metadata"]["resourceVersion"]


def test_a_pool_that_is_seen_is_known_and_asks_for_a_turn() -> None:
    store = Watched()
    store.seen(KIND, pool())
    assert store.pools() == (KEY,)
    assert store.pool(KEY) == pool()
    assert store.turns == [KEY]


@pytest.mark.parametrize("kind", [KIND, "Pod"])
@pytest.mark.parametrize("order", list(permutations((9, 10, 11))))
def test_an_older_event_never_replaces_a_newer_one(kind: str, order: tuple[int, ...]) -> None:
    store = Watched()
    for version in order:
        store.seen(kind, pool(version) if kind == KIND else pod_body("a", version=version))
    found = store.pool(KEY) if kind == KIND else store.pods(KEY)[0]
    assert version_of(found) == "11"


def test_a_field_that_the_crd_no_longer_has_is_gone_with_the_next_list() -> None:
    store, before, after = Watched(), pool(10), pool(10)
    before["spec"] = before["spec"] | {"fieldOfTheNextVersion": "x"}
    store.seen(KIND, before)
    store.news()
    store.listed(KIND, [after], "12")
    assert store.pool(KEY) == after
    assert store.news() == 1
    store.listed(KIND, [after], "13")
    assert store.news() == 0


def test_versions_are_numbers_and_not_texts() -> None:
    store = Watched()
    store.seen(KIND, pool(9))
    store.seen(KIND, pool(10))
    assert version_of(store.pool(KEY)) == "10"


def test_the_same_event_twice_asks_for_one_turn() -> None:
    store = Watched()
    store.seen("Pod", pod_body("a"))
    store.seen("Pod", pod_body("a"))
    assert store.news() == 1


def test_our_own_status_writes_ask_for_no_turn_but_are_known() -> None:
    store = Watched()
    store.seen(KIND, pool(10))
    store.news()
    store.seen(KIND, pool(11) | {"status": {"replicas": 3}})
    assert store.news() == 0
    assert status_in(store.pool(KEY)) == {"replicas": 3}


@pytest.mark.parametrize(
    "change",
    [{"generation": 2}, {"deletionTimestamp": "2026-01-01T00:00:00Z"}, {"uid": "made anew"}],
)
def test_a_new_spec_a_deletion_and_a_new_pool_ask_for_a_turn(change: dict[str, Any]) -> None:
    store = Watched()
    store.seen(KIND, pool(10))
    store.news()
    store.seen(KIND, pool(11, **change))
    assert store.news() == 1


def test_every_change_of_a_pod_asks_for_a_turn_of_its_pool() -> None:
    store = Watched()
    for version in (10, 11, 12):
        store.seen("Pod", pod_body("a", version=version))
    assert store.turns == [KEY] * 3


def test_pods_and_deployments_belong_to_the_pool_that_their_label_names() -> None:
    store = Watched()
    for name in ("b", "a"):
        store.seen("Pod", pod_body(name))
    other = pod_body("c")
    other["metadata"]["labels"] = {"llmtaskpool.io/pool": "other"}
    elsewhere = pod_body("d")
    elsewhere["metadata"]["namespace"] = "team-b"
    store.seen("Pod", other)
    store.seen("Pod", elsewhere)
    deployment = pod_body(NAME)
    store.seen("Deployment", deployment)
    assert store.names() == ["a", "b"]
    assert names_of(store, PoolKey(NAMESPACE, "other")) == ["c"]
    assert names_of(store, PoolKey("team-b", NAME)) == ["d"]
    assert store.deployment(KEY) == deployment


@pytest.mark.parametrize("labels", [None, {}, {"app": "chat"}])
def test_a_pod_without_the_label_is_nobodys(labels: dict[str, str] | None) -> None:
    store = Watched()
    stranger = pod_body("a")
    stranger["metadata"]["labels"] = labels
    store.seen("Pod", stranger)
    store.gone("Pod", stranger)
    assert store.turns == []
    assert store.pods(KEY) == ()


def test_a_deleted_object_is_known_no_more_and_asks_for_a_turn() -> None:
    store = Watched()
    store.seen("Pod", pod_body("a"))
    store.news()
    store.gone("Pod", pod_body("a", version=12))
    assert store.names() == []
    assert store.news() == 1


def test_a_late_deletion_does_not_remove_what_was_made_again() -> None:
    store = Watched()
    store.seen("Pod", pod_body("a", version=20))
    store.gone("Pod", pod_body("a", version=12))
    assert store.names() == ["a"]


def test_a_late_event_does_not_bring_back_what_was_deleted() -> None:
    store = Watched()
    store.gone("Pod", pod_body("a", version=12))
    store.seen("Pod", pod_body("a", version=11))
    assert store.names() == []
    store.seen("Pod", pod_body("a", version=13))
    assert store.names() == ["a"]


def test_a_list_mends_a_deletion_that_was_missed() -> None:
    store = Watched()
    store.seen("Pod", pod_body("a"))
    store.seen("Pod", pod_body("b"))
    store.news()
    store.listed("Pod", [pod_body("b")], "15")
    assert store.names() == ["b"]
    assert store.news() == 1


def test_a_list_mends_an_event_that_was_missed() -> None:
    store = Watched()
    store.seen("Pod", pod_body("a", ready=False))
    store.listed("Pod", [pod_body("a", version=14), pod_body("b", version=13)], "15")
    assert store.names() == ["a", "b"]
    assert version_of(store.pods(KEY)[0]) == "14"


def test_a_list_without_news_asks_for_no_turn() -> None:
    store = Watched()
    store.seen("Pod", pod_body("a"))
    store.news()
    store.listed("Pod", [pod_body("a")], "15")
    assert store.news() == 0


def test_a_late_list_does_not_remove_what_is_newer_than_it() -> None:
    store = Watched()
    store.seen("Pod", pod_body("a", version=20))
    store.listed("Pod", [], "15")
    assert store.names() == ["a"]


def test_a_late_list_does_not_bring_back_what_was_deleted() -> None:
    store = Watched()
    store.seen("Pod", pod_body("a", version=10))
    store.gone("Pod", pod_body("a", version=12))
    store.listed("Pod", [pod_body("a", version=10)], "11")
    assert store.names() == []


def test_a_late_list_does_not_bring_back_what_a_newer_list_has_not() -> None:
    """Two lists under way at once: that of a new leader, and the resync's."""
    store = Watched()
    store.seen("Pod", pod_body("a", version=10))
    store.gone("Pod", pod_body("a", version=12))
    store.listed("Pod", [pod_body("b", version=8)], "15")
    store.listed("Pod", [pod_body("a", version=10), pod_body("b", version=8)], "11")
    assert store.names() == ["b"]


def test_a_late_event_does_not_bring_back_what_a_list_has_not() -> None:
    """The watch missed the deletion, the list mended it; then an old event comes."""
    store = Watched()
    store.seen("Pod", pod_body("a", version=10))
    store.listed("Pod", [], "15")
    store.seen("Pod", pod_body("a", version=11))
    assert store.names() == []


def test_a_list_of_one_namespace_says_nothing_of_others() -> None:
    store = Watched()
    store.seen("Pod", pod_body("a"))
    store.listed("Pod", [], "15", within="team-b")
    assert store.names() == ["a"]
    store.listed("Pod", [], "15", within=NAMESPACE)
    store.seen("Pod", pod_body("a", version=11))
    assert store.names() == []
    later = pod_body("late", version=3)
    later["metadata"]["namespace"] = "team-c"  # its namespace was never listed
    store.seen("Pod", later)
    assert names_of(store, PoolKey("team-c", NAME)) == ["late"]


def test_a_list_of_pods_says_nothing_of_pools() -> None:
    store = Watched()
    store.seen(KIND, pool())
    store.listed("Pod", [], "15")
    assert store.pools() == (KEY,)


def test_a_key_reads_as_people_write_it() -> None:
    assert str(KEY) == "team-a/chat"


def test_of_a_pod_no_more_is_kept_than_is_read() -> None:
    store = Watched()
    body = pod_body("a")
    body["metadata"] |= {"managedFields": [{"manager": "kubelet"}], "annotations": {"a": "b"}}
    body["spec"] = {"containers": [{"name": "worker", "env": [{"name": "n"}] * 100}]}
    store.seen("Pod", body)
    (kept,) = store.pods(KEY)
    assert "spec" not in kept
    assert "managedFields" not in kept["metadata"]
    assert kept["metadata"]["annotations"] == {"a": "b"}
    assert kept["status"] == body["status"]


def test_who_wrote_replicas_stays_known_and_all_other_writers_go() -> None:
    store = Watched()
    fields = {"f:spec": {"f:replicas": {}, "f:template": {"f:spec": {}}}}
    hpa = {"manager": "hpa", "time": "2026-01-01T00:00:00Z", "fieldsV1": fields}
    other = {"manager": "kubelet", "fieldsV1": {"f:status": {}}}
    body = pool(managedFields=[other, hpa])
    store.seen(KIND, body)
    kept = store.pool(KEY)
    assert kept is not None
    assert kept["metadata"]["managedFields"] == [
        {**hpa, "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    ]
    assert body["metadata"]["managedFields"] == [other, hpa]
