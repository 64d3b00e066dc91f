"""Open Inference Protocol v2: tensors in JSON and as bytes, and what is refused of them."""

from __future__ import annotations

import json
from array import array

import pytest
from fakes.fake_pool import FakePool
from fakes.http_rig import KEY, TABLE, serving

X = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3.5, 4]}
INFER = "/v2/models/scorer/infer"


@pytest.fixture(scope="module")
def rig():
    with serving(FakePool) as running:
        yield running


def in_bytes(rig, told: dict, data: bytes, *, length: int | None = None, path: str = INFER):
    head = json.dumps(told).encode()
    headers = {"inference-header-content-length": str(len(head) if length is None else length)}
    with rig.client() as client:
        return client.post(path, content=head + data, headers=headers)


def test_a_server_a_model_and_their_health_are_described(rig):
    assert rig.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert rig.get("/v2/health/live").json() == {"live": True}
    assert rig.get("/v2/health/ready").json() == {"ready": True}
    assert rig.get("/v2/models/scorer/ready").json() == {"name": "scorer", "ready": True}
    for path in ("/v2/models/scorer", "/v2/models/scorer/versions/1"):
        assert rig.get(path).json() == {"name": "scorer", "versions": ["1"], **TABLE}


@pytest.mark.parametrize("data", [[1, 2, 3.5, 4], [[1, 2], [3.5, 4]]])
@pytest.mark.parametrize("path", [INFER, "/v2/models/scorer/versions/1/infer"])
def test_tensors_in_json_are_answered_in_json(rig, path, data):
    answer = rig.post(path, {"id": "mine", "inputs": [X | {"data": data}]})
    assert answer.json() == {
        "model_name": "scorer",
        "model_version": "1",
        "id": "mine",
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [2, 1], "data": [1.0, 3.5]}],
    }


@pytest.mark.parametrize(
    "wanted",
    [
        {"parameters": {"binary_data_output": True}},
        {"outputs": [{"name": "output", "parameters": {"binary_data": True}}]},
    ],
)
def test_bytes_go_in_and_come_out_behind_the_json(rig, wanted):
    data = array("f", [1, 2, 3.5, 4]).tobytes()
    given = {"name": "x", "shape": [2, 2], "datatype": "FP32"}
    given["parameters"] = {"binary_data_size": len(data)}
    answer = in_bytes(rig, {"inputs": [given], **wanted}, data)
    assert answer.status_code == 200, answer.text
    length = int(answer.headers["inference-header-content-length"])
    (output,) = json.loads(answer.content[:length])["outputs"]
    assert output == {
        "name": "output",
        "datatype": "FP32",
        "shape": [2, 1],
        "parameters": {"binary_data_size": 8},
    }
    assert list(array("f", answer.content[length:])) == [1.0, 3.5]


def test_it_is_a_kind_of_task_and_its_weight_counts(rig):
    body = {"kind": "infer", "model": "scorer", "arguments": {"inputs": [X]}}
    task = rig.post("/v1/tasks", body).json()
    task = rig.get(f"/v1/tasks/{task['id']}?wait=60").json()
    assert task["result"]["outputs"][0]["data"] == [1.0, 3.5]
    with rig.client() as client:
        client.post(INFER, json={"inputs": [X]}, headers={"x-llmtaskpool-weight": "3"})
    assert rig.pool.requests[-1].weight == 3.0


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([], "inputs"),
        ([X, X], "once"),
        ([X | {"name": "y"}], "inputs[0].name"),
        ([X | {"shape": [4]}], "inputs[0].shape"),
        ([X | {"shape": [0, 2], "data": []}], "inputs[0].shape"),
        ([X | {"shape": [2, 3]}], "inputs[0].shape"),
        ([X | {"shape": [2**31, 2]}], "inputs[0].shape"),
        ([X | {"shape": [2**30, 2]}], "inputs[0].data"),
        ([X | {"data": [1, 2, 3]}], "inputs[0].data"),
        ([X | {"data": [1, 2, 3, "4"]}], "inputs[0].data"),
        ([X | {"data": [1, 2, 3, True]}], "inputs[0].data"),
        ([X | {"data": [[1, 2], 3, 4]}], "inputs[0].data"),
        ([X | {"data": [1, 2, 3, 10**400]}], "inputs[0].data"),
        ([X | {"data": None}], "inputs[0].data"),
        ([X | {"datatype": "BYTES"}], "inputs[0].datatype"),
        ([X | {"datatype": "INT64"}], "inputs[0].data"),
        ([X | {"parameters": {"binary_data_size": 4}}], "binary_data_size"),
        ([X] * 65, "inputs"),
        ([{str(n): n for n in range(300)}], "inputs[0]"),
    ],
)
def test_a_bad_tensor_is_named_in_the_shape_of_the_protocol(rig, inputs, said):
    before = len(rig.pool.requests)
    answer = rig.post(INFER, {"inputs": inputs})
    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"error"}
    assert said in answer.json()["error"]
    assert len(answer.json()["error"]) < 600
    assert len(rig.pool.requests) == before


@pytest.mark.parametrize(
    ("size", "data", "length", "said"),
    [
        (16, b"\0" * 15, None, "binary_data_size"),
        (8, b"\0" * 16, None, "binary_data_size"),
        (16, b"\0" * 17, None, "leave 1 bytes"),
        (16, b"\0" * 16, 10**9, "inference-header-content-length"),
        (16, b"\0" * 16, 5, "JSON"),
    ],
)
def test_bytes_that_do_not_fit_are_refused(rig, size, data, length, said):
    given = {"name": "x", "shape": [2, 2], "datatype": "FP32"}
    given["parameters"] = {"binary_data_size": size}
    answer = in_bytes(rig, {"inputs": [given]}, data, length=length)
    assert answer.status_code == 400
    assert said in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/nobody/infer", 404),
        ("/v2/models/scorer/versions/2/infer", 404),
        ("/v2/models/echo/infer", 400),
    ],
)
def test_models_that_can_not_do_it_are_told_in_the_shape_of_the_protocol(rig, path, status):
    answer = rig.post(path, {"inputs": [X]})
    assert answer.status_code == status
    assert isinstance(answer.json()["error"], str)


def test_a_key_is_asked_for():
    with serving(FakePool, api_keys=(KEY,)) as rig:
        assert rig.post(INFER, {"inputs": [X]}).status_code == 401
        assert rig.get("/v2/models/scorer").status_code == 401
