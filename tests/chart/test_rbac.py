"""What the operator may do: exactly what it does."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from chart.charts import NAMESPACE, Helm, Manifest, kinds, named
from llmtaskpool_operator.cluster import operator, settings

Right = tuple[str, str, str]
"""Group, resource, verb."""

SERVED: set[Right] = {
    *(("llmtaskpool.io", "llmtaskpools", verb) for verb in ("list", "watch")),
    ("llmtaskpool.io", "llmtaskpools/status", "patch"),
    ("llmtaskpool.io", "llmtaskpools/scale", "patch"),
    ("llmtaskpool.io", "llmtaskpools/finalizers", "update"),
    *(("apps", "deployments", verb) for verb in ("get", "list", "watch", "create", "patch")),
    *(("", "pods", verb) for verb in ("list", "watch", "patch")),
    *(
        (group, resource, verb)
        for group, resource in (
            ("", "services"),
            ("", "serviceaccounts"),
            ("", "persistentvolumeclaims"),
            ("policy", "poddisruptionbudgets"),
            ("networking.k8s.io", "networkpolicies"),
        )
        for verb in ("get", "list", "watch", "create", "patch")
    ),
    ("", "secrets", "create"),
    ("", "secrets", "patch"),
    ("events.k8s.io", "events", "create"),
    ("events.k8s.io", "events", "list"),
}


def rights(rules: Iterable[Manifest]) -> set[Right]:
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_cluster_wide_it_may_do_what_it_does_and_nothing_else(helm: Helm) -> None:
    objects = helm.render({})
    assert rights(named(objects, "ClusterRole", "llmtaskpool-operator")["rules"]) == SERVED
    binding = named(objects, "ClusterRoleBinding", "llmtaskpool-operator")
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": "llmtaskpool-operator", "namespace": NAMESPACE}
    ]


def test_it_never_reads_secrets_writes_specs_or_deletes_anything() -> None:
    for verb in ("get", "list", "watch"):
        assert ("", "secrets", verb) not in SERVED
    assert ("llmtaskpool.io", "llmtaskpools", "patch") not in SERVED
    assert not [right for right in SERVED if right[2] in {"delete", "deletecollection", "*"}]


def test_with_namespaces_the_same_rights_end_at_their_borders(helm: Helm) -> None:
    objects = helm.render({"namespaces": ["team-a", "team-b"], "rbac": {"aggregate": False}})
    assert not {"ClusterRole", "ClusterRoleBinding"} & kinds(objects)
    roles = {
        one["metadata"]["namespace"]: rights(one["rules"])
        for one in objects
        if one["kind"] == "Role" and one["metadata"]["name"] == "llmtaskpool-operator"
    }
    assert roles == {"team-a": SERVED, "team-b": SERVED}


@pytest.mark.parametrize("values", [{}, {"namespaces": ["team-a"]}])
def test_in_its_own_namespace_it_has_its_lease_and_its_key(
    helm: Helm, values: dict[str, list[str]]
) -> None:
    role = named(helm.render(values), "Role", "llmtaskpool-operator-own")
    assert role["metadata"]["namespace"] == NAMESPACE
    by_name = {
        (resource, verb): rule.get("resourceNames")
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert by_name == {
        ("leases", "create"): None,
        ("leases", "get"): ["llmtaskpool-operator"],
        ("leases", "update"): ["llmtaskpool-operator"],
        ("secrets", "create"): None,
        ("secrets", "get"): ["llmtaskpool-operator-key"],
    }


def test_all_accounts_may_see_whether_it_lives_and_nothing_else(helm: Helm) -> None:
    objects = helm.render({})
    role = named(objects, "Role", "llmtaskpool-operator-alive")
    assert rights(role["rules"]) == {("coordination.k8s.io", "leases", "get")}
    assert [rule["resourceNames"] for rule in role["rules"]] == [["llmtaskpool-operator"]]
    (subject,) = named(objects, "RoleBinding", "llmtaskpool-operator-alive")["subjects"]
    assert (subject["kind"], subject["name"]) == ("Group", "system:serviceaccounts")


def test_each_release_has_a_lease_of_its_own(helm: Helm) -> None:
    objects = helm.render({"fullnameOverride": "prod"})
    container = named(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    environment = {one["name"]: one.get("value") for one in container["env"]}
    lease = environment["LLMTASKPOOL_OPERATOR_LEASE"]
    assert lease == "prod-operator"
    for name in (f"{lease}-own", f"{lease}-alive"):
        given = [
            one
            for rule in named(objects, "Role", name)["rules"]
            if "leases" in rule["resources"]
            for one in rule.get("resourceNames", ())
        ]
        assert given == [lease]


def test_the_names_in_the_roles_are_the_operators(helm: Helm) -> None:
    rules = named(helm.render({}), "Role", "llmtaskpool-operator-own")["rules"]
    given = {name for rule in rules for name in rule.get("resourceNames", ())}
    assert given == {settings.LEASE, operator.KEY_SECRET}


def test_people_who_may_view_see_pools_and_people_who_may_edit_edit_them(helm: Helm) -> None:
    objects = helm.render({})
    view = named(objects, "ClusterRole", "llmtaskpool-view")
    edit = named(objects, "ClusterRole", "llmtaskpool-edit")
    aggregates = "rbac.authorization.k8s.io/aggregate-to-"
    assert view["metadata"]["labels"][f"{aggregates}view"] == "true"
    assert f"{aggregates}view" not in edit["metadata"]["labels"]
    assert edit["metadata"]["labels"][f"{aggregates}edit"] == "true"
    assert {verb for _, _, verb in rights(view["rules"])} == {"get", "list", "watch"}
    assert ("llmtaskpool.io", "llmtaskpools/scale", "patch") in rights(edit["rules"])
    assert not [r for r in rights(edit["rules"]) if r[1].endswith("/status")]


def test_an_account_that_is_named_and_not_made_is_bound(helm: Helm) -> None:
    objects = helm.render({"serviceAccount": {"create": False, "name": "mine"}})
    assert "ServiceAccount" not in kinds(objects)
    for one in objects:
        for subject in one.get("subjects", ()):
            assert subject["name"] in ("mine", "system:serviceaccounts")
    spec = named(objects, "Deployment")["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == "mine"
