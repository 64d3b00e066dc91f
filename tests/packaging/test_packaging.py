"""What people get when they install llmtaskpool, one extra at a time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Install = Callable[[str], Path]
PACKAGES = ("llmtaskpool", "llmtaskpool_operator", "llmtaskpool_worker")
SCRIPTS = {"llmtaskpool", "llmtaskpool-worker"}
_LIST_FILES = (
    "import json; from importlib.metadata import files; "
    "print(json.dumps([str(file) for file in files('llmtaskpool')]))"
)


@pytest.fixture(scope="module")
def uv() -> str:
    found = shutil.which("uv") or shutil.which("uv", path=str(ROOT / ".tools" / "bin"))
    assert found, "uv is neither on PATH nor in .tools/bin: run `make install` first"
    return found


@pytest.fixture(scope="module")
def install(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """A clean environment with one extra, from the lock file, the wheel instead of the checkout."""

    made: dict[str, Path] = {}

    def make(extra: str) -> Path:
        if extra in made:
            return made[extra]
        folder = tmp_path_factory.mktemp(f"only-{extra}") / "venv"
        subprocess.run(
            [uv, "sync", "--quiet", "--locked", "--no-default-groups", "--no-editable"]
            + ["--extra", extra, "--python", sys.executable],
            cwd=ROOT,
            env=os.environ | {"UV_PROJECT_ENVIRONMENT": str(folder)},
            check=True,
        )
        made[extra] = folder / "bin"
        return made[extra]

    return make


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd, check=False
    )


def missing(python: Path, module: str) -> bool:
    return run(python, "-c", f"import {module}", cwd=Path("/")).returncode != 0


@pytest.mark.timeout(600)
def test_the_operator_installs_without_torch_and_its_command_answers(install: Install) -> None:
    bin_ = install("operator")
    python = bin_ / "python"
    assert missing(python, "torch")
    assert missing(python, "transformers")
    assert not missing(python, "kopf")
    assert not missing(python, "kubernetes.aio")
    version = run(bin_ / "llmtaskpool", "version", "--output", "json", cwd=Path("/"))
    assert version.returncode == 0, version.stderr
    assert json.loads(version.stdout)["llmtaskpool"] == project()["version"]
    crd = run(bin_ / "llmtaskpool", "crd", cwd=Path("/"))
    assert "kind: CustomResourceDefinition" in crd.stdout


@pytest.mark.timeout(600)
def test_the_worker_installs_without_kopf_and_its_command_answers(install: Install) -> None:
    bin_ = install("worker")
    python = bin_ / "python"
    assert missing(python, "kopf")
    assert missing(python, "kubernetes")
    assert not missing(python, "torch")
    served = run(bin_ / "llmtaskpool-worker", "serve", "--help", cwd=Path("/"))
    assert served.returncode == 0, served.stderr
    assert "--model" in served.stdout


@pytest.mark.timeout(600)
def test_the_wheel_carries_the_three_packages_and_nothing_else(install: Install) -> None:
    listed = run(install("operator") / "python", "-c", _LIST_FILES, cwd=Path("/"))
    files = [Path(name) for name in json.loads(listed.stdout)]
    top = {file.parts[0] for file in files if ".dist-info" not in file.parts[0]}
    assert top == {"..", *PACKAGES}
    assert {file.name for file in files if file.parts[0] == ".."} == SCRIPTS
    others = {str(f) for f in files if f.parts[0] in PACKAGES and f.suffix not in (".py", ".pyc")}
    scripts = {file for file in others if file.endswith(".lua")}  # what Redis runs of the queue
    assert all(file.startswith("llmtaskpool_worker/brokers/redis/lua/") for file in scripts)
    digits = {file for file in others if file.startswith("llmtaskpool_operator/local/digits/")}
    assert {Path(file).suffix for file in digits} == {".json", ".safetensors", ".png"}, "the demo's"
    assert others - scripts - digits == {f"{package}/py.typed" for package in PACKAGES}


def test_the_folders_named_operator_and_worker_shadow_nothing() -> None:
    # An __init__.py there would replace the standard library's `operator` for every
    # interpreter that is started in the repository root.
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not (ROOT / "worker" / "__init__.py").exists()
    found = run(
        sys.executable, "-c", "import operator; print(operator.itemgetter(1)('ab'))", cwd=ROOT
    )
    assert found.stdout == "b\n"


def test_the_lock_file_is_current(uv: str) -> None:
    checked = run(uv, "lock", "--check", cwd=ROOT)
    assert checked.returncode == 0, checked.stderr


def test_every_dependency_says_why_it_is_there() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    start, end = text.index("dependencies = ["), text.index("[dependency-groups]")
    entries = [line for line in text[start:end].splitlines() if line.strip().startswith('"')]
    assert len(entries) > 10
    assert [line for line in entries if "#" not in line] == []


def project() -> dict[str, str]:
    loaded: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return loaded
