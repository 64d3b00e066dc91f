"""How GitOps tools judge a pool: Argo CD by our Lua, Flux by kstatus' rules.

`recorded/` holds pools as a real API server showed them (docs/rig.md's node, 25 Nov 2026): just
made, ready, growing from 1 to 3, and with a model that does not exist.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from chart.charts import ROOT
from fakes.read_yaml import document
from lupa import LuaRuntime

HEALTH = ROOT / "deploy" / "argocd" / "health.lua"
RECORDED = Path(__file__).parent / "recorded"


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text())
    return found


def argo(pool: dict[str, Any]) -> tuple[str, str]:
    """Status and message, by the Lua that Argo CD runs: with `obj`, without os, io and require."""
    lua = LuaRuntime(unpack_returned_tuples=True, register_eval=False, register_builtins=False)
    for name in ("os", "io", "require", "package", "debug", "load", "dofile", "loadfile"):
        lua.globals()[name] = None
    lua.globals().obj = lua.table_from(pool, recursive=True)
    answer = lua.execute(HEALTH.read_text())
    return answer.status, answer.message


def kstatus(pool: dict[str, Any]) -> str:
    """The rules of kstatus for a kind it does not know, in their order."""
    if pool["metadata"].get("deletionTimestamp"):
        return "Terminating"
    status = pool.get("status", {})
    seen = status.get("observedGeneration")
    if seen is not None and seen != pool["metadata"]["generation"]:
        return "InProgress"
    conditions = {one["type"]: one["status"] for one in status.get("conditions", ())}
    if conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    if conditions.get("Ready") in {"False", "Unknown"}:
        return "InProgress"
    return "Current"


@pytest.mark.parametrize(
    ("name", "health", "by_kstatus", "message"),
    [
        ("starting", "Progressing", "InProgress", "0 of 1 replicas are ready"),
        ("ready", "Healthy", "Current", "1 of 1 replicas are ready"),
        ("scaling", "Progressing", "InProgress", "1 of 3 replicas are ready"),
        ("model-failed", "Degraded", "Failed", "models could not be loaded"),
    ],
)
def test_a_recorded_pool_is_judged_as_a_person_would(
    name: str, health: str, by_kstatus: str, message: str
) -> None:
    pool = recorded(name)
    assert argo(pool)[0] == health
    assert message in argo(pool)[1]
    assert kstatus(pool) == by_kstatus


def test_a_pool_that_nobody_answered_yet_is_progressing() -> None:
    pool = recorded("ready")
    del pool["status"]
    assert argo(pool) == ("Progressing", "the operator has not answered yet")


def test_a_pool_with_the_status_that_the_server_itself_gives_is_progressing() -> None:
    crd = document((ROOT / "crds" / "llmtaskpool.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    pool = recorded("ready") | {"status": schema["default"]}
    assert argo(pool)[0] == "Progressing"
    assert kstatus(pool) == "InProgress"


def test_a_pool_whose_change_was_not_seen_yet_is_not_healthy() -> None:
    pool = recorded("ready")
    pool["metadata"]["generation"] += 1
    assert argo(pool)[0] == "Progressing"
    assert kstatus(pool) == "InProgress"


def test_a_pool_that_is_being_deleted_is_progressing() -> None:
    pool = recorded("ready")
    pool["metadata"]["deletionTimestamp"] = "2026-11-25T22:00:00Z"
    assert argo(pool) == ("Progressing", "being deleted")


def test_a_pool_that_serves_and_is_degraded_is_degraded() -> None:
    pool = deepcopy(recorded("ready"))
    for one in pool["status"]["conditions"]:
        if one["type"] == "Degraded":
            one |= {"status": "True", "message": "one of two models failed"}
    assert argo(pool) == ("Degraded", "one of two models failed")


def test_what_was_recorded_is_what_the_model_knows() -> None:
    crd = document((ROOT / "crds" / "llmtaskpool.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    for path in RECORDED.glob("*.json"):
        status = json.loads(path.read_text())["status"]
        assert set(status) <= set(schema["properties"]), path.name
        known = set(schema["properties"]["conditions"]["items"]["properties"])
        assert all(set(one) <= known for one in status["conditions"]), path.name
