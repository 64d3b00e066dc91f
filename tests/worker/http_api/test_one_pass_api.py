"""Rerank, score, classify, tag and answer: their shapes, and what is refused of their bodies."""

from __future__ import annotations

import pytest
from fakes.fake_pool import FakePool, Running, wait_for_ever
from fakes.http_rig import KEY, request_bytes, serving, wait_until

RERANK = {"model": "pairs", "query": "why", "documents": ["b", "long one", "mid"]}
SCORE = {"model": "pairs", "text_1": "why", "text_2": ["b", "long one"]}
CLASSIFY = {"model": "moods", "input": ["go", "away"]}
TAG = {"model": "names", "input": "Ada"}
ANSWER = {"model": "reader", "question": "who", "context": "Ada was"}
BODIES = {"rerank": RERANK, "score": SCORE, "classify": CLASSIFY, "tag": TAG, "answer": ANSWER}


@pytest.fixture(scope="module")
def rig():
    with serving(FakePool) as running:
        yield running


def ok(rig, path, body):
    answer = rig.post(path, body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
def test_documents_come_back_by_falling_score_with_their_text(rig, path):
    answer = ok(rig, path, RERANK)
    assert answer["results"] == [
        {"index": 1, "document": {"text": "long one"}, "relevance_score": 12.0},
        {"index": 2, "document": {"text": "mid"}, "relevance_score": 7.0},
        {"index": 0, "document": {"text": "b"}, "relevance_score": 5.0},
    ]
    assert answer["usage"] == {"prompt_tokens": 24, "total_tokens": 24}
    assert answer["model"] == "pairs"
    assert answer["id"].startswith("rerank-")


def test_rerank_gives_as_many_as_wanted_and_no_texts_where_none_are(rig):
    answer = ok(rig, "/v1/rerank", RERANK | {"top_n": 1, "return_documents": False})
    assert answer["results"] == [{"index": 1, "relevance_score": 12.0}]


def test_rerank_takes_documents_as_objects_and_cuts_them_where_asked(rig):
    documents = [{"text": "abc", "title": "not read"}, "abcdefgh"]
    body = RERANK | {"documents": documents, "max_tokens_per_doc": 3, "return_documents": False}
    answer = ok(rig, "/v1/rerank", body)
    assert [one["relevance_score"] for one in answer["results"]] == [7.0, 7.0]


def test_the_second_version_of_rerank_has_coheres_shape(rig):
    answer = ok(rig, "/v2/rerank", RERANK | {"top_n": 2})
    assert answer["results"] == [
        {"index": 1, "relevance_score": 12.0},
        {"index": 2, "relevance_score": 7.0},
    ]
    assert set(answer) == {"id", "results", "meta"}


def test_a_model_that_embeds_reranks_too_and_reads_each_text_once(rig):
    answer = ok(rig, "/v1/rerank", RERANK | {"model": "vectors", "documents": ["b", "why", "b"]})
    payload = rig.pool.requests[-1].payload
    assert len(payload.rows) == 2, "the query and b"
    assert payload.options["pairs"] == [[0, 1], [0, 0], [0, 1]]
    assert len(answer["results"]) == 3


@pytest.mark.parametrize(
    "body",
    [
        {"text_1": "why", "text_2": ["b", "long one"]},
        {"queries": ["why", "why"], "documents": ["b", "long one"]},
    ],
)
def test_score_pairs_one_with_all_or_each_with_its_own(rig, body):
    answer = ok(rig, "/v1/score", {"model": "pairs"} | body)
    assert answer["object"] == "list"
    assert answer["data"] == [
        {"index": 0, "object": "score", "score": 5.0},
        {"index": 1, "object": "score", "score": 12.0},
    ]


def test_classify_tells_the_best_label_and_how_likely_each_is(rig):
    answer = ok(rig, "/v1/classify", CLASSIFY | {"top_k": 1})
    assert answer["id"].startswith("classify-")
    assert answer["object"] == "list"
    assert [one["index"] for one in answer["data"]] == [0, 1]
    assert answer["data"][0] == {
        "index": 0,
        "label": "angry",
        "probs": [0.25, 0.75],
        "num_classes": 2,
        "top": [{"label": "angry", "score": 0.75}],
    }


def test_tag_tells_entities_with_their_place_in_the_text(rig):
    (one,) = ok(rig, "/v1/tag", TAG)["data"]
    entity = {"label": "angry", "score": 0.5, "start": 0, "end": 3, "text": "Ada"}
    assert one == {"index": 0, "entities": [entity]}


def test_answer_tells_words_of_the_text_and_their_place(rig):
    (one,) = ok(rig, "/v1/answer", ANSWER)["data"]
    assert one == {
        "index": 0,
        "answers": [{"answer": "Ad", "score": 0.5, "start": 0, "end": 2}],
    }


def test_a_text_too_long_for_a_row_is_read_in_windows_that_overlap(rig):
    context = "x" * 600
    (one,) = ok(rig, "/v1/answer", ANSWER | {"context": context, "top_k": 9})["data"]
    payload = rig.pool.requests[-1].payload
    assert {row.size for row in payload.rows[:-1]} == {256}
    assert [answer["start"] for answer in one["answers"]] == [126 * n for n in range(4)]


@pytest.mark.parametrize("kind", BODIES)
def test_each_is_a_kind_of_task_with_the_same_result(rig, kind):
    direct = ok(rig, f"/v1/{kind}", BODIES[kind])
    arguments = {name: value for name, value in BODIES[kind].items() if name != "model"}
    body = {"kind": kind, "model": BODIES[kind]["model"], "arguments": arguments}
    submitted = rig.post("/v1/tasks", body)
    assert submitted.status_code == 202, submitted.text
    task = rig.get(f"/v1/tasks/{submitted.json()['id']}?wait=60").json()
    assert task["state"] == "succeeded"
    told = {k: v for k, v in direct.items() if k not in ("id", "object", "created", "model")}
    for one in told.get("results", ()):
        del one["document"]  # who submits a task has its documents
    assert task["result"] == told


def test_a_task_takes_the_input_of_its_kind_beside_the_arguments(rig):
    body = {"kind": "classify", "model": "moods", "input": ["go"], "arguments": {"top_k": 1}}
    assert rig.post("/v1/tasks", body).status_code == 202
    assert rig.pool.requests[-1].payload.shown == {"top_k": 1}


@pytest.mark.parametrize(
    ("path", "fields", "field"),
    [
        ("rerank", {"query": None}, "query"),
        ("rerank", {"query": ""}, "query"),
        ("rerank", {"query": ["a"]}, "query"),
        ("rerank", {"documents": []}, "documents"),
        ("rerank", {"documents": "a"}, "documents"),
        ("rerank", {"documents": ["a"] * 1001}, "documents"),
        ("rerank", {"documents": ["a", 5]}, "documents[1]"),
        ("rerank", {"documents": [{"title": "a"}]}, "documents[0].text"),
        ("rerank", {"documents": [{str(n): n for n in range(300)}]}, "documents[0]"),
        ("rerank", {"documents": ["a", "x" * 300]}, "documents[1]"),
        ("rerank", {"documents": ["a", "x" * 500_000]}, "documents[1]"),
        ("rerank", {"top_n": 0}, "top_n"),
        ("rerank", {"top_n": "5"}, "top_n"),
        ("rerank", {"max_tokens_per_doc": 0}, "max_tokens_per_doc"),
        ("rerank", {"rank_fields": ["a"]}, "rank_fields"),
        ("rerank", {"model": "echo"}, "model"),
        ("rerank", {"model": "moods"}, "model"),
        ("rerank", {"weight": 0}, "weight"),
        ("score", {"text_1": None}, "text_1"),
        ("score", {"text_1": ["a", "b", "c"]}, "text_2"),
        ("score", {"text_2": []}, "text_2"),
        ("score", {"queries": "a"}, "documents"),
        ("score", {"text_2": ["a"] * 1001}, "text_2"),
        ("classify", {"input": None}, "input"),
        ("classify", {"input": []}, "input"),
        ("classify", {"input": ["a", ""]}, "input[1]"),
        ("classify", {"input": ["a", "x" * 300]}, "input[1]"),
        ("classify", {"input": ["a"] * 1001}, "input"),
        ("classify", {"input": [1, 2]}, "input[0]"),
        ("classify", {"top_k": 0}, "top_k"),
        ("classify", {"use_activation": "no"}, "use_activation"),
        ("classify", {"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ("classify", {"model": "pairs"}, "model"),
        ("tag", {"aggregation": "max"}, "aggregation"),
        ("answer", {"question": "q" * 300}, "question"),
        ("answer", {"context": None}, "context"),
        ("answer", {"context": ["a", "b"], "question": ["x", "y", "z"]}, "context"),
        ("answer", {"top_k": 101}, "top_k"),
    ],
)
def test_a_bad_field_is_named_and_refused(rig, path, fields, field):
    before = len(rig.pool.requests)
    body = {k: v for k, v in (BODIES[path] | fields).items() if v is not None}
    status, _, answer = rig.raw(request_bytes(f"/v1/{path}", body))
    error = answer["error"]
    assert status == 400, error
    assert error["param"] == field, error
    assert field.split("[")[0] in error["message"], error
    assert len(error["message"]) < 600
    assert "xxx" not in error["message"], "a client's own text is not repeated"
    assert len(rig.pool.requests) == before


def test_a_task_blames_its_arguments(rig):
    body = {"kind": "rerank", "model": "pairs", "arguments": {"query": "a", "documents": []}}
    answer = rig.post("/v1/tasks", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "arguments.documents"


def test_what_is_too_long_is_cut_where_asked(rig):
    body = CLASSIFY | {"input": "x" * 300, "truncate_prompt_tokens": -1}
    assert ok(rig, "/v1/classify", body)["usage"]["prompt_tokens"] == 256


def test_a_key_is_asked_for_on_each_route():
    with serving(FakePool, api_keys=(KEY,)) as rig:
        for path in ("/v1/rerank", "/rerank", "/v2/rerank", "/v1/score", "/v1/classify"):
            assert rig.post(path, RERANK).status_code == 401
        header = {"authorization": f"Bearer {KEY}"}
        assert rig.post("/v1/rerank", RERANK, headers=header).status_code == 200


def test_a_client_that_leaves_cancels_its_task():
    with serving(lambda clock: FakePool(clock, script=wait_for_ever)) as rig:
        with rig.connect() as made:
            made.sendall(request_bytes("/v1/rerank", RERANK))
            wait_until(lambda: rig.held() == 1, "the task runs")
        wait_until(lambda: rig.held() == 0, "it was cancelled")


def test_a_model_that_fails_on_a_row_is_told_with_its_code():
    async def fails(run: Running) -> None:
        run.start()
        run.fail("not_finite", "the model's output is not a number")

    with serving(lambda clock: FakePool(clock, script=fails)) as rig:
        answer = rig.post("/v1/classify", CLASSIFY)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "not_finite"
