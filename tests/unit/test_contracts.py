"""Each import contract of pyproject.toml is broken once, and lint-imports says which one it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPERATOR = "operator/llmtaskpool_operator"
WORKER = "worker/llmtaskpool_worker"
BREAKS = {
    "operator-rooms": (f"{OPERATOR}/api/names.py", "import llmtaskpool_operator.autoscaler.law"),
    "worker-rooms": (f"{WORKER}/brokers/memory.py", "import llmtaskpool_worker.http_api.errors"),
    "worker-alone": (f"{WORKER}/gpu.py", "import llmtaskpool_operator.api.names"),
    "promised": (f"{OPERATOR}/workers/client.py", "import llmtaskpool_worker.execution.pool"),
    "pure-rooms": (f"{OPERATOR}/autoscaler/plan.py", "import time"),
    "pure-files": (f"{OPERATOR}/cluster/differences.py", "import random"),
    "torch": (f"{WORKER}/text/generated.py", "import torch"),
    "no-torch-here": (f"{WORKER}/execution/calls.py", "import llmtaskpool_worker.engines.sampling"),
    "nvml": (f"{WORKER}/execution/capacity.py", "import pynvml"),
    "kopf": (f"{OPERATOR}/cluster/controller.py", "import kopf"),
    "clients": (f"{OPERATOR}/cluster/election.py", "import kubernetes"),
}


def lint(tree: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """lint-imports over the two packages under ``tree``."""
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--cache-dir", tree / "cache", *options],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": f"{tree}/operator:{tree}/worker"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the contracts are about."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("operator", "worker"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def test_every_contract_holds(tree: Path) -> None:
    checked = lint(tree)
    assert checked.returncode == 0, checked.stdout
    assert f"{len(BREAKS)} kept, 0 broken" in checked.stdout


@pytest.mark.parametrize("contract", BREAKS)
def test_a_contract_that_is_broken_fails(contract: str, tree: Path) -> None:
    name, statement = BREAKS[contract]
    file = tree / name
    whole = file.read_text()
    file.write_text(f"{whole}\n\n{statement}\n")
    try:
        checked = lint(tree, "--contract", contract)
    finally:
        file.write_text(whole)
    assert checked.returncode == 1, checked.stdout
    assert "0 kept, 1 broken" in checked.stdout
    assert statement.removeprefix("import ") in checked.stdout


def test_every_contract_has_a_break_of_its_own() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    assert [contract["id"] for contract in contracts] == list(BREAKS)
