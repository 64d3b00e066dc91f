"""hack/kind in a Docker that runs already: docker, kind and ip are played, all else is real.

No registry is reached where these were written, so this is all that is known of kind's published
node image; real kind in a Docker of its own is `make kind-test`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes.fake_programs import FakePrograms
from kindrig import cli, cluster, node_image, obstacle
from rig.build import path_of
from rig.errors import RigError

HACK_KIND = [sys.executable, str(Path(__file__).parents[3] / "hack" / "kind")]
PUBLISHED = "kindest/node:v1.37.1@sha256:abc"
CREATED = ("kind", "create", "cluster")
DELETED = ("kind", "delete", "cluster")
CACHE = "LLMTASKPOOL_RIG_CACHE"
pytestmark = pytest.mark.usefixtures("handlers_stay")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePrograms:
    """Docker runs, kind is on PATH, the user is root."""
    programs = FakePrograms(tmp_path / "bin")
    programs.add("docker", "kind", "ip", "go", "nft", "unshare", "nsenter")
    sources = tmp_path / "kind-sources"
    defaults = sources / "pkg" / "apis" / "config" / "defaults" / "image.go"
    defaults.parent.mkdir(parents=True)
    defaults.write_text(f'package defaults\n\nconst Image = "{PUBLISHED}"\n')
    programs.answer("go", "version", out="go version go1.30.0 linux/amd64\n")
    programs.answer("go", "mod", "download", out=json.dumps({"Dir": str(sources)}))
    programs.answer("ip", "-j", "-4", "route", out="[]")
    programs.answer("docker", "inspect", out="172.18.0.2\n")
    programs.answer("docker", "image", "inspect", code=1)
    monkeypatch.setenv("PATH", str(programs.folder))
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return programs


@pytest.fixture
def no_registry(machine: FakePrograms, tmp_path: Path) -> FakePrograms:
    """Nothing can be pulled, and the rig's node image is made."""
    machine.answer("docker", "pull", code=1, err="no such host")
    cache = tmp_path / "cache"
    made = [path_of(binary, cache) for binary in node_image.BINARIES]
    made += [cache / "debian" / "containernetworking-plugins" / "here", node_image.file_of(cache)]
    for path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return machine


def option(call: list[str], name: str) -> str:
    return call[call.index(name) + 1]


def made_from(machine: FakePrograms) -> tuple[list[str], dict[str, Any]]:
    """The one `kind create cluster`, and the file that it was given."""
    (call,) = machine.calls(*CREATED)
    found: dict[str, Any] = yaml.safe_load(Path(option(call, "--config")).read_text())
    return call, found


def kubelets_patches(config: dict[str, Any]) -> list[dict[str, Any]]:
    patches = [yaml.safe_load(patch) for patch in config["kubeadmConfigPatches"]]
    return [patch for patch in patches if patch["kind"] == "KubeletConfiguration"]


def test_kinds_published_node_image_is_pulled_and_used_with_its_own_network(
    machine: FakePrograms, tmp_path: Path
) -> None:
    said: list[str] = []
    with cluster.cluster(tmp_path / "state", said.append) as made:
        call, config = made_from(machine)
        assert machine.calls("docker", "pull") == [["docker", "pull", "--quiet", PUBLISHED]]
        assert option(call, "--image") == made.node_image == PUBLISHED
        assert option(call, "--kubeconfig") == made.kubeconfig
        assert not made.own_docker
        assert "disableDefaultCNI" not in config["networking"]
        assert config["networking"]["kubeProxyMode"] == "nftables"
        assert "apiServerAddress" not in config["networking"]
        assert kubelets_patches(config) == [{"kind": "KubeletConfiguration", "failCgroupV1": False}]
        ranges = [config["networking"][name] for name in ("serviceSubnet", "podSubnet")]
        routes = [["ip", "route", "replace", target, "via", "172.18.0.2"] for target in ranges]
        assert machine.calls("ip", "route", "replace") == routes
        assert machine.calls(*DELETED) == []
    assert [option(call, "--name") for call in machine.calls(*DELETED)] == [made.name]
    assert machine.calls("ip", "route", "flush") == [["ip", "route", "flush", "via", "172.18.0.2"]]
    assert not (tmp_path / "state").exists()
    assert machine.calls("docker", "import") == []


def test_a_published_image_that_is_there_is_not_pulled_again(
    machine: FakePrograms, tmp_path: Path
) -> None:
    machine.answer("docker", "image", "inspect", PUBLISHED)
    with cluster.cluster(tmp_path / "state", print) as made:
        assert made.node_image == PUBLISHED
    assert machine.calls("docker", "pull") == []


def test_where_nothing_can_be_pulled_our_node_image_is_imported_with_a_bridge_for_network(
    no_registry: FakePrograms, tmp_path: Path
) -> None:
    with cluster.cluster(tmp_path / "state", print) as made:
        (imported,) = no_registry.calls("docker", "import")
        assert imported[-2:] == [str(node_image.file_of(tmp_path / "cache")), made.node_image]
        assert 'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]' in imported
        _, config = made_from(no_registry)
        assert config["networking"]["disableDefaultCNI"] is True
        assert kubelets_patches(config) == [{"kind": "KubeletConfiguration", "failCgroupV1": False}]
        phases = yaml.safe_load(config["kubeadmConfigPatches"][-1])
        assert phases["skipPhases"] == ["preflight", "addon/coredns"]
        (mount,) = config["nodes"][0]["extraMounts"]
        plugins = json.loads(Path(mount["hostPath"]).read_text())["plugins"]
        assert [plugin["type"] for plugin in plugins] == ["bridge", "portmap"]
        given = plugins[0]["ipam"]["ranges"][0][0]["subnet"]
        assert given == config["networking"]["podSubnet"]


def test_another_user_than_root_gets_the_api_server_alone(
    machine: FakePrograms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    said: list[str] = []
    with cluster.cluster(tmp_path / "state", said.append):
        assert machine.calls("ip", "route", "replace") == []
    assert [line for line in said if "not root" in line]


def test_images_are_given_to_kind_as_an_archive(machine: FakePrograms, tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar"
    archive.write_bytes(b"x" * 1000)
    with cluster.cluster(tmp_path / "state", print) as made, archive.open("rb") as source:
        cluster.load(tmp_path / "state", source, "operator")
    (note,) = machine.notes("kind", "load", "image-archive")
    assert option(note["words"], "--name") == made.name
    assert note["given"] == 1000


def test_an_archive_that_kind_refuses_is_told_with_kinds_words(
    machine: FakePrograms, tmp_path: Path
) -> None:
    machine.answer("kind", "load", code=1, err="ERROR: no space left on device")
    with (
        cluster.cluster(tmp_path / "state", print),
        pytest.raises(RigError, match="operator could not be loaded:\nERROR: no space left"),
        (tmp_path / "bin" / "kind").open("rb") as source,
    ):
        cluster.load(tmp_path / "state", source, "operator")


def test_a_cluster_that_does_not_come_up_is_told_with_kinds_words_and_removed(
    machine: FakePrograms, tmp_path: Path
) -> None:
    machine.answer(*CREATED, code=1, err="ERROR: failed to init node with kubeadm")
    with pytest.raises(RigError, match="failed to init node with kubeadm"):
        cluster.up(tmp_path / "state", print)
    created, deleted = machine.calls(*CREATED)[0], machine.calls(*DELETED)[0]
    assert option(created, "--name") == option(deleted, "--name")
    assert not (tmp_path / "state").exists()


def test_a_cluster_that_can_not_be_deleted_now_is_told_and_deleted_by_the_next_down(
    machine: FakePrograms, tmp_path: Path
) -> None:
    cluster.up(tmp_path / "state", print)
    machine.answer(*DELETED, code=1, err="Cannot connect to the Docker daemon")
    with pytest.raises(RigError, match="Cannot connect to the Docker daemon"):
        cluster.down(tmp_path / "state")
    machine.answer(*DELETED)
    assert cluster.down(tmp_path / "state")
    assert not (tmp_path / "state").exists()
    assert cluster.down(tmp_path / "state") == []


def test_a_machine_without_docker_is_told_what_to_install(
    machine: FakePrograms, tmp_path: Path
) -> None:
    (machine.folder / "docker").unlink()
    remedy = r"apt-get install --no-install-recommends docker.io iptables` as root"
    with pytest.raises(RigError, match=remedy):
        cluster.up(tmp_path / "state", print)
    machine.add("dockerd", "iptables")
    with pytest.raises(RigError, match=r"apt-get install --no-install-recommends docker-cli`"):
        cluster.up(tmp_path / "state", print)


def test_what_is_missing_is_told_before_anything_is_built(
    machine: FakePrograms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine.folder / "docker").unlink()
    monkeypatch.setattr(obstacle, "of_this_machine", lambda: None)
    with pytest.raises(RigError, match="these packages are missing to start one"):
        cli.app(["run", "--", "true"], standalone_mode=False)
    assert machine.calls("go", ended=False) == []


def hack_kind(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*HACK_KIND, *arguments], env=os.environ | environment, stderr=subprocess.PIPE, text=True
    )


def test_a_docker_without_kind_is_told_how_to_build_it_in_two_lines(
    machine: FakePrograms, tmp_path: Path
) -> None:
    (machine.folder / "kind").unlink()
    with hack_kind("up", "--state", str(tmp_path / "state")) as up:
        assert up.stderr is not None
        assert up.stderr.read().splitlines() == [
            "error: kind is neither on PATH nor built",
            "  remedy: run `uv run --no-sync python hack/cluster build --only kind`",
        ]
    assert up.returncode == 2
    assert not (tmp_path / "state").exists()


def wait_for(look: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whoever_ends_a_run_leaves_nothing_even_in_a_hurry(
    machine: FakePrograms, tmp_path: Path, number: signal.Signals
) -> None:
    machine.answer(*CREATED, seconds=60)
    machine.answer(*DELETED, seconds=1)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    before = signal.signal(number, signal.default_int_handler)  # children inherit no `nohup`
    try:
        running = hack_kind("run", "--", "true", TMPDIR=str(scratch))
    finally:
        signal.signal(number, before)
    with running:
        try:
            wait_for(lambda: machine.calls(*CREATED, ended=False))
            assert list(scratch.iterdir())
            running.send_signal(number)
            wait_for(lambda: machine.calls(*DELETED, ended=False))
            running.send_signal(number)
            assert running.wait(60) != 0
        finally:
            running.kill()
    (created,), (deleted,) = machine.calls(*CREATED, ended=False), machine.calls(*DELETED)
    assert option(created, "--name") == option(deleted, "--name")
    assert list(scratch.iterdir()) == []


def test_a_folder_with_other_files_is_never_taken(machine: FakePrograms, tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(RigError, match="is not an empty folder"):
        cluster.up(tmp_path, print)
    assert machine.calls(*CREATED, ended=False) == []
