"""/openapi.json, and bodies drawn from it: whatever comes, an answer in our shape."""

from __future__ import annotations

import json
from base64 import b64encode

import httpx
import pytest
import schemathesis
from fakes.fake_pool import FakePool
from fakes.http_rig import KEY, request_bytes, serving
from fakes.pictures import picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llmtaskpool_worker.contract import OPEN_ROUTES
from llmtaskpool_worker.http_api.one_pass_schema import SCHEMAS
from schemathesis import GenerationMode

ONE_PASS = tuple(f"/v1/{kind}" for kind in SCHEMAS)
BODIES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/tasks",
    "/v1/graphs",
    *ONE_PASS,
)
EXAMPLES = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


FEW = settings(EXAMPLES, max_examples=10)
GOOD = {
    "/v1/chat/completions": {"model": "echo", "messages": [{"role": "user", "content": "a"}]},
    "/v1/completions": {"model": "echo", "prompt": "a"},
    "/v1/embeddings": {"model": "vectors", "input": "a"},
    "/v1/rerank": {"model": "pairs", "query": "a", "documents": ["b"]},
    "/v1/score": {"model": "pairs", "text_1": "a", "text_2": "b"},
    "/v1/classify": {"model": "moods", "input": "a"},
    "/v1/tag": {"model": "names", "input": "a"},
    "/v1/answer": {"model": "reader", "question": "a", "context": "b"},
    "/v1/detect": {"model": "boxes", "image": b64encode(picture()).decode()},
    "/v1/graphs": {"tasks": {"a": {"kind": "sum"}}},
    "/v1/tasks": {"kind": "sum"},
}


def _examples(path: str) -> settings:
    """Bodies of the routes that share their checks are drawn less often."""
    return FEW if path in ONE_PASS else EXAMPLES


@pytest.fixture(scope="module")
def rig():
    with serving(lambda clock: FakePool(clock, queue_limit=10**6)) as running:
        yield running


@pytest.fixture(scope="module")
def described(rig):
    return rig.get("/openapi.json").json()


def test_the_description_has_every_route_of_the_data_port(described):
    from llmtaskpool_worker.http_api.openapi import PATH

    listed = {(method, path) for path, found in described["paths"].items() for method in found}
    assert {("post", path) for path in BODIES} <= listed
    assert {("get", path) for path in OPEN_ROUTES} <= listed
    assert ("get", "/v1/models/{model}") in listed
    assert ("delete", "/v1/tasks/{id}") in listed
    assert ("get", PATH) not in listed
    for path in BODIES:
        content = described["paths"][path]["post"]["requestBody"]["content"]
        name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert described["components"]["schemas"][name]["properties"]


def test_the_description_is_valid_openapi_and_needs_a_key_where_one_is_set():
    with serving(api_keys=(KEY,)) as rig:
        assert rig.get("/openapi.json").status_code == 401
        answer = rig.get("/openapi.json", headers={"authorization": f"Bearer {KEY}"})
    schemathesis.openapi.from_dict(answer.json()).validate()


def well_answered(answer: httpx.Response) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert len(error["message"]) < 1000


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("path", BODIES)
def test_bodies_drawn_from_the_description_are_answered_and_never_500(rig, described, path, mode):
    """Models that are there, so that what is drawn reaches the checks behind the model's."""
    operation = schemathesis.openapi.from_dict(described)[path]["POST"]
    model = GOOD.get(path, {}).get("model", "echo")
    with rig.client() as http:

        @_examples(path)
        @given(operation.as_strategy(generation_mode=mode), st.booleans())
        def send(case, known):
            body = case.body
            if known and isinstance(body, dict):
                body = body | {"model": model}
            try:
                data = json.dumps(body).encode()
            except (TypeError, ValueError):
                return  # what was drawn is no JSON
            well_answered(http.post(path, content=data))

        send()
    assert rig.get("/livez").status_code == 200


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["echo", "vectors", "user", "text", "chat", "embed", 1e308, 2**63, 10**400]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("path", BODIES)
def test_any_json_in_any_field_is_answered_and_never_500(rig, described, path):
    content = described["paths"][path]["post"]["requestBody"]["content"]
    name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
    fields = sorted(described["components"]["schemas"][name]["properties"])
    good = GOOD[path]
    with rig.client() as http:

        @_examples(path)
        @given(st.dictionaries(st.sampled_from([*fields, "tools", "metadata"]), VALUES, max_size=3))
        def send(changed):
            if changed.get("stream") is True:
                changed = changed | {"stream": False}  # an endless read for this client
            well_answered(http.post(path, content=json.dumps(good | changed).encode()))

        send()


@EXAMPLES
@given(data=st.data())
def test_any_bytes_as_a_body_are_answered_and_never_500(rig, data):
    path = data.draw(st.sampled_from(BODIES))
    body = data.draw(
        st.binary(max_size=200) | st.text(alphabet='{}[]":,\\ntrue01', max_size=80).map(str.encode)
    )
    status, _, answer = rig.raw(request_bytes(path, body))
    assert status in (400, 202)
    assert status == 202 or set(answer["error"]) == {"message", "type", "param", "code"}
