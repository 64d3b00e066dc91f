"""Which cluster tests talk to, what excuses them from kind, what kind's node is patched with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fakes.fake_programs import FakePrograms
from kindrig import choice, cli, cluster, node_image, obstacle, runtime
from kindrig.choice import Where
from rig.errors import RigError

ALL = {"LLMTASKPOOL_TEST_KUBECONFIG": "", "KUBEBUILDER_ASSETS": "/assets"}
pytestmark = pytest.mark.usefixtures("handlers_stay")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePrograms:
    """Nothing else is on PATH, and nothing is built."""
    made = FakePrograms(tmp_path / "bin")
    made.add()
    monkeypatch.setenv("PATH", str(made.folder))
    monkeypatch.setenv("LLMTASKPOOL_RIG_CACHE", str(tmp_path / "cache"))
    return made


def test_a_named_cluster_goes_first_then_kind_then_assets_then_the_rig(tmp_path: Path) -> None:
    named = tmp_path / "kubeconfig"
    named.touch()

    def where(environment: dict[str, str], no_kind: str | None, *, server_only: bool) -> Where:
        return choice.choose(environment, lambda: no_kind, server_only=server_only).where

    with_all = ALL | {"LLMTASKPOOL_TEST_KUBECONFIG": str(named)}
    assert where(with_all, None, server_only=True) is Where.GIVEN
    assert where(ALL, None, server_only=True) is Where.KIND
    assert where(ALL, "no Docker runs here", server_only=True) is Where.ASSETS
    assert where(ALL, "no Docker runs here", server_only=False) is Where.RIG
    assert where({}, "no Docker runs here", server_only=True) is Where.RIG


def test_the_reason_is_told_with_the_choice() -> None:
    found = choice.choose({}, lambda: "docker is not on PATH")
    assert str(found) == "the rig: not kind, as docker is not on PATH"


def test_a_named_cluster_that_is_not_there_is_an_error_and_not_another_cluster() -> None:
    with pytest.raises(RigError, match="LLMTASKPOOL_TEST_KUBECONFIG=/nowhere: no such file"):
        choice.choose({"LLMTASKPOOL_TEST_KUBECONFIG": "/nowhere"}, lambda: None)


def test_kind_is_chosen_when_docker_answers_and_kind_is_there(programs: FakePrograms) -> None:
    assert cluster.why_not() == "docker is not on PATH"
    programs.add("docker")
    programs.answer("docker", "info", code=1)
    assert cluster.why_not() == "no Docker runs here"
    programs.answer("docker", "info")
    assert "hack/cluster build --only kind" in str(cluster.why_not())
    programs.add("kind")
    assert cluster.why_not() is None


def test_the_choice_is_printed_above_tests_that_use_a_cluster_and_above_no_others(
    tmp_path: Path,
) -> None:
    root = Path(__file__).parents[3]
    environment = os.environ | {"LLMTASKPOOL_TEST_KUBECONFIG": str(tmp_path / "none")}
    asked = ["tests/e2e/test_install.py", "tests/unit/text/test_tokens.py"]
    shown = [
        subprocess.run(
            [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", path],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for path in asked
    ]
    assert "cluster of tests/e2e, `node`: LLMTASKPOOL_TEST_KUBECONFIG=" in shown[0]
    assert "cluster of" not in shown[1]


def test_a_machine_that_keeps_capabilities_back_is_an_obstacle() -> None:
    everything, docker_default = "000001ffffffffff", "00000000a80425fb"
    assert obstacle.lacking_capabilities(f"Name:\tx\nCapEff:\t{everything}\n") == []
    assert obstacle.lacking_capabilities(f"CapEff:\t{docker_default}\n") == [
        "CAP_SYS_ADMIN",
        "CAP_NET_ADMIN",
    ]


@pytest.fixture
def root_with_all(programs: FakePrograms, monkeypatch: pytest.MonkeyPatch) -> FakePrograms:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(obstacle, "lacking_capabilities", lambda _: [])
    monkeypatch.setattr("rig.cgroups.create", lambda _: "/x")
    monkeypatch.setattr("rig.cgroups.remove", lambda _: 0)
    return programs


def test_what_can_be_installed_is_no_obstacle(root_with_all: FakePrograms) -> None:
    assert obstacle.of_this_machine() is None


def test_a_kernel_without_address_translation_is_an_obstacle(root_with_all: FakePrograms) -> None:
    root_with_all.add("unshare", "iptables")
    assert obstacle.of_this_machine() is None
    root_with_all.answer("unshare", "--net", "iptables", code=3, err="can't initialize table `nat'")
    found = obstacle.of_this_machine()
    assert found is not None
    assert "can't initialize table `nat'" in found


def test_a_docker_that_runs_has_overcome_every_obstacle(root_with_all: FakePrograms) -> None:
    root_with_all.add("docker", "unshare", "iptables")
    root_with_all.answer("unshare", "--net", "iptables", code=3)
    assert obstacle.of_this_machine() is None


def test_tests_for_kind_run_on_the_rig_only_when_asked_and_say_so_before_and_after(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(obstacle, "of_this_machine", lambda: "this machine keeps X back")
    command = ["--", sys.executable, "-c", "import os, sys; os.write(2, b'tests\\n'); sys.exit(3)"]
    with pytest.raises(SystemExit) as ended:
        cli.app(["run", "--or-rig", *command])
    assert ended.value.code == 3
    said = "NOT ON KIND, on the rig instead: this machine keeps X back"
    assert capfd.readouterr().err.splitlines() == [said, "tests", said]
    with pytest.raises(RigError, match="no Docker can run here: this machine keeps X back"):
        cli.app(["run", *command], standalone_mode=False)


def test_the_node_lowers_no_scores_and_its_sandbox_is_an_image_that_is_there() -> None:
    before = 'restrict_oom_score_adj = false\nsandbox_image = "registry.k8s.io/pause:3.10"\n'
    after = node_image.containerd_config(before, "registry.k8s.io/pause:3.11")
    assert after == 'restrict_oom_score_adj = true\nsandbox_image = "registry.k8s.io/pause:3.11"\n'


def test_another_kind_whose_configuration_differs_is_told_with_the_file_to_adapt() -> None:
    with pytest.raises(RigError, match=r"has no `restrict_oom_score_adj = false`\n.*node_image.py"):
        node_image.containerd_config("version = 3\n", "pause")


def test_kubelet_is_told_to_start_on_cgroup_v1() -> None:
    layout = yaml.safe_load(cluster.LAYOUT.read_text())
    patches = [yaml.safe_load(patch) for patch in layout["kubeadmConfigPatches"]]
    assert {"kind": "KubeletConfiguration", "failCgroupV1": False} in patches


def test_runc_is_asked_for_no_capability_that_the_machine_keeps_back(
    programs: FakePrograms, tmp_path: Path
) -> None:
    programs.add("setpriv", "runc")
    programs.answer("setpriv", "--list-caps", out="chown\nsys_admin\nsys_resource\n")
    programs.answer("setpriv", "--dump", out="Capability bounding set: chown,sys_admin\n")
    assert runtime.withheld() == ["CAP_SYS_RESOURCE"]
    runtime.write(tmp_path / "wrapped", runtime.withheld())
    everything = {"bounding": ["CAP_CHOWN", "CAP_SYS_RESOURCE"], "ambient": []}
    (tmp_path / "config.json").write_text(json.dumps({"process": {"capabilities": everything}}))
    (tmp_path / "process.json").write_text(json.dumps({"capabilities": everything, "cwd": "/"}))
    create = ["--root", "/run/x", "create", "--bundle", str(tmp_path), "one"]
    execute = ["exec", "--process", str(tmp_path / "process.json"), "one"]
    for arguments in (create, execute):
        subprocess.run([tmp_path / "wrapped", *arguments], check=True)
    fewer = {"bounding": ["CAP_CHOWN"], "ambient": []}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {"process": {"capabilities": fewer}}
    process = json.loads((tmp_path / "process.json").read_text())
    assert process == {"capabilities": fewer, "cwd": "/"}
    assert programs.calls("runc") == [["runc", *create], ["runc", *execute]]
