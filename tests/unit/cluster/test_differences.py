"""Whether a live object is as it should be: what a server adds is no difference."""

from __future__ import annotations

import copy
from decimal import Decimal
from typing import Any

import pytest
from fakes.cluster_objects import UID, pool
from hypothesis import given
from hypothesis import strategies as st
from llmtaskpool_operator.api.quantities import number
from llmtaskpool_operator.cluster import manifests
from llmtaskpool_operator.cluster.differences import agrees, owned_by, writer_of
from llmtaskpool_operator.cluster.manifests import Surroundings

AROUND = Surroundings("worker:1", "token", "system")


def deployment(**spec: Any) -> dict[str, Any]:
    return manifests.deployment(pool(**spec), AROUND, 2)


def with_server_defaults(wanted: dict[str, Any]) -> dict[str, Any]:
    live = copy.deepcopy(wanted)
    live["metadata"] |= {"resourceVersion": "7", "generation": 3, "managedFields": []}
    live["status"] = {"readyReplicas": 1}
    live["spec"]["template"]["metadata"]["creationTimestamp"] = None
    pod = live["spec"]["template"]["spec"]
    pod |= {"restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default"}
    (container,) = pod["containers"]
    container["terminationMessagePath"] = "/dev/termination-log"
    container["readinessProbe"]["successThreshold"] = 1
    container["readinessProbe"]["httpGet"]["scheme"] = "HTTP"
    return live


def test_what_a_server_adds_is_no_difference() -> None:
    assert agrees(deployment(), with_server_defaults(deployment()))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d["spec"].update(replicas=3),
        lambda d: d["spec"].pop("strategy"),
        lambda d: d["metadata"]["labels"].pop("app.kubernetes.io/part-of"),
        lambda d: d["metadata"].pop("ownerReferences"),
        lambda d: d["spec"]["template"]["spec"]["containers"][0].update(image="other"),
        lambda d: d["spec"]["template"]["spec"]["containers"][0]["args"].append("--more"),
        lambda d: d["spec"]["template"]["spec"]["containers"][0]["args"].reverse(),
        lambda d: d["spec"]["template"]["spec"]["containers"].append({"name": "sidecar"}),
        lambda d: d["spec"]["template"]["spec"]["securityContext"].update(runAsNonRoot=False),
        lambda d: d["spec"]["template"]["spec"].pop("securityContext"),
    ],
)
def test_what_somebody_changed_is_a_difference(spoil: Any) -> None:
    live = with_server_defaults(deployment())
    spoil(live)
    assert not agrees(deployment(), live)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"cpu": "1"}, {"cpu": "1000m"}),
        ({"cpu": 1}, {"cpu": "1"}),
        ({"cpu": "0.5"}, {"cpu": "500m"}),
        ({"memory": "1024Mi"}, {"memory": "1Gi"}),
        ({"memory": "2G"}, {"memory": "2000M"}),
        ({"nvidia.com/gpu": 1}, {"nvidia.com/gpu": "1"}),
    ],
)
def test_amounts_that_are_written_differently_are_equal(ours: dict, theirs: dict) -> None:
    assert agrees({"limits": ours}, {"limits": theirs})
    assert agrees({"resources": {"requests": ours}}, {"resources": {"requests": theirs}})


@pytest.mark.parametrize(
    ("ours", "theirs"), [("1", "1001m"), ("1Gi", "1G"), ("1", None), ("1", "one"), ("1", True)]
)
def test_other_amounts_are_not(ours: str, theirs: Any) -> None:
    assert not agrees({"limits": {"cpu": ours}}, {"limits": {"cpu": theirs}})


@pytest.mark.parametrize(("label", "other"), [("1", "01"), ("1k", "1000"), ("1", "1.0")])
def test_labels_of_nodes_are_words_even_where_they_look_like_amounts(
    label: str, other: str
) -> None:
    """A pool whose selector changes from "1" to "01" must get other nodes."""
    before, after = (deployment(nodeSelector={"rack": one}) for one in (label, other))
    assert not agrees(after, with_server_defaults(before))


@pytest.mark.parametrize("text", ["1e9999999", "9e99999999999999", "1e-9999999", "NaN", "Infinity"])
def test_a_hash_that_looks_like_a_huge_number_is_a_difference_and_no_error(text: str) -> None:
    assert not agrees({"annotations": {"hash": text}}, {"annotations": {"hash": "12"}})
    assert not agrees({"limits": {"cpu": text}}, {"limits": {"cpu": "12"}})


def test_lists_have_an_order_and_a_length() -> None:
    assert agrees([1, 2], [1, 2])
    assert not agrees([1, 2], [2, 1])
    assert not agrees([1], [1, 2])
    assert not agrees([1, 2], [1])
    assert agrees([{"name": "a"}], [{"name": "a", "added": True}])


@pytest.mark.parametrize("empty", [{}, [], "", False, None])
def test_what_is_empty_may_be_absent(empty: Any) -> None:
    assert agrees({"field": empty}, {})


@pytest.mark.parametrize("value", [{"a": 1}, [1], "a", True, 1])
def test_what_is_not_empty_must_be_there(value: Any) -> None:
    assert not agrees({"field": value}, {})
    assert not agrees({"field": value}, {"field": None})


def test_what_we_want_empty_may_hold_what_the_server_adds_but_no_list_entries() -> None:
    assert agrees({"emptyDir": {}}, {"emptyDir": {"sizeLimit": "1Gi"}})
    assert not agrees({"list": []}, {"list": ["somebody's"]})


@pytest.mark.parametrize(
    ("one", "other"), [({"a": 1}, [1]), ([1], {"a": 1}), ({"a": 1}, "a"), ("a", {"a": 1})]
)
def test_values_of_other_kinds_differ(one: Any, other: Any) -> None:
    assert not agrees(one, other)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "limits", "name"]), inner, max_size=3)
    ),
    max_leaves=12,
)


def padded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: padded(one) for key, one in value.items()} | {"added by the server": [1]}
    return [padded(one) for one in value] if isinstance(value, list) else value


@given(VALUES)
def test_everything_agrees_with_itself_and_whatever_is_added(value: Any) -> None:
    assert agrees(value, value)
    assert agrees(value, padded(value))


@given(VALUES, VALUES)
def test_no_two_values_are_too_odd_to_be_compared(one: Any, other: Any) -> None:
    assert agrees(one, other) in (True, False)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500m", "0.5"),
        ("1", "1"),
        (3, "3"),
        ("1Ki", "1024"),
        ("1.5Gi", "1610612736"),
        ("2k", "2000"),
        ("100n", "1e-7"),
        ("3E", "3e18"),
        ("1e3", "1000"),
        ("0", "0"),
    ],
)
def test_quantities_are_read_as_kubernetes_writes_them(text: Any, value: str) -> None:
    assert number(text) == Decimal(value)


@pytest.mark.parametrize(
    "text", ["", "m", "Gi", "one", "1 Gi ?", "1mi", "1ik", "--1", None, True, [], "NaN", "Infinity"]
)
def test_what_is_no_quantity_is_told(text: Any) -> None:
    assert number(text) is None


@given(st.text(max_size=20) | st.from_regex(r"[0-9]{1,4}e-?[0-9]{1,18}[kMGTPEi]{0,2}"))
def test_no_text_is_too_odd_to_be_looked_at_as_a_quantity(text: str) -> None:
    found = number(text)
    assert found is None or found.is_finite()


def owned(uid: str, **more: Any) -> dict[str, Any]:
    return {"metadata": {"ownerReferences": [{"uid": uid} | more]}}


def test_only_the_controller_with_the_same_uid_owns_an_object() -> None:
    assert owned_by(deployment(), UID)
    assert not owned_by(deployment(), "another pool of the same name, made later")
    assert not owned_by(owned(UID), UID)
    assert not owned_by(owned(UID, controller=False), UID)
    assert not owned_by({"metadata": {}}, UID)
    assert not owned_by({"metadata": {"ownerReferences": None}}, UID)


def written(manager: str, time: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {"manager": manager, "time": time, "fieldsV1": fields}


def test_the_last_writer_of_a_field_is_named() -> None:
    replicas = {"f:spec": {"f:replicas": {}}}
    entries = [
        written("llmtaskpool", "2026-01-01T00:00:01Z", replicas),
        written("kubectl", "2026-01-01T00:00:03Z", {"f:spec": {"f:template": {}}}),
        written("hpa", "2026-01-01T00:00:02Z", replicas),
    ]
    for order in (entries, entries[::-1]):
        live = {"metadata": {"managedFields": order}}
        assert writer_of(live, ("spec", "replicas")) == "hpa"
    assert writer_of(live, ("spec", "paused")) is None
    assert writer_of({"metadata": {}}, ("spec", "replicas")) is None
