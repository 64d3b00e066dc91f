"""The rig itself: a real control plane comes up, works, breaks on demand and goes without a trace.

Needs `make rig` first (or `uv run --no-sync python hack/cluster build --control-plane`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import rig
import urllib3
from kubernetes import client
from rig import pins, processes

from .conftest import ROOT, Cluster, connected, wait_for

COMMAND = [sys.executable, str(ROOT / "hack" / "cluster")]


def deployment(name: str, replicas: int) -> dict[str, Any]:
    labels = {"app": name}
    container = {"name": "main", "image": "example.invalid/none"}
    return {
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


def test_the_server_answers_readyz(cluster: Cluster) -> None:
    assert cluster.request("GET", "/readyz") == (200, b"ok")


def test_the_server_says_the_pinned_version(own_control_plane: rig.ControlPlane) -> None:
    version = client.VersionApi(connected(own_control_plane.kubeconfig).api).get_code()
    assert version.git_version == pins.KUBERNETES.version


def test_a_deployment_gets_its_replicaset_and_pods(cluster: Cluster, namespace: str) -> None:
    apps = client.AppsV1Api(cluster.api)
    apps.create_namespaced_deployment(namespace, deployment("web", replicas=2))

    owned = wait_for(
        "a ReplicaSet", lambda: apps.list_namespaced_replica_set(namespace).items or None
    )
    assert owned[0].metadata.owner_references[0].name == "web"
    core = client.CoreV1Api(cluster.api)
    wait_for("two Pods", lambda: len(core.list_namespaced_pod(namespace).items) == 2)


def test_a_pod_that_breaks_pod_security_is_refused(cluster: Cluster, namespace: str) -> None:
    core = client.CoreV1Api(cluster.api)
    enforce = {"pod-security.kubernetes.io/enforce": "restricted"}
    core.patch_namespace(namespace, {"metadata": {"labels": enforce}})
    pod = {"metadata": {"name": "root"}, "spec": deployment("x", 1)["spec"]["template"]["spec"]}
    with pytest.raises(client.ApiException) as refused:
        core.create_namespaced_pod(namespace, pod)
    assert refused.value.status == 403
    assert "allowPrivilegeEscalation" in refused.value.body


def test_objects_survive_a_killed_etcd_and_a_killed_api_server(
    own_control_plane: rig.ControlPlane,
) -> None:
    core = client.CoreV1Api(connected(own_control_plane.kubeconfig).api)
    core.create_namespaced_config_map("default", {"metadata": {"name": "kept"}})
    for role in ("etcd", "kube-apiserver"):
        own_control_plane.kill(role)
        assert role not in [m.role for m in processes.members(own_control_plane.state_dir)]
        own_control_plane.start(role)
        own_control_plane.wait_ready()
        assert core.read_namespaced_config_map("kept", "default").metadata.name == "kept"


def test_a_frozen_api_server_keeps_its_connections_and_answers_once_thawed(
    own_control_plane: rig.ControlPlane,
) -> None:
    version = client.VersionApi(connected(own_control_plane.kubeconfig).api)
    version.get_code()
    own_control_plane.freeze("kube-apiserver")
    try:
        with pytest.raises(urllib3.exceptions.HTTPError, match=r"[Tt]imed out"):
            version.get_code(_request_timeout=0.5)
    finally:
        own_control_plane.thaw("kube-apiserver")
    assert version.get_code(_request_timeout=20).major == "1"


def test_another_user_gets_only_what_rbac_gives_and_the_audit_log_tells_what_they_asked(
    own_control_plane: rig.ControlPlane,
) -> None:
    nobody = connected(own_control_plane.user_kubeconfig("ann@example.com", ["readers"])).api
    with pytest.raises(client.ApiException) as refused:
        client.CoreV1Api(nobody).list_namespaced_secret("default")
    assert refused.value.status == 403
    assert 'User "ann@example.com"' in json.loads(refused.value.body)["message"]

    entries = map(json.loads, own_control_plane.audit_log.read_text().splitlines())
    asked = [entry for entry in entries if entry["user"]["username"] == "ann@example.com"]
    assert [(a["verb"], a["objectRef"]["resource"]) for a in asked] == [("list", "secrets")]


def test_a_changed_pin_or_flag_is_another_build(tmp_path: Path) -> None:
    built = pins.HELM.key
    assert built.startswith(f"helm-{pins.HELM.version}-")
    assert dataclasses.replace(pins.HELM, tags="other").key != built
    for name in ("go.mod", "go.sum"):
        (tmp_path / name).write_bytes((pins.HELM.folder / name).read_bytes())
    (tmp_path / "go.sum").open("a").write("example.invalid/other v1.0.0 h1:x=\n")

    class Moved(pins.Module):
        folder = tmp_path

    moved = Moved(**{f.name: getattr(pins.HELM, f.name) for f in dataclasses.fields(pins.HELM)})
    assert moved.key != built


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "200"}
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, env=environment
    )


def up_control_plane(state: Path) -> subprocess.CompletedProcess[str]:
    return run("up", "--control-plane", "--state", str(state), "--output", "json")


def marked_processes(state: Path) -> list[str]:
    """Every process whose environment or command line names the folder: seen from outside."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and entry.name != str(os.getpid()):
            try:
                words = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(state).encode() in words:
                found.append(entry.name)
    return found


def test_two_clusters_live_side_by_side_and_down_leaves_nothing(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    try:
        with ThreadPoolExecutor() as both:
            answers = list(both.map(up_control_plane, folders))
        assert [answer.returncode for answer in answers] == [0, 0], answers
        servers = [json.loads(answer.stdout)["server"] for answer in answers]
        assert len(set(servers)) == 2
        for answer, folder in zip(answers, folders, strict=True):
            kubeconfig = Path(json.loads(answer.stdout)["kubeconfig"])
            assert client.CoreV1Api(connected(kubeconfig).api).list_node().items == []
            rows = json.loads(run("status", "--state", str(folder), "-o", "json").stdout)
            assert {row["role"] for row in rows["processes"]} == {
                "etcd",
                "kube-apiserver",
                "kube-controller-manager",
            }
        again = run("up", "--control-plane", "--state", str(folders[0]))
        assert again.returncode == 2
        assert f"down --state {folders[0]}" in again.stderr
    finally:
        downs = [run("down", "--state", str(folder)) for folder in folders]
    assert [down.returncode for down in downs] == [0, 0], downs
    for folder in folders:
        assert marked_processes(folder) == []
        assert not folder.exists()


def test_down_cleans_up_after_an_up_that_was_killed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    up = subprocess.Popen([*COMMAND, "up", "--control-plane", "--state", str(state)])
    try:
        wait_for("the API server's process", lambda: len(processes.members(state)) >= 2)
    finally:
        up.send_signal(signal.SIGKILL)
        up.wait()
        down = run("down", "--state", str(state))
    assert down.returncode == 0, down.stderr
    assert marked_processes(state) == []
    assert not state.exists()


def test_a_port_in_use_is_named_with_a_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        up = run("up", "--control-plane", "--state", str(tmp_path / "s"), "--port", str(port))
    assert up.returncode == 2
    assert f"port {port} on 127.0.0.1 is in use" in up.stderr
    assert "remedy" in up.stderr
    assert not (tmp_path / "s").exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    up = run("up", "--control-plane", "--state", str(tmp_path))
    down = run("down", "--state", str(tmp_path))
    assert up.returncode == 2
    assert "not an empty folder" in up.stderr
    assert down.returncode == 0
    assert precious.read_text() == "mine"


def test_what_is_not_built_is_named_with_the_command_that_builds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMTASKPOOL_RIG_CACHE", str(tmp_path / "empty"))
    up = run("up", "--control-plane", "--state", str(tmp_path / "s"))
    assert up.returncode == 2
    assert "not built yet: kube-apiserver, kube-controller-manager" in up.stderr
    assert "hack/cluster build --control-plane" in up.stderr


def test_a_failing_api_server_shows_the_end_of_its_log_and_leaves_nothing(tmp_path: Path) -> None:
    options = rig.Options(arguments={"kube-apiserver": ["--no-such-flag"]})
    with pytest.raises(rig.RigError, match="unknown flag: --no-such-flag"):
        rig.control_plane(tmp_path / "state", options)
    assert marked_processes(tmp_path / "state") == []
    assert not (tmp_path / "state").exists()
