"""What the chart makes of its values, and what it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from typing import Any

import kubernetes_validate
import pytest
from chart.charts import CHART, NAMESPACE, ROOT, VALUE_SETS, Helm, Refused, kinds, named, pod_specs
from fakes.read_yaml import document, documents
from llmtaskpool_operator.api.manifest_file import parse_pool
from llmtaskpool_operator.api.worker_defaults import WorkerDefaults
from llmtaskpool_operator.cluster.settings import PREFIX, OperatorSettings

KUBERNETES = "1.37"


def test_the_chart_is_linted_without_a_warning(helm: Helm) -> None:
    done = helm.run("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_object_fits_the_schemas_of_kubernetes(helm: Helm, name: str) -> None:
    objects = helm.render(VALUE_SETS[name])
    ours = [one for one in objects if not one["apiVersion"].startswith("monitoring.coreos.com/")]
    assert "Deployment" in kinds(ours)
    for one in ours:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_object_is_labelled_and_namespaced_ones_say_where(helm: Helm, name: str) -> None:
    everywhere = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}
    objects = helm.render(VALUE_SETS[name])
    seen = [
        (one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in objects
    ]
    assert len(seen) == len(set(seen)), "two objects with one name"
    for one in objects:
        assert one["metadata"]["labels"]["app.kubernetes.io/instance"] == "llmtaskpool"
        assert ("namespace" in one["metadata"]) == (one["kind"] not in everywhere)


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_pod_meets_pod_security_restricted(helm: Helm, name: str) -> None:
    specs = pod_specs(helm.render(VALUE_SETS[name]))
    assert specs
    for spec in specs:
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert security.get("runAsUser") == (None if "platform" in name else 65532)
        for volume in spec.get("volumes", []):
            assert set(volume) - {"name"} <= {"emptyDir", "secret", "configMap", "projected"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert all("hostPort" not in port for port in container.get("ports", []))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"replicaCount": 2}, "replicaCount"),
        ({"image": {"repo": "x"}}, "repo"),
        ({"image": {"repository": "x y"}}, "repository"),
        ({"image": {"tag": "a;b"}}, "tag"),
        ({"image": {"digest": "sha256:short"}}, "digest"),
        ({"namespaces": ["Team_A"]}, "namespaces"),
        ({"namespaces": ["a", "a"]}, "namespaces"),
        ({"replicas": 11}, "replicas"),
        ({"replicas": "2"}, "replicas"),
        ({"logLevel": "verbose"}, "logLevel"),
        ({"record": ["chat"]}, "record"),
        ({"runAsUser": 0}, "runAsUser"),
        ({"hostNetwork": True}, "hostNetwork"),
        ({"securityContext": {"privileged": True}}, "securityContext"),
        ({"env": [{"value": "nameless"}]}, "env"),
        ({"networkPolicy": {"apiServerPorts": []}}, "apiServerPorts"),
        ({"monitoring": {"podMonitor": {"interval": "soon"}}}, "interval"),
        ({"affinity": {"nodeAfinity": {}}}, "nodeAfinity"),
        ({"serviceAccount": {"create": False}}, "serviceAccount.name"),
    ],
)
def test_values_that_are_unknown_or_wrong_are_refused_by_name(
    helm: Helm, values: dict[str, Any], told: str
) -> None:
    with pytest.raises(Refused) as refused:
        helm.render(values)
    assert told in refused.value.message


def test_every_value_has_a_place_in_the_schema_and_every_default_fits(helm: Helm) -> None:
    values = document((CHART / "values.yaml").read_text())
    schema = document((CHART / "values.schema.json").read_text())

    def compare(given: dict[str, Any], known: dict[str, Any], where: str) -> None:
        assert known["additionalProperties"] is False, where
        extra = {"global"} if not where else set()
        assert set(given) == set(known["properties"]) - extra or where in _OPEN, where
        for key, value in given.items():
            child = known["properties"][key]
            if isinstance(value, dict) and "properties" in child:
                compare(value, child, f"{where}.{key}")

    compare(values, schema, "")


_OPEN = {
    ".resources",
    ".affinity",
    ".workers.trustedCaRef",
    ".workers.user",
    ".workers.tenants",
}  # known keys, none of them needed


def test_the_chart_works_under_a_parent_that_passes_globals(helm: Helm) -> None:
    assert "Deployment" in kinds(helm.render({"global": {"imageRegistry": "x"}}))


def test_the_operator_gets_its_settings_and_no_service_links(helm: Helm) -> None:
    values = {
        "namespaces": ["a", "b"],
        "workerImage": {"repository": "registry.example/w", "tag": "7"},
        "logLevel": "debug",
        "maxConcurrentRollouts": 3,
        "record": ["a/chat", "b/batch"],
        "env": [{"name": "LLMTASKPOOL_OPERATOR_RESYNC_SECONDS", "value": "30"}],
    }
    spec = named(helm.render(values), "Deployment")["spec"]["template"]["spec"]
    container = spec["containers"][0]
    given = {one["name"]: one.get("value") for one in container["env"]}
    fields = {
        one["name"]: one["valueFrom"]["fieldRef"]["fieldPath"]
        for one in container["env"]
        if "valueFrom" in one
    }
    assert container["args"] == ["operate", "--log-level=debug", "--record=a/chat,b/batch"]
    assert given["LLMTASKPOOL_OPERATOR_NAMESPACES"] == "a,b"
    assert given["LLMTASKPOOL_OPERATOR_WORKER_IMAGE"] == "registry.example/w:7"
    assert given["LLMTASKPOOL_OPERATOR_RESYNC_SECONDS"] == "30"
    assert given["LLMTASKPOOL_OPERATOR_MAX_CONCURRENT_ROLLOUTS"] == "3"
    assert fields["LLMTASKPOOL_OPERATOR_NAMESPACE"] == "metadata.namespace"
    assert fields["LLMTASKPOOL_OPERATOR_IDENTITY"] == "metadata.name"
    # A Service named llmtaskpool-operator would set LLMTASKPOOL_OPERATOR_PORT.
    assert spec["enableServiceLinks"] is False


def test_every_setting_that_the_chart_gives_is_one_of_the_operator(helm: Helm) -> None:
    env = named(helm.render({}), "Deployment")["spec"]["template"]["spec"]["containers"][0]["env"]
    known = {f"{PREFIX}{name.upper()}" for name in OperatorSettings.model_fields}
    assert {one["name"] for one in env} <= known


def test_a_digest_goes_before_a_tag(helm: Helm) -> None:
    digest = "sha256:" + "0" * 64
    deployment = named(helm.render({"image": {"digest": digest}}), "Deployment")
    image = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == f"localhost/llmtaskpool-operator@{digest}"


def test_the_selector_does_not_change_with_version_or_labels(helm: Helm) -> None:
    plain = named(helm.render({}), "Deployment")["spec"]
    labelled = named(helm.render(VALUE_SETS["named and labelled"]), "Deployment")["spec"]
    assert plain["selector"] == labelled["selector"]
    assert set(plain["selector"]["matchLabels"]) <= set(plain["template"]["metadata"]["labels"])
    assert "app.kubernetes.io/version" not in plain["selector"]["matchLabels"]


def test_names_follow_the_release(helm: Helm) -> None:
    assert named(helm.render({}, "llmtaskpool"), "Deployment")["metadata"]["name"] == (
        "llmtaskpool-operator"
    )
    assert named(helm.render({}, "prod"), "Deployment")["metadata"]["name"] == (
        "prod-llmtaskpool-operator"
    )


def test_the_crd_is_the_committed_one_and_is_kept_unless_told_otherwise(helm: Helm) -> None:
    committed = document((ROOT / "crds" / "llmtaskpool.yaml").read_text())
    kept = named(helm.render({}), "CustomResourceDefinition")
    assert kept["spec"] == committed["spec"]
    assert kept["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    loose = named(helm.render({"crds": {"keep": False}}), "CustomResourceDefinition")
    assert loose["spec"] == committed["spec"]
    assert "annotations" not in loose["metadata"]
    assert "CustomResourceDefinition" not in kinds(helm.render({"crds": {"install": False}}))


def test_the_committed_files_are_made_from_the_chart_of_today() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "hack" / "chart.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_install_yaml_is_whole_and_claims_no_helm() -> None:
    text = (ROOT / "deploy" / "install.yaml").read_text()
    objects = documents(text)
    assert objects[0]["kind"] == "Namespace", "what is in it comes after it"
    assert objects[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert "Helm" not in text
    assert "helm.sh/" not in text
    committed = document((ROOT / "crds" / "llmtaskpool.yaml").read_text())
    assert named(objects, "CustomResourceDefinition")["spec"] == committed["spec"]
    places = {one["metadata"].get("namespace") for one in objects}
    assert places == {None, objects[0]["metadata"]["name"]}
    for one in objects:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_the_kustomization_names_files_that_exist_and_a_setting_that_is_there() -> None:
    kustomization = ROOT / "deploy" / "kustomization.yaml"
    for name in document(kustomization.read_text())["resources"]:
        assert (kustomization.parent / name).is_file()
    text = (ROOT / "deploy" / "install.yaml").read_text()
    deployment = named(documents(text), "Deployment")
    env = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    # The patch in the kustomization's comment points at it by its place.
    assert env[1]["name"] == "LLMTASKPOOL_OPERATOR_WORKER_IMAGE"


def test_the_operators_network_policy_lets_it_reach_workers_and_the_test_reach_it(
    helm: Helm,
) -> None:
    objects = helm.render(VALUE_SETS["network policy"])
    policy = named(objects, "NetworkPolicy")["spec"]
    ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert ports == {53, 443, 6443, 8001}
    test = named(objects, "Pod")["metadata"]["labels"]
    peers = policy["ingress"][0]["from"]
    assert any(
        peer.get("podSelector", {}).get("matchLabels", {"": ""}).items() <= test.items()
        for peer in peers
    )


def test_the_notes_name_the_next_commands_for_the_namespaces_that_are_served(helm: Helm) -> None:
    done = helm.run(
        *("install", "llmtaskpool", str(CHART), "--namespace", NAMESPACE, "--dry-run=client"),
        *("--set", "namespaces={team-a}"),
    )
    assert done.returncode == 0, done.stderr
    notes = done.stdout.split("NOTES:")[1]
    for command in (
        f"helm test llmtaskpool --namespace {NAMESPACE}",
        "kubectl apply --server-side --namespace team-a",
        "kubectl get llmtaskpools --namespace team-a --watch",
        "kubectl delete crd llmtaskpools.llmtaskpool.io",
    ):
        assert command in notes


@pytest.mark.parametrize("page", ["docs/install.md", "helm/llmtaskpool/templates/NOTES.txt"])
def test_the_first_pool_that_people_are_told_to_make_is_a_pool(page: str) -> None:
    (text,) = re.findall(r"<<'END'\n(.*?)\n *END$", (ROOT / page).read_text(), re.S | re.M)
    pool = parse_pool(document(textwrap.dedent(text)))
    assert [model.name for model in pool.spec.models] == ["smollm2"]


def workers_of(objects: list[dict[str, Any]]) -> str | None:
    """What the operator is told of all workers."""
    (container,) = named(objects, "Deployment", "llmtaskpool-operator")["spec"]["template"]["spec"][
        "containers"
    ]
    values = {one["name"]: one.get("value") for one in container["env"]}
    return values.get(f"{PREFIX}WORKERS")


def test_what_workers_get_reaches_the_operator_as_it_reads_it(helm: Helm) -> None:
    given = VALUE_SETS["what workers get"]["workers"]
    told = workers_of(helm.render({"workers": given}))
    assert told is not None
    settings = OperatorSettings.model_validate({"workers": told})
    assert settings.workers == WorkerDefaults.model_validate(given)
    assert workers_of(helm.render({})) is None


def test_every_default_of_workers_has_a_value_of_the_chart() -> None:
    values = document((CHART / "values.yaml").read_text())["workers"]
    assert set(values) == {field.alias for field in WorkerDefaults.model_fields.values()}
