"""Files and batches, driven by the unmodified openai package over the real pool."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import openai
import pytest
from fakes.http_rig import KEY, Rig, serving_engines, wait_until
from fakes.letters_engine import LettersEngine

ENGINES = {
    "echo": "generate",
    "vectors": "embed",
    "pairs": "rerank",
    "moods": "classify",
}


@pytest.fixture(scope="module")
def engines() -> dict[str, LettersEngine]:
    return {name: LettersEngine(name, task=task) for name, task in ENGINES.items()}


@pytest.fixture(scope="module")
def rig(engines: dict[str, LettersEngine]) -> Iterator[Rig]:
    with serving_engines(
        *engines.values(), api_keys=(KEY,), batch_lines=300, batch_window=20, file_bytes=200_000
    ) as running:
        yield running


@pytest.fixture(scope="module")
def ai(rig: Rig) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{rig.url}/v1", api_key=KEY, max_retries=0, timeout=60) as made:
        yield made


def request(name: str, body: object, url: str = "/v1/completions", **more) -> str:
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": body} | more)


def ask(text: str, **more) -> dict:
    return {"model": "echo", "prompt": text, "temperature": 0} | more


def started(ai, lines, endpoint="/v1/completions", **more):
    file = ai.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    return ai.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more
    )


def ended(ai, batch):
    def over():
        nonlocal batch
        batch = ai.batches.retrieve(batch.id)
        return batch.status in ("completed", "failed", "expired", "cancelled")

    wait_until(over, "the batch ends")
    return batch


def lines_of(ai, file_id) -> dict[str, dict]:
    """By custom_id."""
    if file_id is None:
        return {}
    read = [json.loads(line) for line in ai.files.content(file_id).text.splitlines()]
    assert len({one["id"] for one in read}) == len(read)
    return {one["custom_id"]: one for one in read}


ROUTES = {
    "/v1/chat/completions": (
        {"model": "echo", "messages": [{"role": "user", "content": "hi"}], "n": 2},
        lambda body: [choice["message"]["content"] for choice in body["choices"]] == ["u:hi\n"] * 2,
    ),
    "/v1/completions": (
        {"model": "echo", "prompt": "abc"},
        lambda body: body["choices"][0]["text"] == "abc",
    ),
    "/v1/embeddings": (
        {"model": "vectors", "input": ["a", "b"]},
        lambda body: len(body["data"]) == 2,
    ),
    "/v1/rerank": (
        {"model": "pairs", "query": "q", "documents": ["a", "b"]},
        lambda body: sorted(one["index"] for one in body["results"]) == [0, 1],
    ),
    "/v1/score": (
        {"model": "pairs", "text_1": "a", "text_2": ["b", "c"]},
        lambda body: [one["index"] for one in body["data"]] == [0, 1],
    ),
    "/v1/classify": (
        {"model": "moods", "input": "fine"},
        lambda body: body["data"][0]["label"] in ("short", "long"),
    ),
}


@pytest.mark.parametrize("endpoint", ROUTES)
def test_a_batch_of_every_openai_shaped_route_is_answered_line_by_line(ai, endpoint):
    body, right = ROUTES[endpoint]
    lines = [request(f"r{n}", body, endpoint) for n in range(3)]
    batch = started(ai, lines, endpoint, metadata={"team": "search"})
    assert (batch.object, batch.status, batch.endpoint) == ("batch", "validating", endpoint)
    batch = ended(ai, batch)
    assert batch.status == "completed", batch
    assert batch.request_counts.model_dump() == {"total": 3, "completed": 3, "failed": 0}, lines_of(
        ai, batch.error_file_id
    )
    assert batch.metadata == {"team": "search"}
    assert batch.error_file_id is None
    assert batch.errors is None
    times = (batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at)
    assert list(times) == sorted(times)
    answers = lines_of(ai, batch.output_file_id)
    assert set(answers) == {"r0", "r1", "r2"}
    for one in answers.values():
        assert one["error"] is None
        assert one["response"]["status_code"] == 200
        assert one["response"]["request_id"].startswith("req_")
        assert right(one["response"]["body"]), one


def test_bad_lines_end_in_the_error_file_with_line_and_remedy_and_the_rest_lives_on(ai):
    told = {
        "not json": ("invalid_json_line", "write one request"),
        "[1]": ("invalid_json_line", "write one request"),
        json.dumps({"method": "POST"}): ("invalid_custom_id", "give each line its own"),
        request("same", ask("x")): ("duplicate_custom_id", "give each line its own"),
        request("get", ask("x"), method="GET"): ("invalid_method", "method must be POST"),
        request("url", ask("x"), "/v1/embeddings"): ("invalid_url", "write /v1/completions"),
        request("body", [1]): ("invalid_body", "no JSON object"),
        request("stream", ask("x", stream=True)): ("unsupported_value", "leave it out"),
    }
    lines = [request("same", ask("first")), "", *told, request("last", ask("last"))]
    batch = ended(ai, started(ai, lines))
    assert batch.status == "completed"
    assert batch.request_counts.model_dump() == {"total": 10, "completed": 2, "failed": 8}
    assert set(lines_of(ai, batch.output_file_id)) == {"same", "last"}
    read = [json.loads(line) for line in ai.files.content(batch.error_file_id).text.splitlines()]
    by_line = {one["line"]: one for one in read}
    assert [error.line for error in batch.errors.data] == list(range(3, 11))
    for number, (code, remedy) in enumerate(told.values(), start=3):
        error = by_line[number]["error"]
        assert error["code"] == code
        assert error["message"].startswith(f"line {number}: ")
        assert remedy in error["message"]
        assert by_line[number]["response"] is None


def test_a_line_that_its_route_refuses_has_the_routes_own_answer_in_the_error_file(ai):
    wrong = {"n": ask("x", n=0), "model": ask("x", model="nobody"), "long": ask("x" * 400)}
    lines = [request(name, body) for name, body in wrong.items()]
    batch = ended(ai, started(ai, [*lines, request("good", ask("good"))]))
    assert (batch.status, batch.request_counts.failed) == ("completed", 3)
    read = lines_of(ai, batch.error_file_id)
    assert {name: one["response"]["status_code"] for name, one in read.items()} == {
        "n": 400,
        "model": 404,
        "long": 400,
    }
    assert read["n"]["response"]["body"]["error"]["param"] == "n"
    assert {name: one["line"] for name, one in read.items()} == {"n": 1, "model": 2, "long": 3}
    assert set(lines_of(ai, batch.output_file_id)) == {"good"}


@pytest.mark.parametrize(
    ("lines", "code"), [(["x", "y"], "invalid_json_line"), (["", " "], "empty_file")]
)
def test_a_batch_without_a_line_that_can_be_asked_has_failed(ai, lines, code):
    batch = ended(ai, started(ai, lines))
    assert batch.status == "failed"
    assert batch.failed_at
    assert batch.output_file_id is None
    assert batch.errors.data[0].code == code


def test_only_a_window_of_a_batch_is_in_line_and_it_gives_way_to_whoever_waits(ai, rig, engines):
    """A batch of 200 lines never holds more than its window of 20, at the lowest class."""
    engines["echo"].hangs = True
    try:
        batch = started(ai, [request(f"r{n}", ask("abc")) for n in range(200)])
        wait_until(lambda: rig.held() == 20, "its window is in line")
        shown = rig.get("/v1/tasks?limit=1", headers={"authorization": f"Bearer {KEY}"}).json()
        assert shown["data"][0]["weight"] == 0.25 / 16
    finally:
        engines["echo"].hangs = False
    batch = ended(ai, batch)
    assert batch.request_counts.completed == 200
    assert len(lines_of(ai, batch.output_file_id)) == 200
    page = rig.get("/metrics").text
    assert 'llmtaskpool_batch_lines_total{outcome="completed"}' in page
    assert "llmtaskpool_file_store_bytes" in page


def test_a_cancelled_batch_keeps_what_was_answered_and_tells_of_the_rest(ai, rig, engines):
    engines["echo"].hangs = True
    try:
        batch = started(ai, [request(f"r{n}", ask("abc")) for n in range(100)])
        wait_until(lambda: rig.held() == 20, "some run")
        assert ai.batches.cancel(batch.id).status == "cancelling"
        batch = ended(ai, batch)
    finally:
        engines["echo"].hangs = False
    wait_until(lambda: rig.held() == 0, "nobody runs what nobody wants")
    assert batch.status == "cancelled"
    assert batch.cancelled_at >= batch.cancelling_at
    counts = batch.request_counts
    assert (counts.total, counts.completed + counts.failed) == (100, 100)
    refused = lines_of(ai, batch.error_file_id)
    assert {one["error"]["code"] for one in refused.values()} == {"batch_cancelled"}
    assert ai.batches.cancel(batch.id).status == "cancelled"


def test_files_are_uploaded_listed_read_and_deleted(ai):
    text = request("a", ask("hi")).encode()
    file = ai.files.create(
        file=("mine.jsonl", text),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 7200},
    )
    assert (file.bytes, file.filename, file.purpose) == (len(text), "mine.jsonl", "batch")
    assert file.expires_at == file.created_at + 7200
    assert ai.files.retrieve(file.id) == file
    assert ai.files.content(file.id).content == text
    other = ai.files.create(file=b"x", purpose="batch")
    listed = [one.id for one in ai.files.list(limit=1, purpose="batch")]
    assert listed.index(other.id) < listed.index(file.id), "page by page, the newest first"
    oldest = [one.id for one in ai.files.list(order="asc", limit=100)]
    assert oldest.index(file.id) < oldest.index(other.id)
    assert ai.files.delete(file.id).deleted is True
    with pytest.raises(openai.NotFoundError, match="its expires_at has passed"):
        ai.files.retrieve(file.id)
    with pytest.raises(openai.NotFoundError):
        ai.files.content(file.id)


def test_batches_are_listed_page_by_page_the_newest_first(ai):
    made = [started(ai, [request("a", ask("hi"))]).id for _ in range(3)]
    listed = [one.id for one in ai.batches.list(limit=2)]
    assert listed[:3] == made[::-1]


def test_what_a_batch_needs_stays_and_what_has_ended_is_not_cancelled(ai, rig, engines):
    engines["echo"].hangs = True
    try:
        batch = started(ai, [request("a", ask("abc"))])
        with pytest.raises(openai.ConflictError, match="cancel it first"):
            ai.files.delete(batch.input_file_id)
    finally:
        engines["echo"].hangs = False
    ended(ai, batch)
    assert ai.files.delete(batch.input_file_id).deleted
    with pytest.raises(openai.ConflictError, match="nothing left to cancel"):
        ai.batches.cancel(batch.id)


def test_a_file_beyond_a_limit_is_refused_before_it_is_whole(ai):
    with pytest.raises(openai.APIStatusError, match="300 lines: split it") as many:
        ai.files.create(file=b"{}\n" * 301, purpose="batch")
    assert many.value.status_code == 413
    for body in (b"x" * 300_000, iter([b"x" * 60_000] * 5)):
        with pytest.raises((openai.APIStatusError, openai.APIConnectionError)) as large:
            ai.files.create(
                file=("f", body if isinstance(body, bytes) else b"".join(body)), purpose="batch"
            )
        assert "200000 bytes: split it" in str(large.value)


def form(rig: Rig, data: dict, **more) -> httpx.Response:
    headers = {"authorization": f"Bearer {KEY}"}
    return rig.post("/v1/files", data=data, headers=headers, **more)


@pytest.mark.parametrize(
    ("data", "file", "status", "told"),
    [
        ({"purpose": "fine-tune"}, b"x", 400, "purpose is 'fine-tune'"),
        ({}, b"x", 400, "purpose is missing"),
        ({"purpose": "batch"}, None, 400, "file is missing"),
        ({"purpose": "batch", "expires_after[seconds]": "5"}, b"x", 400, "from 3600 to 2592000"),
        ({"purpose": "batch", "expires_after[anchor]": "x"}, b"x", 400, "send created_at"),
        ({f"f{n}": "x" for n in range(20)}, b"x", 400, "more than 16 fields"),
        ({"purpose": "b" * 2000}, b"x", 400, "more than 1024 bytes"),
    ],
)
def test_an_upload_that_can_t_be_used_names_the_field_and_the_remedy(rig, data, file, status, told):
    files = {"other": ("", b"")} if file is None else {"file": ("f", file)}
    if file is None:
        answer = form(rig, data, files={"purpose": (None, "batch")})
    else:
        answer = form(rig, data, files=files)
    assert answer.status_code == status, answer.text
    assert told in answer.json()["error"]["message"]


def test_what_is_no_form_is_told_so(rig):
    headers = {"authorization": f"Bearer {KEY}"}
    assert rig.post("/v1/files", {"purpose": "batch"}, headers=headers).status_code == 415
    kind = {"content-type": "multipart/form-data; boundary=x"}
    for body in (b"--x\r\nno", b"nonsense", b""):
        answer = rig.post("/v1/files", content=body, headers=headers | kind)
        assert answer.status_code == 400, body
        assert answer.json()["error"]["code"] == "invalid_form"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"input_file_id": "file-none"}, "There is no file 'file-none' here"),
        ({"endpoint": "/v1/responses"}, "endpoint is '/v1/responses': use /v1/chat/completions"),
        ({"completion_window": "30d"}, "send 24h, or from 1h to 14d"),
        ({"completion_window": "soon"}, "send 24h, or from 1h to 14d"),
        ({"metadata": {"a": 1}}, "metadata.a is 1"),
        ({"metadata": {f"k{n}": "" for n in range(17)}}, "metadata is "),
        ({"output_expires_after": {"seconds": 1}}, "output_expires_after.seconds is 1"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_batch_that_can_t_be_made_names_the_field_and_the_remedy(rig, ai, given, told):
    file = ai.files.create(file=b"x", purpose="batch")
    body = {"input_file_id": file.id, "endpoint": "/v1/completions", "completion_window": "24h"}
    answer = rig.post("/v1/batches", body | given, headers={"authorization": f"Bearer {KEY}"})
    assert answer.status_code in (400, 404), answer.text
    assert told in answer.json()["error"]["message"]


def test_an_output_file_is_no_input_of_a_batch(ai):
    done = ended(ai, started(ai, [request("a", ask("hi"))]))
    with pytest.raises(openai.BadRequestError, match="upload one of purpose batch"):
        ai.batches.create(
            input_file_id=done.output_file_id, endpoint="/v1/completions", completion_window="24h"
        )
