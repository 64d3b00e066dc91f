"""The OpenAI routes as a client sees them, over a pool without engines."""

from __future__ import annotations

import base64
import json
import struct
from contextlib import closing

import pytest
from fakes.fake_pool import FakePool, Running, queue_for_ever, wait_for_ever
from fakes.http_rig import models, request_bytes, serving, wait_until
from llmtaskpool_worker.contract import Phase
from llmtaskpool_worker.scheduling.task import Generated, TokenLogprob

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def rig():
    with serving() as running:
        yield running


def chunks_of(text: str) -> list:
    """The data of server-sent events; [DONE] as it is."""
    datas = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


def test_a_chat_answers_in_openai_s_shape_with_usage(rig):
    answer = rig.post("/v1/chat/completions", CHAT | {"max_tokens": 3})
    assert answer.status_code == 200
    body = answer.json()
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    choice = body["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "117 58 104 ", "refusal": None}
    assert choice["finish_reason"] == "length"
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def test_a_streamed_chat_adds_up_to_the_whole_answer(rig):
    answer = rig.post(
        "/v1/chat/completions",
        CHAT | {"max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}},
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    chunks = chunks_of(answer.text)
    assert chunks[-1] == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-2])
    assert text == "117 58 104 105 "
    assert chunks[-3]["choices"][0]["finish_reason"] == "length"
    assert chunks[-2]["choices"] == []
    assert chunks[-2]["usage"]["total_tokens"] == 9
    assert len({c["id"] for c in chunks[:-1]}) == 1


def test_a_stream_has_no_usage_unless_asked_for(rig):
    answer = rig.post("/v1/chat/completions", CHAT | {"stream": True, "max_tokens": 1})
    assert all(not c.get("usage") for c in chunks_of(answer.text)[:-1])


@pytest.mark.parametrize("stream", [False, True])
def test_n_choices_are_numbered_and_their_prompt_counts_once(rig, stream):
    asked = CHAT | {"n": 3, "max_tokens": 2, "stream": stream, "seed": 7}
    if stream:
        asked["stream_options"] = {"include_usage": True}
    answer = rig.post("/v1/chat/completions", asked)
    if stream:
        chunks = chunks_of(answer.text)[:-1]
        indexes = {c["choices"][0]["index"] for c in chunks if c["choices"]}
        usage = chunks[-1]["usage"]
    else:
        indexes = {choice["index"] for choice in answer.json()["choices"]}
        usage = answer.json()["usage"]
    assert indexes == {0, 1, 2}
    assert usage == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}
    seeds = [request.payload.sampling.seed for request in rig.pool.requests[-3:]]
    assert seeds == [7, 8, 9]


def test_sampling_fields_reach_the_task(rig):
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "seed": 1,
        "presence_penalty": 1.5,
        "frequency_penalty": -1.5,
    }
    asked = CHAT | fields | {"stop": ["a", "b"], "max_completion_tokens": 2, "user": "u"}
    assert rig.post("/v1/chat/completions", asked | {"metadata": {"a": "b"}}).status_code == 200
    payload = rig.pool.requests[-1].payload
    assert {name: getattr(payload.sampling, name) for name in fields} == fields
    assert payload.stop == ("a", "b")
    assert payload.max_tokens == 2


def test_without_max_tokens_a_chat_may_fill_the_context(rig):
    rig.post("/v1/chat/completions", CHAT)
    payload = rig.pool.requests[-1].payload
    assert payload.max_tokens + len(payload.prompt) == 256


def test_content_parts_and_the_developer_role_are_read(rig):
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    answer = rig.post("/v1/chat/completions", {"model": "echo", "messages": messages})
    assert answer.status_code == 200
    assert bytes(rig.pool.requests[-1].payload.prompt) == b"s:be brief\nu:ab\n"


def test_completions_take_texts_and_token_ids_one_or_many(rig):
    for prompt, count in (("ab", 1), ([1, 2], 1), (["a", "b"], 2), ([[1], [2], [3]], 3)):
        answer = rig.post("/v1/completions", {"model": "echo", "prompt": prompt, "max_tokens": 1})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["object"] == "text_completion"
        assert [choice["index"] for choice in body["choices"]] == list(range(count))


def test_a_completion_s_default_is_16_tokens_as_at_openai(rig):
    rig.post("/v1/completions", {"model": "echo", "prompt": "x" * 40})
    assert rig.pool.requests[-1].payload.max_tokens == 16


def test_embeddings_answer_floats_or_base64_in_the_order_of_the_inputs(rig):
    floats = rig.post("/v1/embeddings", {"model": "vectors", "input": ["a", "bc"]}).json()
    assert [one["embedding"] for one in floats["data"]] == [[1.0, 2.0, 3.0]] * 2
    assert [one["index"] for one in floats["data"]] == [0, 1]
    assert floats["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    coded = rig.post(
        "/v1/embeddings", {"model": "vectors", "input": "ab", "encoding_format": "base64"}
    ).json()
    vector = base64.b64decode(coded["data"][0]["embedding"])
    assert struct.unpack("<3f", vector) == (1.0, 2.0, 3.0)


def test_many_embeddings_pass_a_short_queue_in_one_request():
    with serving(lambda clock: FakePool(clock, queue_limit=3)) as small:
        answer = small.post("/v1/embeddings", {"model": "vectors", "input": ["a"] * 200})
        assert answer.status_code == 200
        assert len(answer.json()["data"]) == 200


def test_models_are_listed_and_found(rig):
    listed = rig.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == [model.name for model in models()]
    assert rig.get("/v1/models/echo").json()["object"] == "model"
    missing = rig.get("/v1/models/none")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


async def with_logprobs(run: Running) -> None:
    run.start()
    drawn = (TokenLogprob(104, -0.5, ((104, -0.5), (105, -1.5))), TokenLogprob(105, -0.25, ()))
    run.say("hi", 104, 105, logprobs=drawn)
    run.succeed(Generated("hi", (104, 105), 5, "stop", drawn))


def test_logprobs_come_in_the_chat_and_in_the_older_form():
    with serving(lambda clock: FakePool(clock, script=with_logprobs)) as rig:
        asked = CHAT | {"logprobs": True, "top_logprobs": 2}
        content = rig.post("/v1/chat/completions", asked).json()["choices"][0]["logprobs"][
            "content"
        ]
        assert content[0]["token"] == "h"
        assert content[0]["bytes"] == [104]
        assert content[0]["top_logprobs"][1] == {"token": "i", "logprob": -1.5, "bytes": [105]}
        assert rig.pool.requests[-1].payload.sampling.logprobs == 2
        streamed = rig.post("/v1/chat/completions", asked | {"stream": True})
        chunk = chunks_of(streamed.text)[1]
        assert chunk["choices"][0]["logprobs"]["content"] == content
        old = rig.post("/v1/completions", {"model": "echo", "prompt": "a", "logprobs": 2})
        assert old.json()["choices"][0]["logprobs"] == {
            "tokens": ["h", "i"],
            "token_logprobs": [-0.5, -0.25],
            "top_logprobs": [{"h": -0.5, "i": -1.5}, None],
            "text_offset": [0, 1],
        }


@pytest.mark.parametrize(
    ("fields", "header", "weight"),
    [
        ({}, None, 1.0),
        ({"service_tier": "flex"}, None, 0.25),
        ({"service_tier": "priority"}, None, 4.0),
        ({"service_tier": "priority", "priority": 2}, None, 0.25),
        ({"priority": -1}, None, 2.0),
        ({"priority": -(2**31)}, None, 1024.0),
        ({"priority": -1}, "3", 3.0),
        ({"priority": -1, "weight": 5}, "3", 5.0),
    ],
)
def test_the_first_priority_given_decides_the_weight(rig, fields, header, weight):
    headers = {} if header is None else {"x-llmtaskpool-weight": header}
    answer = rig.post("/v1/chat/completions", CHAT | {"max_tokens": 1} | fields, headers=headers)
    assert answer.status_code == 200, answer.text
    assert rig.pool.requests[-1].weight == weight


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_answers_429_with_retry_after(stream):
    with serving(lambda clock: FakePool(clock, queue_limit=0)) as rig:
        answer = rig.post("/v1/chat/completions", CHAT | {"stream": stream})
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "2"
        assert answer.json()["error"]["code"] == "queue_full"
        assert answer.json()["error"]["type"] == "rate_limit_error"


def test_a_rejected_choice_takes_the_accepted_ones_with_it():
    with serving(lambda clock: FakePool(clock, queue_limit=2, script=wait_for_ever)) as rig:
        assert rig.post("/v1/chat/completions", CHAT | {"n": 3}).status_code == 429
        assert rig.held() == 0


@pytest.mark.parametrize(("phase", "close"), [(Phase.STARTING, False), (Phase.DRAINING, True)])
def test_503_with_retry_after_while_starting_and_draining(phase, close):
    with serving() as rig:
        rig.pool.phase = phase
        answer = rig.post("/v1/chat/completions", CHAT)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert (answer.headers.get("connection") == "close") is close


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", [wait_for_ever, queue_for_ever])
def test_a_client_that_leaves_gives_its_slot_back(stream, script):
    with serving(lambda clock: FakePool(clock, script=script)) as rig:
        with closing(rig.connect()) as made:
            made.sendall(request_bytes("/v1/chat/completions", CHAT | {"stream": stream, "n": 2}))
            wait_until(lambda: rig.held() == 2, "two tasks are held")
        wait_until(lambda: rig.held() == 0, "nothing is held")


async def fails_at_once(run: Running) -> None:
    run.fail("engine_crashed", "The engine crashed.")


async def fails_after_a_word(run: Running) -> None:
    run.start()
    run.say("one ", 1)
    run.fail("engine_crashed", "The engine crashed.")


async def expires(run: Running) -> None:
    run.expire()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", [fails_at_once, expires])
def test_a_failure_before_the_first_word_is_a_status_code(stream, script):
    with serving(lambda clock: FakePool(clock, script=script)) as rig:
        answer = rig.post("/v1/chat/completions", CHAT | {"stream": stream})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] in ("engine_crashed", "queue_timeout")


def test_a_failure_in_a_stream_is_an_error_frame_and_no_done():
    with serving(lambda clock: FakePool(clock, script=fails_after_a_word)) as rig:
        answer = rig.post("/v1/chat/completions", CHAT | {"stream": True})
        chunks = chunks_of(answer.text)
        assert chunks[-1]["error"]["code"] == "engine_crashed"
        assert "[DONE]" not in chunks


def test_a_silent_stream_sends_comments_so_that_proxies_keep_it():
    with (
        serving(lambda c: FakePool(c, script=wait_for_ever), heartbeat_seconds=0.05) as rig,
        closing(rig.connect()) as made,
    ):
        made.sendall(request_bytes("/v1/chat/completions", CHAT | {"stream": True}))
        received = b""
        while b": still here" not in received:
            part = made.recv(65536)
            assert part, received
            received += part


def test_a_request_id_is_echoed_or_made(rig):
    assert rig.get("/v1/models", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == (
        "abc-1"
    )
    made = rig.get("/v1/models", headers={"x-request-id": "no\tgood"}).headers["x-request-id"]
    assert made.startswith("req_")
