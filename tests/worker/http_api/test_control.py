"""The control port, and the health routes, as the operator and a kubelet see them."""

from __future__ import annotations

import pytest
from fakes.http_rig import serving
from llmtaskpool_worker.contract import DrainAnswer, ModelProblem, Phase, ThreadsAnswer, WorkerState


@pytest.fixture
def rig():
    with serving() as running:
        yield running


def test_the_state_is_compact_json_that_the_contract_reads(rig):
    answer = rig.control("GET", "/control/v1/state")
    state = WorkerState.model_validate_json(answer.content)
    assert state.phase is Phase.READY
    assert b": " not in answer.content
    assert len(answer.content) < 2048


def test_threads_are_set_again_and_again_but_never_from_an_older_generation(rig):
    body = {"generation": 5, "threads": {"compute": 7}}
    for _ in range(2):
        answer = rig.control("PUT", "/control/v1/threads", json=body)
        assert ThreadsAnswer.model_validate_json(answer.content).threads["compute"] == 7
    stale = rig.control(
        "PUT", "/control/v1/threads", json={"generation": 4, "threads": {"compute": 1}}
    )
    assert stale.status_code == 409
    assert stale.json()["error"]["param"] == "generation"
    state = rig.control("GET", "/control/v1/state").json()
    assert state["lanes"]["compute"]["threads"] == 7
    assert state["threads_generation"] == 5


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"threads": {"compute": 1}}, "generation"),
        ({"generation": -1, "threads": {}}, "generation"),
        ({"generation": 1, "threads": {"compute": 0}}, "threads.compute"),
        ({"generation": 1, "threads": {"compute": 10**9}}, "threads.compute"),
        ({"generation": 1, "threads": {"gpu": 1}}, "threads.gpu"),
        ({"generation": 1, "threads": {}, "force": True}, "force"),
    ],
)
def test_bad_threads_are_named_and_change_nothing(rig, body, field):
    answer = rig.control("PUT", "/control/v1/threads", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(field)
    assert rig.control("GET", "/control/v1/state").json()["threads_generation"] == 0


def test_a_drain_takes_a_budget_and_is_idempotent(rig):
    for _ in range(2):
        answer = rig.control("POST", "/control/v1/drain", json={"budget_seconds": 7})
        assert DrainAnswer.model_validate_json(answer.content).phase is Phase.DRAINING
    assert rig.pool.drained_with == 7
    assert rig.get("/readyz").status_code == 503
    assert rig.get("/livez").status_code == 200
    refused = rig.post("/v1/tasks", {"kind": "sum"})
    assert refused.status_code == 503
    assert refused.headers["connection"] == "close"


def test_a_drain_without_a_body_has_the_default_budget(rig):
    assert rig.control("POST", "/control/v1/drain").status_code == 200
    assert rig.pool.drained_with == 60


def test_a_bad_budget_is_named_and_nothing_drains(rig):
    answer = rig.control("POST", "/control/v1/drain", json={"budget_seconds": -1})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "budget_seconds"
    assert rig.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("phase", "status"),
    [
        (Phase.STARTING, 503),
        (Phase.READY, 200),
        (Phase.DRAINING, 503),
        (Phase.DRAINED, 503),
        (Phase.FAILED, 503),
    ],
)
def test_only_the_phase_ready_is_ready(rig, phase, status):
    rig.pool.phase = phase
    answer = rig.get("/readyz")
    assert answer.status_code == status
    assert answer.json() == {"phase": phase.value}


def test_a_pool_that_stands_still_is_neither_alive_nor_ready(rig):
    rig.pool.is_alive = False
    assert rig.get("/livez").status_code == 503
    assert rig.get("/readyz").status_code == 503


def test_an_unready_worker_names_its_models_problems_and_their_sentences_are_for_the_operator(rig):
    rig.pool.phase = Phase.STARTING
    why = "source '/secret/place': model.safetensors is cut off"
    rig.pool.model_problems = {"m": ModelProblem(code="retrying", message=why)}
    answer = rig.get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"phase": "starting", "models": {"m": "retrying"}}


def test_the_data_port_has_no_control_routes_and_the_other_way_round(rig):
    assert rig.get("/control/v1/state").status_code == 404
    assert rig.control("GET", "/v1/models").status_code == 404


def test_a_wrong_method_is_405_and_says_the_right_one(rig):
    answer = rig.get("/v1/chat/completions")
    assert answer.status_code == 405
    assert "POST" in answer.headers["allow"]
    assert answer.json()["error"]["code"] == "method_not_allowed"
