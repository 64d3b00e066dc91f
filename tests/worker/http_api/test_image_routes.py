"""Pictures over HTTP: classified and searched for objects, and refused before they are unpacked."""

from __future__ import annotations

from base64 import b64encode

import pytest
from fakes.fake_pool import FakePool
from fakes.http_rig import request_bytes, serving
from fakes.pictures import bomb, picture

GIVEN = b64encode(picture()).decode()


@pytest.fixture(scope="module")
def rig():
    with serving(FakePool) as running:
        yield running


@pytest.mark.parametrize("given", [GIVEN, f"data:image/png;base64,{GIVEN}"])
def test_a_picture_is_classified_as_a_text_is(rig, given):
    answer = rig.post("/v1/classify", {"model": "photos", "image": given, "top_k": 1}).json()
    assert answer["data"] == [
        {
            "index": 0,
            "label": "angry",
            "probs": [0.25, 0.75],
            "num_classes": 2,
            "top": [{"label": "angry", "score": 0.75}],
        }
    ]
    assert rig.pool.requests[-1].payload.images == (picture(),)


def test_objects_of_each_picture_are_told(rig):
    body = {"model": "boxes", "image": [GIVEN, GIVEN], "threshold": 0.25}
    answer = rig.post("/v1/detect", body).json()
    found = [{"label": "angry", "score": 0.75, "box": {}}]
    assert answer["data"] == [{"index": 0, "objects": found}, {"index": 1, "objects": found}]
    assert rig.pool.requests[-1].payload.options == {"threshold": 0.25}


def test_detect_is_a_kind_of_task(rig):
    body = {"kind": "detect", "model": "boxes", "arguments": {"image": GIVEN}}
    task = rig.post("/v1/tasks", body).json()
    task = rig.get(f"/v1/tasks/{task['id']}?wait=60").json()
    assert task["result"]["data"][0]["objects"][0]["label"] == "angry"


@pytest.mark.parametrize(
    ("path", "fields", "field"),
    [
        ("classify", {"image": None}, "image"),
        ("classify", {"image": "*" * 50}, "image"),
        ("classify", {"image": b64encode(b"no picture").decode()}, "image"),
        ("classify", {"image": b64encode(bomb()).decode()}, "image"),
        ("classify", {"image": [GIVEN, b64encode(bomb(9_000, 9_000)).decode()]}, "image[1]"),
        ("classify", {"image": [GIVEN] * 65}, "image"),
        ("classify", {"image": []}, "image"),
        ("classify", {"image": [5]}, "image[0]"),
        ("classify", {"input": "a text"}, "image"),
        ("classify", {"model": "moods"}, "input"),
        ("detect", {"model": "photos"}, "model"),
        ("detect", {"model": "boxes", "threshold": 2}, "threshold"),
        ("detect", {"model": "boxes", "image": b64encode(bomb()).decode()}, "image"),
    ],
)
def test_a_bad_picture_is_named_and_refused(rig, path, fields, field):
    before = len(rig.pool.requests)
    body = {"model": "photos", "image": GIVEN} | fields
    body = {name: value for name, value in body.items() if value is not None}
    status, _, answer = rig.raw(request_bytes(f"/v1/{path}", body))
    error = answer["error"]
    assert status == 400, error
    assert error["param"] == field
    assert field.split("[")[0] in error["message"]
    assert len(error["message"]) < 600
    assert GIVEN[:40] not in error["message"]
    assert len(rig.pool.requests) == before
