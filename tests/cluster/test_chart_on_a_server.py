"""The chart's objects before a real API server: strict about fields, and about pods' security."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from chart.charts import CHART, VALUE_SETS, Helm, helm_with, kinds

from .conftest import Cluster, with_crd

_PATHS = {
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "Pod": "/api/v1/namespaces/{}/pods",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "Service": "/api/v1/namespaces/{}/services",
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
}
DRY = "dryRun=All&fieldValidation=Strict"


@pytest.fixture(scope="module")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    return helm_with(tmp_path_factory.mktemp("values"))


@pytest.fixture(scope="module")
def restricted(cluster: Cluster) -> Iterator[str]:
    """A namespace that takes only pods which meet `restricted`."""
    name = f"chart-{uuid.uuid4().hex[:6]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    send(cluster, "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
    for account in ("llmtaskpool-operator", "pools-operator", "mine", "default"):
        path = f"/api/v1/namespaces/{name}/serviceaccounts"
        body = {"metadata": {"name": account}}
        assert cluster.request("POST", path, body, Content_Type="application/json")[0] in {201, 409}
    yield name
    cluster.request("DELETE", f"/api/v1/namespaces/{name}")


def send(cluster: Cluster, path: str, body: dict[str, Any]) -> None:
    status, answer = cluster.request("POST", path, body, Content_Type="application/json")
    assert status == 201, answer.decode()


def in_namespace(body: dict[str, Any], namespace: str) -> dict[str, Any]:
    if "namespace" not in body["metadata"]:
        return body
    return body | {"metadata": body["metadata"] | {"namespace": namespace}}


@pytest.mark.parametrize("name", VALUE_SETS)
def test_a_real_server_takes_every_object_with_no_unknown_field(
    cluster: Cluster, helm: Helm, restricted: str, name: str
) -> None:
    objects = [one for one in helm.render(VALUE_SETS[name]) if one["kind"] in _PATHS]
    assert "Deployment" in kinds(objects)
    for one in objects:
        path = f"{_PATHS[one['kind']].format(restricted)}/{one['metadata']['name']}"
        status, answer = cluster.request(
            "PATCH",
            f"{path}?{DRY}&fieldManager=tests&force=true",
            in_namespace(one, restricted),
            Content_Type="application/apply-patch+yaml",
        )
        assert status in {200, 201}, f"{one['kind']}: {answer.decode()}"


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_pod_is_admitted_under_pod_security_restricted(
    cluster: Cluster, helm: Helm, restricted: str, name: str
) -> None:
    path = f"{_PATHS['Pod'].format(restricted)}?{DRY}"
    objects = helm.render(VALUE_SETS[name])
    templates = [one["spec"]["template"] for one in objects if one["kind"] == "Deployment"]
    templates += [one for one in objects if one["kind"] == "Pod"]
    for template in templates:
        metadata = {"name": "p", "labels": template["metadata"]["labels"]}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        send(cluster, path, body)


def test_a_pod_that_may_do_more_is_refused_there(
    cluster: Cluster, helm: Helm, restricted: str
) -> None:
    # Or the two tests above would say nothing.
    (deployment,) = (one for one in helm.render({}) if one["kind"] == "Deployment")
    spec = deployment["spec"]["template"]["spec"]
    del spec["containers"][0]["securityContext"]["capabilities"]
    status, answer = cluster.request(
        "POST",
        f"{_PATHS['Pod'].format(restricted)}?{DRY}",
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec},
        Content_Type="application/json",
    )
    assert status == 403, answer.decode()
    assert "restricted" in answer.decode()


def on_the_server(cluster: Cluster, helm: Helm, release: str, *more: str) -> Any:
    """What helm would install, asked of the server: it looks up what is there."""
    where = ("--kubeconfig", str(cluster.kubeconfig), "--namespace", "default")
    return helm.run("install", release, str(CHART), "--dry-run=server", *where, *more)


def test_a_crd_that_is_there_already_is_found_out_and_left_and_the_notes_say_whose_it_is(
    cluster: Cluster, helm: Helm
) -> None:
    with_crd(cluster)  # applied without Helm
    done = on_the_server(cluster, helm, "second")
    assert done.returncode == 0, done.stderr
    assert "kind: CustomResourceDefinition" not in done.stdout
    assert "belongs to somebody who applied it without Helm" in done.stdout
    assert "meta.helm.sh/release-name=second" in done.stdout
    assert "kind: Deployment" in done.stdout
    off = on_the_server(cluster, helm, "second", "--set", "crds.install=false")
    assert "is there already" not in off.stdout


def test_namespaces_that_are_not_there_are_named_before_anything_is_made(
    cluster: Cluster, helm: Helm
) -> None:
    there, missing = "default", f"no-{uuid.uuid4().hex[:6]}"
    done = on_the_server(cluster, helm, "second", "--set", f"namespaces={{{there},{missing}}}")
    assert done.returncode != 0
    assert f"namespaces: {missing}: not there: make them first" in done.stderr
    assert f"kubectl create namespace {missing}" in done.stderr
    assert there not in done.stderr.split("namespaces: ")[1].split(":")[0]
