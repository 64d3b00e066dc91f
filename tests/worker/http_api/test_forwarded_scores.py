"""Rerank, score and classify for models of servers: what passes, and what is refused."""

from __future__ import annotations

import pytest
from fakes.http_rig import serving_engines
from fakes.letters_engine import LettersEngine
from fakes.raw_server import plain, raw_serving
from fakes.vllm_stub import VllmStub, stub_serving
from llmtaskpool_worker.engines.protocol import ModelSpec
from llmtaskpool_worker.engines.upstream.address import address_of
from llmtaskpool_worker.engines.upstream.engine import UpstreamEngine

FRUIT = {"model": "chat", "query": "abc", "documents": ["xyz", "abc", "axy"]}


def engine_at(url: str) -> UpstreamEngine:
    spec = ModelSpec("chat", f"openai:{url}", aliases=("fits",))
    return UpstreamEngine(spec, address_of(spec.source), look_seconds=0.1)


@pytest.fixture(scope="module")
def stub():
    with stub_serving(VllmStub()) as serving:
        yield serving


@pytest.fixture(scope="module")
def rig(stub):
    with serving_engines(engine_at(stub.url)) as running:
        yield running


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_are_reranked_by_the_server_under_the_pool_s_names(rig, stub, path):
    extra = {"top_n": 2, "return_documents": True, "weight": 3.0, "timeout_seconds": 9}
    answer = rig.post(path, FRUIT | extra).json()
    assert [one["index"] for one in answer["results"]] == [1, 2]
    assert answer["results"][0]["relevance_score"] == 1.0
    assert answer["model"] == "chat"
    assert answer["id"].startswith("rerank-")
    assert answer["id"] != "rerank-stub"
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    seen = stub.seen[-1]
    assert (seen["model"], seen["top_n"], seen["return_documents"]) == ("stub/letters", 2, True)
    assert not {"weight", "timeout_seconds", "stream"} & set(seen)


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_pairs_are_scored(rig, path):
    answer = rig.post(path, {"model": "fits", "text_1": "ab", "text_2": ["ab", "cd"]}).json()
    assert [one["score"] for one in answer["data"]] == [1.0, 0.0]
    assert (answer["object"], answer["model"]) == ("list", "chat")


@pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
def test_texts_are_classified_also_where_the_server_has_the_route_at_its_origin(rig, path):
    answer = rig.post(path, {"model": "chat", "input": ["abcd", "ab"]}).json()
    assert [one["label"] for one in answer["data"]] == ["long", "short"]


@pytest.mark.parametrize(
    ("path", "fields", "status", "param"),
    [
        ("/v1/rerank", {"documents": []}, 400, "documents"),
        ("/v1/rerank", {"documents": ["a"] * 2049}, 400, "documents"),
        ("/v1/rerank", {"query": None}, 400, "query"),
        ("/v1/rerank", {"weight": -1}, 400, "weight"),
        ("/v1/rerank", {"model": "nobody"}, 404, "model"),
        ("/v1/rerank", {"model": None}, 400, "model"),
        ("/v1/score", {}, 400, "text_1"),
        ("/v1/classify", {"input": []}, 400, "input"),
    ],
)
def test_what_can_not_be_used_is_told_by_field_before_it_waits(rig, path, fields, status, param):
    body = FRUIT | fields if path == "/v1/rerank" else {"model": "chat"} | fields
    answer = rig.post(path, body)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param


def test_what_the_server_refuses_is_told_as_it_says_it(rig):
    answer = rig.post("/v1/rerank", FRUIT | {"max_tokens": 9999})
    assert answer.status_code == 400
    assert "maximum context length is 4096" in answer.json()["error"]["message"]


def test_the_same_as_tasks(rig):
    arguments = {"query": "abc", "documents": ["xyz", "abc"]}
    body = {"kind": "rerank", "model": "fits", "arguments": arguments}
    made = rig.post("/v1/tasks", body).json()
    ended = rig.get(f"/v1/tasks/{made['id']}?wait=20").json()
    assert ended["model"] == "chat"
    assert ended["result"]["answer"]["results"][0]["index"] == 1
    refused = rig.post("/v1/tasks", body | {"arguments": {"query": "a"}})
    assert refused.json()["error"]["param"] == "arguments.documents"


def test_a_model_that_is_no_server_s_has_none_of_it():
    with serving_engines(LettersEngine()) as rig:
        name = rig.get("/v1/models").json()["data"][0]["id"]
        answer = rig.post("/v1/rerank", FRUIT | {"model": name})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "model"


@pytest.mark.parametrize("said", [b"{}", b'{"results": 5}', b"[1]", b"<html>", b'{"results": ['])
def test_an_answer_that_is_none_is_an_error_with_the_upstream_named(said):
    async def script(server, reader, writer):
        writer.write(plain("200 OK", "application/json", said))

    with (
        raw_serving(script) as server,
        serving_engines(engine_at(f"http://127.0.0.1:{server.port}/v1")) as rig,
    ):
        answer = rig.post("/v1/rerank", FRUIT)
        assert answer.status_code == 502
        assert "the upstream of model chat sent what are no scores" in answer.text


def test_a_server_that_has_no_such_route_is_named():
    async def script(server, reader, writer):
        writer.write(plain("404 Not Found", "application/json", b'{"detail": "Not Found"}'))

    with (
        raw_serving(script) as server,
        serving_engines(engine_at(f"http://127.0.0.1:{server.port}/v1")) as rig,
    ):
        answer = rig.post("/v1/rerank", FRUIT)
        assert answer.status_code == 502
        assert "may not have this model or this route" in answer.json()["error"]["message"]
