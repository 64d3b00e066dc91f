"""What people are told of a pool that can't be what they asked for, and within how many seconds.

One control plane with the real controllers, the HorizontalPodAutoscaler's too. Where the test
plays a kubelet, it says what one would (`told.py`); elsewhere stand-in workers run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import rig
import yaml
from fakes.metrics_api import metrics_api
from fakes.mini_kubelet import MiniKubelet, mini_kubelet
from fakes.operator_process import OperatorProcess, operator_process
from fakes.preloaded import llmtaskpool
from rig.pki import Authority

from .conftest import OPERATOR_NAMESPACE, ROOT, STAND_IN, Cluster, connected, wait_for, with_crd
from .pools import Pools, fixed, manifest, own_pools
from .told import Node, Row, container, side_by_side, waiting

REFUSED, FAULT = 5.0, 15.0
"""Seconds within which a refusal, and a fault of a pod, are to be told."""
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
SLOWER_THAN_HERE = 3.0
"""The bounds are of a machine that has time; this one is shared by all that runs beside it."""


@dataclass(frozen=True, slots=True)
class Place:
    cluster: Cluster
    kubelet: MiniKubelet
    operator: OperatorProcess
    plane: rig.ControlPlane

    def explained(self, pools: Pools, name: str) -> str:
        environment = {"KUBECONFIG": str(self.plane.kubeconfig), "PATH": "/usr/bin"}
        done = llmtaskpool(
            "explain", name, "-n", pools.namespace, environment=environment | {"COLUMNS": "400"}
        )
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("told")
    hpa = "--horizontal-pod-autoscaler-"
    flags = (f"{hpa}sync-period=1s", f"{hpa}downscale-stabilization=1s")
    options = rig.Options(arguments={"kube-controller-manager": flags})
    with rig.control_plane(folder / "state", options) as plane:
        cluster = connected(plane.kubeconfig)
        with_crd(cluster, OPERATOR_NAMESPACE)
        with (
            mini_kubelet(cluster.request, folder / "pods", program=STAND_IN) as kubelet,
            operator_process(plane.kubeconfig, folder) as operator,
        ):
            operator.wait_ready(60)
            yield Place(cluster, kubelet, operator, plane)


@pytest.fixture
def spaces(place: Place) -> Iterator[Callable[[], Pools]]:
    """New namespaces, as many as are asked for."""
    made = []

    def one() -> Pools:
        context = own_pools(place.cluster)
        made.append(context)
        return context.__enter__()

    yield one
    for context in made:
        context.__exit__(None, None, None)


def quota(pools: Pools, **hard: str) -> None:
    spec = {"hard": hard}
    body = {"metadata": {"name": "few"}, "spec": spec}
    made = pools.send("POST", f"/api/v1/namespaces/{pools.namespace}/resourcequotas", body)
    path = f"/api/v1/namespaces/{pools.namespace}/resourcequotas/{made['metadata']['name']}"
    wait_for("the quota counts", lambda: pools.get(path).get("status", {}).get("hard"))


def policy(pools: Pools, name: str, kind: tuple[str, str, str], denies: str, says: str) -> None:
    """A ValidatingAdmissionPolicy of this namespace: denied is what ``denies``, CEL, is true of."""
    name = f"{name}-{pools.namespace}"
    group, version, plural = kind
    rule = {
        "apiGroups": [group],
        "apiVersions": [version],
        "resources": [plural],
        "operations": ["CREATE", "UPDATE"],
    }
    validation = {"expression": f"!({denies})", "message": says}
    spec = {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": [rule]},
        "validations": [validation],
    }
    here = {"matchLabels": {"kubernetes.io/metadata.name": pools.namespace}}
    bound = {
        "policyName": name,
        "validationActions": ["Deny"],
        "matchResources": {"namespaceSelector": here},
    }
    pools.send(
        "POST",
        f"{ADMISSION}/validatingadmissionpolicies",
        {"metadata": {"name": name}, "spec": spec},
    )
    pools.send(
        "POST",
        f"{ADMISSION}/validatingadmissionpolicybindings",
        {"metadata": {"name": name}, "spec": bound},
    )


DEPLOYMENT = ("apps", "v1", "deployments")


def webhook_down(pools: Pools) -> None:
    rule = {
        "apiGroups": ["apps"],
        "apiVersions": ["v1"],
        "resources": ["deployments"],
        "operations": ["*"],
    }
    hook = {
        "name": "down.example.org",
        "clientConfig": {"url": "https://127.0.0.1:1/"},
        "rules": [rule],
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "timeoutSeconds": 2,
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": pools.namespace}},
    }
    body = {"metadata": {"name": pools.namespace}, "webhooks": [hook]}
    pools.send("POST", f"{ADMISSION}/validatingwebhookconfigurations", body)


def applied(body: dict[str, Any]) -> Callable[[Pools], None]:
    return lambda pools: pools.apply(body)  # type: ignore[func-returns-value]


def table(rows: list[Any], say: Callable[[str], None]) -> None:
    say(f"{'what':44} {'told':28} {'s':>5}  within")
    for told in rows:
        seconds = "never" if told.seconds is None else f"{told.seconds:.1f}"
        told_as = f"{told.row.kind} {told.row.reason}"
        say(f"{told.row.what:44} {told_as:28} {seconds:>5}  {told.row.within:.0f}")
    for told in rows:
        assert told.seconds is not None, f"{told.row.what}: {told.said}"
        assert told.seconds <= told.row.within * SLOWER_THAN_HERE, told.row.what


@pytest.mark.timeout(240)
def test_what_the_server_refuses_reaches_the_person(
    place: Place, spaces: Callable[[], Pools], say: Callable[[str], None]
) -> None:
    few, secrets, deployments, pods, labels, down, image = (spaces() for _ in range(7))
    place.kubelet.left |= {one.namespace for one in (few, secrets, deployments, pods, labels, down)}
    quota(few, services="0")
    quota(secrets, secrets="0")
    quota(deployments, **{"count/deployments.apps": "0"})
    quota(pods, pods="0")
    says = "every Deployment has a label team"
    policy(labels, "team", DEPLOYMENT, "!has(object.metadata.labels.team)", says)
    webhook_down(down)
    time.sleep(3)  # until the server's policies and webhooks are in force
    one = fixed(1)
    spec = {"priorityClassName": "nobody-has-this"}
    rows = [
        (Row("a quota on Services", applied(one), "Stalled", "Refused", "quota", REFUSED), few),
        (
            Row("a quota on Secrets", applied(one), "Stalled", "Refused", "quota", REFUSED),
            secrets,
        ),
        (
            Row("a quota on Deployments", applied(one), "Stalled", "Refused", "quota", REFUSED),
            deployments,
        ),
        (Row("a quota on pods", applied(one), "Stalled", "PodsRefused", "quota", REFUSED), pods),
        (Row("a policy wants a label", applied(one), "Stalled", "Refused", says, REFUSED), labels),
        (
            Row(
                "a webhook that is down",
                applied(one),
                "Degraded",
                "WebhookFails",
                "failed calling webhook",
                REFUSED,
                ready="False",
            ),
            down,
        ),
        (
            Row(
                "a priority class that is not there",
                applied(fixed(1, **spec)),
                "Stalled",
                "PodsRefused",
                "nobody-has-this",
                REFUSED,
            ),
            image,
        ),
    ]
    told = side_by_side(rows)
    table(told, say)
    for row, pools in rows:
        status = pools.status(row.pool)
        assert status["observedGeneration"] == 1, row.what
        assert pools.events("Stalled") or pools.events("DegradedTrue"), row.what
        assert row.words in " ".join(place.explained(pools, row.pool).split()), row.what
    # What stood in the way goes, and the pools become what they should be.
    down.send("DELETE", f"{ADMISSION}/validatingwebhookconfigurations/{down.namespace}", {})
    few.send("DELETE", f"/api/v1/namespaces/{few.namespace}/resourcequotas/few", {})
    for pools in (down, few):
        wait_for("told no more", lambda p=pools: not p.condition("Stalled"), 60)
        wait_for("its Deployment", pools.deployment, 60)
    assert "Traceback" not in place.operator.text()


def burdened(place: Place, pools: Pools) -> None:
    """Its pods say that 60 requests wait."""
    odd = {"lanes.compute.active": 4, "lanes.compute.queued": 60, "work.waiting_seconds": 2000.0}
    for pod in list(place.kubelet.pods.values()):
        if pod.namespace == pools.namespace:
            (pod.folder / "odd.json").write_text(json.dumps(odd))


@pytest.mark.timeout(180)
def test_while_a_change_is_refused_the_pool_lives_on(
    place: Place, spaces: Callable[[], Pools], say: Callable[[str], None]
) -> None:
    pools = spaces()
    denies = "object.spec.template.spec.containers[0].image == 'refused:1'"
    policy(pools, "image", DEPLOYMENT, denies, "no image refused:1")
    pools.apply(manifest())
    pools.wait_ready(1)
    time.sleep(2)
    pools.apply(manifest(image="refused:1"))
    stalled = wait_for("Refused is told", lambda: pools.condition("Stalled"), 15)
    assert stalled["reason"] == "Refused"
    assert "no image refused:1" in stalled["message"]
    assert pools.condition("Ready")["status"] == "True"
    burdened(place, pools)
    wait_for("replicas follow", lambda: pools.asked_for() > 1, 40)

    def threads() -> int:
        lanes = pools.status().get("threads", ())
        return sum(lane["observed"] for lane in lanes if lane["lane"] == "compute")

    wait_for("threads follow", lambda: threads() > 8, 40)
    image = pools.deployment()["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image != "refused:1"
    assert pools.condition("Stalled")["reason"] == "Refused"
    say(f"refused, and {pools.asked_for()} replicas with {threads()} threads for 60 requests")


@pytest.mark.timeout(240)
def test_the_faults_of_pods_are_told_with_their_reasons(
    place: Place, spaces: Callable[[], Pools], say: Callable[[str], None]
) -> None:
    here, runs = spaces(), spaces()
    place.kubelet.left.add(here.namespace)
    node = Node(here)
    named = ("keys", "nokey", "init", "sidecar", "memory", "crash", "image", "dead")
    for name in named:
        limits = {"limits": {"memory": "512Mi"}}
        here.apply(fixed(1, resources=limits) | {"metadata": {"name": name}})
    for name in named:
        wait_for(f"a pod of {name}", lambda name=name: here.pods(name), 30)
    creating = {"phase": "Pending", "containerStatuses": [waiting("ContainerCreating")]}
    mount = 'MountVolume.SetUp failed for volume "keys" : '

    def mounts(words: str, name: str) -> Callable[[Pools], None]:
        def do(_: Pools) -> None:
            node.says(name, creating)
            node.warns(name, "FailedMount", mount + words)

        return do

    def says(name: str, **status: Any) -> Callable[[Pools], None]:
        return lambda _: node.says(name, {"phase": "Pending"} | status)

    def ended(reason: str, code: int, message: str) -> dict[str, Any]:
        times = {"startedAt": None, "finishedAt": None}
        last = {"reason": reason, "exitCode": code, "message": message} | times
        back_off = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
        return container(back_off, lastState={"terminated": last}, restartCount=3)

    def dies(_: Pools) -> None:
        node.says("dead", {"phase": "Running"}, ready=True)
        (pod,) = here.pods("dead")
        path = f"/api/v1/namespaces/{here.namespace}/pods/{pod['metadata']['name']}"
        here.send("DELETE", path, {"gracePeriodSeconds": 1})

    for name in ("retrying", "dying", "failed"):
        runs.apply(fixed(1) | {"metadata": {"name": name}})
    for name in ("retrying", "dying", "failed"):
        runs.wait_ready(1, name)

    def model(name: str, code: str, message: str) -> Callable[[Pools], None]:
        def do(pools: Pools) -> None:
            (pod,) = pools.pods(name)
            running = next(
                one for one in place.kubelet.pods.values() if one.name == pod["metadata"]["name"]
            )
            trouble = {"llama": {"code": code, "message": message}}
            (running.folder / "odd.json").write_text(json.dumps({"model_problems": trouble}))

        return do

    secret, hub = 'secret "nokeys" not found', "503 of the hub, in 8 s again"
    killed = "its engine process was killed while it loaded: out of memory?"
    gated = "401 of the hub: meta/llama is gated"
    bad = "llmtaskpool-worker serve: --threads 0: use 1 or more"
    no_image = waiting("ErrImagePull", "no such image", "fetch")
    proxy = waiting("CrashLoopBackOff", "", "proxy")
    rows = [
        Row("a Secret of keys that is missing", mounts(secret, "keys"), "Stalled", "FailedMount",
            f"{secret}: make that Secret and key, or correct spec.auth", FAULT, "keys"),
        Row("a key that is missing in it",
            mounts("references non-existent secret key: key", "nokey"),
            "Stalled", "FailedMount", "non-existent secret key", FAULT, "nokey"),
        Row("an init container without its image",
            says("init", initContainerStatuses=[no_image], containerStatuses=[]),
            "Degraded", "ErrImagePull", "init container fetch: no such image", FAULT, "init"),
        Row("a sidecar that crashes",
            says("sidecar", containerStatuses=[waiting("PodInitializing"), proxy]),
            "Degraded", "CrashLoopBackOff", "container proxy:", FAULT, "sidecar"),
        Row("out of memory",
            says("memory", containerStatuses=[ended("OOMKilled", 137, "")]),
            "Stalled", "OOMKilled", "its memory limit of 512Mi", FAULT, "memory"),
        Row("a worker that ends at once",
            says("crash", containerStatuses=[ended("Error", 2, f"x\n{bad}\n")]),
            "Stalled", "CrashLoopBackOff", f"exit code 2: {bad}", FAULT, "crash"),
        Row("an image that can't be pulled",
            says("image", containerStatuses=[waiting("ImagePullBackOff", "no such tag")]),
            "Stalled", "ImagePullBackOff", "no such tag", FAULT, "image", ready="False"),
        Row("a pod that can't end, its node is dead", dies, "Degraded", "StuckTerminating",
            "kubectl delete pod", FAULT, "dead"),
        Row("a model that is tried again", model("retrying", "retrying", hub), "Degraded",
            "ModelRetrying", hub, FAULT, "retrying"),
        Row("an engine that dies at each load", model("dying", "restarting", killed), "Degraded",
            "EngineRestarts", killed, FAULT, "dying"),
        Row("a model that can't be loaded", model("failed", "load_failed", gated), "Stalled",
            "ModelsFailed", gated, FAULT, "failed"),
    ]  # fmt: skip
    of_runs = {"retrying", "dying", "failed"}
    table(side_by_side([(row, runs if row.pool in of_runs else here) for row in rows]), say)
    # The node's death is told, another pod was made, and nothing is under way for ever.
    node.says("dead", {"phase": "Running"}, ready=True)
    wait_for("not under way", lambda: not here.condition("Reconciling", "dead"), 20)


@pytest.mark.timeout(180)
def test_a_rollout_is_under_way_until_its_last_pod_and_stalls_with_the_reason_of_its_pods(
    place: Place, spaces: Callable[[], Pools], say: Callable[[str], None]
) -> None:
    pools = spaces()
    place.kubelet.left.add("broken:1")
    pools.apply(fixed(1))
    pools.wait_ready(1)
    wait_for("at rest", lambda: not pools.condition("Reconciling"), 20)
    generation = pools.apply(fixed(1, image="good:2"))["metadata"]["generation"]
    seen = []

    def over() -> bool:
        status = pools.status()
        found = {one["type"]: one["reason"] for one in status["conditions"]}
        if status["observedGeneration"] == generation:
            seen.append(("Reconciling" in found, found.get("Ready")))
        old = [pod for pod in pools.pods() if pod["spec"]["containers"][0]["image"] != "good:2"]
        return bool(seen) and not old and "Reconciling" not in found

    wait_for("rolled out", over, 60)
    assert seen[0][0], "Current, for who looks right after the change"
    assert {ready for _, ready in seen} == {"AllReady"}  # the old pod served until the new one did
    pools.apply(fixed(1, image="broken:1"))
    wait_for("under way", lambda: pools.condition("Reconciling").get("reason") == "RollingOut", 10)
    wait_for("the new pod", lambda: len(pools.pods()) == 2, 20)
    node = Node(pools)
    new = next(p for p in pools.pods() if p["spec"]["containers"][0]["image"] == "broken:1")
    assert node.pod("p")["metadata"]["name"]
    began = time.monotonic()
    path = f"/api/v1/namespaces/{pools.namespace}/pods/{new['metadata']['name']}/status"
    statuses = [waiting("ImagePullBackOff", "no such image broken:1")]
    body = {"status": {"phase": "Pending", "containerStatuses": statuses}}
    pools.send("PATCH", path, body, "merge")
    stalled = wait_for("stalled", lambda: pools.condition("Stalled"), FAULT * SLOWER_THAN_HERE)
    say(f"a rollout whose pod has no image is told {time.monotonic() - began:.1f} s after")
    assert stalled["reason"] == "ImagePullBackOff"
    assert pools.condition("Ready")["status"] == "True"


CHILDREN = {
    "services": "/api/v1/namespaces/{}/services/p",
    "serviceaccounts": "/api/v1/namespaces/{}/serviceaccounts/p-worker",
    "networkpolicies": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies/p-worker",
    "poddisruptionbudgets": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets/p-worker",
}


@pytest.mark.timeout(180)
def test_children_that_somebody_deletes_or_changes_come_back(
    place: Place, spaces: Callable[[], Pools], say: Callable[[str], None]
) -> None:
    pools = spaces()
    pools.apply(fixed(1))
    pools.wait_ready(1)
    time.sleep(3)
    for kind, path in CHILDREN.items():
        path = path.format(pools.namespace)
        old = pools.get(path)["metadata"]["uid"]
        pools.send("DELETE", path, {})
        began = time.monotonic()
        wait_for(
            f"{kind} is back",
            lambda path=path, old=old: (
                pools.get(path).get("metadata", {}).get("uid") not in (None, old)
            ),
            5 * SLOWER_THAN_HERE,
        )
        say(f"{kind} deleted: back after {time.monotonic() - began:.1f} s")
    path = CHILDREN["networkpolicies"].format(pools.namespace)
    ingress = pools.get(path)["spec"]["ingress"]
    pools.send("PATCH", f"{path}?fieldManager=somebody", {"spec": {"ingress": [{}]}}, "merge")
    wait_for("mended", lambda: pools.get(path)["spec"]["ingress"] == ingress, 15)
    # Who may watch Secrets may read them all: this one comes with the pod that needs it.
    secret = f"/api/v1/namespaces/{pools.namespace}/secrets/p-llmtaskpool-control"
    place.kubelet.left.add(pools.namespace)
    (old,) = pools.pods()
    gone = {"gracePeriodSeconds": 0}
    path = f"/api/v1/namespaces/{pools.namespace}/pods"
    pools.send("DELETE", f"{path}/{old['metadata']['name']}", gone)
    wait_for("another pod", pools.pods, 20)
    pools.send("DELETE", secret, {})
    creating = {"phase": "Pending", "containerStatuses": [waiting("ContainerCreating")]}
    node = Node(pools)
    node.says("p", creating)
    began = time.monotonic()
    wait_for("the Secret", lambda: pools.get(secret), FAULT)
    say(f"secrets deleted: back {time.monotonic() - began:.1f} s after a pod waits for it")


@pytest.mark.timeout(180)
def test_of_two_operators_that_see_a_pool_the_second_stands_back_and_says_so(
    place: Place, spaces: Callable[[], Pools], say: Callable[[str], None], tmp_path: Path
) -> None:
    pools = spaces()
    with_crd(place.cluster, "other-system")
    pools.apply(fixed(1))
    pools.wait_ready(1)
    wait_for("at rest", lambda: not pools.condition("Reconciling"), 20)
    secret = f"/api/v1/namespaces/{pools.namespace}/secrets/p-llmtaskpool-control"

    def written() -> list[str]:
        """Versions of what two operators would fight for."""
        paths = [path.format(pools.namespace) for path in CHILDREN.values()]
        bodies = [pools.deployment(), *(pools.get(path) for path in (secret, *paths))]
        spec = [str(body["metadata"].get("generation")) for body in bodies]
        return spec + [str(pools.get(secret)["metadata"]["resourceVersion"])]

    before = written()
    settings = {"namespace": "other-system", "lease": "other", "worker_image": "other:2"}
    with operator_process(
        place.plane.kubeconfig, tmp_path, **settings, namespaces=pools.namespace, identity="b"
    ) as other:
        other.wait_ready(60)
        began = time.monotonic()
        (said,) = wait_for("it says so", lambda: pools.events("OtherOperator"), 30)
        say(f"the second of two operators says so {time.monotonic() - began:.1f} s after its start")
        assert "other-system/other stands back: llmtaskpool-system/llmtaskpool-operator" in said
        time.sleep(10)
        assert written() == before
        assert len(pools.pods()) == 1
        assert len(pools.events("OtherOperator")) == 1
        assert "stands back" in other.text()
        # The pool that only the second sees first is the second's.
        place.operator.freeze()
        try:
            time.sleep(1)
            pools.apply(fixed(1) | {"metadata": {"name": "later"}})
            wait_for("made", lambda: pools.deployment("later"), 20)
        finally:
            place.operator.thaw()
        time.sleep(8)
        spec = pools.deployment("later")["spec"]["template"]["spec"]
        assert spec["containers"][0]["image"] == "other:2"
        assert pools.deployment("later")["metadata"]["generation"] == 1
    # The second is gone, and its Lease is renewed no more: the first takes its pool over.
    began = time.monotonic()

    def taken_over() -> bool:
        spec = pools.deployment("later")["spec"]["template"]["spec"]
        return bool(spec["containers"][0]["image"] != "other:2")

    wait_for("taken over", taken_over, 60)
    say(f"a pool whose operator is gone is taken over {time.monotonic() - began:.1f} s after")


def rolled_out(deployment: dict[str, Any]) -> bool:
    """As kubectl rollout status says it of one replica."""
    status, meta = deployment.get("status", {}), deployment["metadata"]
    counts = [status.get(one) for one in ("replicas", "updatedReplicas", "availableReplicas")]
    return status.get("observedGeneration", 0) >= meta["generation"] and counts == [1, 1, 1]


@pytest.mark.timeout(240)
def test_a_new_version_of_the_operator_changes_one_pool_at_a_time_and_the_others_say_that_they_wait(
    place: Place, spaces: Callable[[], Pools], say: Callable[[str], None], tmp_path: Path
) -> None:
    pools, names = spaces(), ("one", "two", "three")
    with_crd(place.cluster, "third-system")
    settings = {
        "namespace": "third-system",
        "lease": "third",
        "namespaces": pools.namespace,
        "identity": "c",
        "max_concurrent_rollouts": "1",
    }
    place.operator.freeze()  # it would serve these pools, as it came first
    try:
        with operator_process(
            place.plane.kubeconfig, tmp_path, **settings, worker_image="worker:1"
        ) as older:
            older.wait_ready(60)
            for name in names:
                pools.apply(fixed(1) | {"metadata": {"name": name}})
            for name in names:
                pools.wait_ready(1, name)
            assert older.terminate() == 0
        under_way: int = 0
        waited: set[str] = set()

        def changed() -> bool:
            nonlocal under_way
            path = f"/apis/apps/v1/namespaces/{pools.namespace}/deployments"
            found = pools.get(path)["items"]  # in one look: of several the first would be old
            begun = [
                one
                for one in found
                if one["spec"]["template"]["spec"]["containers"][0]["image"] == "worker:2"
            ]
            ended = [one for one in begun if rolled_out(one)]
            under_way = max(under_way, len(begun) - len(ended))
            for name in names:
                said = pools.condition("Reconciling", name)
                if "maxConcurrentRollouts" in said.get("message", ""):
                    waited.add(name)
            return len(ended) == len(names)

        with operator_process(
            place.plane.kubeconfig, tmp_path, **settings, worker_image="worker:2"
        ) as newer:
            newer.wait_ready(60)
            began = time.monotonic()
            wait_for("all are of the new version", changed, 120)
            say(
                f"a new version changed {len(names)} pools in {time.monotonic() - began:.1f} s, "
                f"{under_way} at a time; {len(waited)} said that they wait"
            )
        assert under_way <= 1
        assert len(waited) >= 1
    finally:
        place.operator.thaw()


@pytest.mark.timeout(180)
def test_what_a_pool_left_behind_is_adopted_by_the_next_of_its_name(
    place: Place, spaces: Callable[[], Pools]
) -> None:
    pools = spaces()
    pools.apply(fixed(1))
    pools.wait_ready(1)
    (pod,) = pools.pods()
    pools.send("DELETE", f"{pools.path}/p", {"propagationPolicy": "Orphan"})
    wait_for("gone", lambda: not pools.pool(), 20)
    pools.apply(fixed(1))
    pools.wait_ready(1)
    wait_for("at rest", lambda: not pools.condition("Reconciling"), 20)
    assert [one["metadata"]["name"] for one in pools.pods()] == [pod["metadata"]["name"]]
    uid = pools.pool()["metadata"]["uid"]
    assert [o["uid"] for o in pools.deployment()["metadata"]["ownerReferences"]] == [uid]


@pytest.mark.timeout(240)
def test_the_real_hpa_scales_the_example_up_and_down_through_scale(
    place: Place, spaces: Callable[[], Pools], say: Callable[[str], None], tmp_path: Path
) -> None:
    pools = spaces()
    documents = list(yaml.safe_load_all((ROOT / "examples" / "hpa.yaml").read_text()))
    pool, hpa = documents[0], documents[1]
    pool["spec"]["scaling"]["drainSeconds"] = 1
    assert "replicas" not in pool["spec"]
    autoscaler = f"/apis/autoscaling/v2/namespaces/{pools.namespace}/horizontalpodautoscalers"
    identity = Authority(tmp_path / "pki").issue("metrics", "metrics", hosts=["DNS:localhost"])

    def conditions() -> dict[str, str]:
        found = pools.get(f"{autoscaler}/chat").get("status", {}).get("conditions") or ()
        return {one["type"]: f"{one['status']} {one['reason']}" for one in found}

    with metrics_api(identity.certificate, identity.key) as stub:
        for path, body in stub.registered(pools.namespace):
            pools.send("POST", path, body)
        stub.value = 0.9
        pools.apply(pool)
        pools.send("POST", autoscaler, hpa)
        began = time.monotonic()
        scale = f"{pools.path}/chat/scale"
        wait_for("/scale can be read", lambda: pools.get(scale).get("spec"), 10)
        say(f"/scale is there {time.monotonic() - began:.1f} s after the first apply")
        pools.wait_ready(1, "chat")
        try:
            wait_for("the HPA scales", lambda: "True" in conditions().get("ScalingActive", ""), 60)
            for value, replicas in ((2.7, 3), (0.5, 1)):
                stub.value = value
                wait_for(f"{replicas} asked", lambda n=replicas: pools.asked_for("chat") == n, 60)
                pools.wait_ready(replicas, "chat")
                say(f"the metric at {value}: {replicas} replicas by the HPA")
        finally:
            say(f"HPA: {conditions()}; asked {len(stub.asked)} times")
            for path, body in reversed(stub.registered(pools.namespace)):
                pools.cluster.request("DELETE", f"{path}/{body['metadata']['name']}")
        assert pools.pool("chat")["metadata"].get("annotations") is None
        # Beyond the bounds it is told, and the bound holds.
        pools.send("DELETE", f"{autoscaler}/chat", {})
        pools.scale(99, "chat")
        limited = wait_for("told", lambda: pools.condition("ScalingLimited", "chat"), REFUSED * 3)
        assert limited["reason"] == "TooManyReplicas"
        assert "spec.replicas is 99" in limited["message"]
        pools.scale(1, "chat")
        wait_for("told no more", lambda: not pools.condition("ScalingLimited", "chat"), 15)
        # The manifest that Git has is applied again, by each way there is: nothing moves.
        pools.scale(2, "chat")
        pools.wait_ready(2, "chat")
        pools.apply(pool)
        merged = {"spec": pool["spec"]}
        pools.send("PATCH", f"{pools.path}/chat", merged, "merge")
        time.sleep(2)
        assert pools.get(scale)["spec"]["replicas"] == 2
        assert pools.asked_for("chat") == 2
        # Who scales the Deployment by hand is told that it is put back, and what to scale.
        by_hand = f"/apis/apps/v1/namespaces/{pools.namespace}/deployments/chat/scale"
        asked = {"spec": {"replicas": 4}}
        pools.send("PATCH", f"{by_hand}?fieldManager=kubectl", asked, "merge")
        began = time.monotonic()
        (told,) = wait_for("told", lambda: pools.events("ScalingConflict"), REFUSED * 3)
        assert "kubectl (on the Deployment)" in told
        assert "kubectl scale llmtaskpool/chat" in told
        wait_for("put back", lambda: pools.asked_for("chat") == 2, 15)
        say(f"a Deployment scaled by hand is told {time.monotonic() - began:.1f} s after")
