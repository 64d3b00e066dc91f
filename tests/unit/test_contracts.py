"""Each import contract of pyproject.toml is broken once, and lint-imports says which one it is."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
OPERATOR = "operator/llmtaskpool_operator"
WORKER = "worker/llmtaskpool_worker"
BREAKS = {
    "operator-rooms": (f"{OPERATOR}/api/names.py", "import llmtaskpool_operator.autoscaler.law"),
    "worker-rooms": (f"{WORKER}/brokers/memory.py", "import llmtaskpool_worker.http_api.errors"),
    "no-circles": (
        f"{OPERATOR}/autoscaler/law.py",
        "import llmtaskpool_operator.autoscaler.reasons",
    ),
    "worker-alone": (f"{WORKER}/gpu.py", "import llmtaskpool_operator.api.names"),
    "promised": (f"{OPERATOR}/workers/client.py", "import llmtaskpool_worker.execution.pool"),
    "pure-rooms": (f"{OPERATOR}/autoscaler/plan.py", "import time"),
    "pure-files": (f"{OPERATOR}/cluster/differences.py", "import random"),
    "torch": (f"{WORKER}/text/generated.py", "import torch"),
    "no-torch-here": (f"{WORKER}/execution/calls.py", "import llmtaskpool_worker.engines.sampling"),
    "http": (f"{WORKER}/execution/placement.py", "import starlette"),
    "no-numpy-here": (
        f"{OPERATOR}/cluster/controller.py",
        "import llmtaskpool_operator.replay.replay",
    ),
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
    assert statement.split(".")[-1].removeprefix("import ") in checked.stdout


def contract(name: str) -> dict[str, Any]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (found,) = (one for one in project["tool"]["importlinter"]["contracts"] if one["id"] == name)
    return found


def test_a_new_room_of_the_worker_is_closed_to_the_operator_until_it_is_opened() -> None:
    rooms = {file.parent.name for file in (ROOT / WORKER).glob("*/*.py")}
    rooms |= {file.stem for file in (ROOT / WORKER).glob("*.py")} - {"__init__"}
    closed = {name.split(".")[1] for name in contract("promised")["forbidden_modules"]}
    assert closed | {"contract", "scheduling"} == rooms
    without_torch = {name.split(".")[1] for name in contract("no-torch-here")["source_modules"]}
    assert without_torch | {"engines", "gpu", "contract", "disclosure"} == rooms


def test_importing_a_package_imports_none_of_its_rooms() -> None:
    """Whoever imports `llmtaskpool_worker.contract` runs the package's own file before it."""
    for package in (OPERATOR, WORKER):
        tree = ast.parse((ROOT / package / "__init__.py").read_text())
        assert [type(one).__name__ for one in tree.body] == ["Expr"], "a docstring and no more"


def test_every_contract_has_a_break_of_its_own() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    assert [contract["id"] for contract in contracts] == list(BREAKS)
