"""The operator's image, built as CI and people without Docker build it, and looked into."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MEGABYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Layers:
    """An image as an OCI archive: its configuration, and its layers from the base upwards."""

    config: dict[str, Any]
    paths: list[Path]

    def members(self) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
        for path in self.paths:
            with tarfile.open(path) as layer:
                for member in layer:
                    yield layer, member


def hack_images(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "hack" / "images"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def operator_image(tmp_path_factory: pytest.TempPathFactory) -> Layers:
    folder = tmp_path_factory.mktemp("image")
    done = hack_images("archive", "operator", str(folder / "image.tar"))
    assert done.returncode == 0, done.stderr
    with tarfile.open(folder / "image.tar") as archive:
        archive.extractall(folder, filter="data")
    blobs = folder / "blobs"

    def blob(digest: str) -> Path:
        return blobs / digest.replace(":", "/")

    entry = json.loads((folder / "index.json").read_text())["manifests"][0]
    assert entry["annotations"]["io.containerd.image.name"] == "localhost/llmtaskpool-operator:dev"
    manifest = json.loads(blob(entry["digest"]).read_text())
    config = json.loads(blob(manifest["config"]["digest"]).read_text())
    return Layers(config, [blob(layer["digest"]) for layer in manifest["layers"]])


@pytest.mark.timeout(600)
def test_the_operators_image_is_at_most_150_megabytes_more_than_its_base(
    operator_image: Layers,
) -> None:
    base, *ours = [path.stat().st_size for path in operator_image.paths]
    assert base < 200 * MEGABYTES
    assert sum(ours) <= 150 * MEGABYTES


@pytest.mark.timeout(600)
def test_it_runs_as_nobody_starts_without_a_shell_and_says_what_it_is(
    operator_image: Layers,
) -> None:
    config = operator_image.config["config"]
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["/opt/llmtaskpool/bin/llmtaskpool"]
    assert config["Cmd"] == ["operate"]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"] == "llmtaskpool-operator"
    assert labels["org.opencontainers.image.version"] == version[1]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


@pytest.mark.timeout(600)
def test_nothing_of_the_build_is_left_in_it(operator_image: Layers) -> None:
    environment = operator_image.config["config"]["Env"]
    assert not [one for one in environment if re.search("CERT|INDEX|PROXY|TOKEN|UV_", one, re.I)]
    names = {member.name.removeprefix("./") for _, member in operator_image.members()}
    wheel = "opt/llmtaskpool/lib/python3.11/site-packages/llmtaskpool_operator/__main__.py"
    assert wheel in names, "the wheel is installed"
    unwanted = re.compile(
        r"(^|/)(\.git|\.env|\.netrc|id_rsa|id_ed25519|\.pypirc|pip\.conf|uv\.lock|torch|pip|uv)(/|$)"
        r"|^(src|dist|tools|root/.+|tmp/.+|var/cache/apt/.+|var/lib/apt/lists/.+)"
    )
    kept = {"usr/bin", "tmp", "root"}
    found = sorted(name for name in names - kept if unwanted.search(name) and "/.wh." not in name)
    # What a distribution puts into every home is no leftover.
    assert [name for name in found if name not in {"root/.bashrc", "root/.profile"}] == []


@pytest.mark.timeout(600)
def test_no_file_in_it_can_be_written_by_all_gives_rights_or_holds_a_private_key(
    operator_image: Layers,
) -> None:
    looked = 0
    for layer, member in operator_image.members():
        mode = member.mode
        if member.isdir() and mode & stat.S_IWOTH:
            assert mode & stat.S_ISVTX, f"{member.name} can be written by all"
        if member.isfile():
            looked += 1
            assert not mode & stat.S_IWOTH, f"{member.name} can be written by all"
            assert not mode & (stat.S_ISUID | stat.S_ISGID), f"{member.name} gives rights"
            if member.size < 100_000:
                source = layer.extractfile(member)
                assert source is not None
                text = source.read()
                assert not re.search(rb"^-----BEGIN [A-Z ]*PRIVATE KEY", text, re.MULTILINE), (
                    member.name
                )
    assert looked > 5_000


@pytest.mark.timeout(600)
def test_its_command_answers_in_its_own_root_with_nothing_to_write_to(
    operator_image: Layers, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for path in operator_image.paths:
        subprocess.run(["tar", "-xf", str(path), "-C", str(root)], check=True)
    # Its own mount namespace: the root is mounted read-only, and the user is the image's.
    entry = operator_image.config["config"]["Entrypoint"][0]
    script = (
        'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && '
        'exec chroot --userspec=65532:65532 "$1" "$2" version --output json'
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(root), entry],
        capture_output=True,
        text=True,
        check=False,
        env={"HOME": "/", "PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["torch"] is None
    assert found["kubernetes"] is not None


@pytest.mark.timeout(600)
def test_building_the_same_again_does_nothing_and_gives_the_same(operator_image: Layers) -> None:
    first, second = (hack_images("build", "operator", "--output", "json") for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "building" not in second.stderr
    assert json.loads(first.stdout)[0]["digest"] == json.loads(second.stdout)[0]["digest"]


def test_what_is_missing_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "hack" / "images"), "base"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": str(tmp_path), "LLMTASKPOOL_IMAGES_CACHE": str(tmp_path), "HOME": "/"},
    )
    assert done.returncode == 2
    assert "apt-get install" in done.stderr
    assert "buildah" in done.stderr
    assert "Traceback" not in done.stderr
