"""What clients of OpenAI's API send and look for, beyond the plain request and answer."""

from __future__ import annotations

import json
import logging

import pytest
from fakes.fake_pool import FakePool, Running
from fakes.http_rig import END, serving
from llmtaskpool_worker.http_api import foreign_fields
from llmtaskpool_worker.scheduling.task import Generated, TokenLogprob

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
COMPLETE = {"model": "echo", "prompt": "hi", "max_tokens": 3}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALL = {"name": "weather", "arguments": '{"city": "Bonn"}'}


@pytest.fixture(scope="module")
def rig():
    with serving() as running:
        yield running


def chunks_of(rig, path: str, body: dict) -> list[dict]:
    text = rig.post(path, body | {"stream": True}).text
    datas = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    assert datas.pop() == "[DONE]"
    return [json.loads(data) for data in datas]


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETE)]
)
def test_usage_is_null_in_every_chunk_before_the_one_that_has_it(rig, path, body):
    chunks = chunks_of(rig, path, body | {"stream_options": {"include_usage": True}})
    assert all("usage" in chunk and chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["usage"]["total_tokens"] > 0
    assert all("usage" not in chunk for chunk in chunks_of(rig, path, body))


def test_usage_so_far_is_counted_in_every_chunk_that_asks_for_it(rig):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = chunks_of(rig, "/v1/chat/completions", CHAT | {"n": 2, "stream_options": options})
    for index in (0, 1):
        mine = [c for c in chunks[:-1] if c["choices"][0]["index"] == index]
        assert [c["usage"]["completion_tokens"] for c in mine] == [0, 1, 2, 3, 3]
        assert {c["usage"]["prompt_tokens"] for c in mine} == {5}


WORDS = "aé\N{EARTH GLOBE EUROPE-AFRICA}!"
HALVES = [b"a", "é".encode(), b"\xf0\x9f", b"\x8c\x8d", b"!"]


async def in_halves(run: Running) -> None:
    """Five tokens, two of which make one letter."""
    run.start()
    drawn = [TokenLogprob(i, -float(i), ((i, -float(i)), (2, -9.0), (3, -9.5))) for i in range(5)]
    run.say("a", 0, logprobs=drawn[:1])
    run.say("é", 1, logprobs=drawn[1:2])
    run.say("\N{EARTH GLOBE EUROPE-AFRICA}!", 2, 3, 4, logprobs=drawn[2:])
    run.succeed(Generated(WORDS, tuple(range(5)), 1, "length", tuple(drawn)))


@pytest.fixture
def halves(monkeypatch):
    monkeypatch.setattr("fakes.http_rig.LetterCodec.token_bytes", lambda _, token: HALVES[token])
    with serving(lambda clock: FakePool(clock, script=in_halves)) as rig:
        yield rig


def test_half_a_letter_is_told_as_its_bytes(halves):
    asked = CHAT | {"logprobs": True, "top_logprobs": 3}
    content = halves.post("/v1/chat/completions", asked).json()["choices"][0]["logprobs"]["content"]
    assert [one["token"] for one in content] == ["a", "é", "\\xf0\\x9f", "\\x8c\\x8d", "!"]
    assert b"".join(bytes(one["bytes"]) for one in content).decode() == WORDS
    old = halves.post("/v1/completions", COMPLETE | {"logprobs": 3}).json()["choices"][0][
        "logprobs"
    ]
    assert old["tokens"] == ["a", "é", "bytes:\\xf0\\x9f", "bytes:\\x8c\\x8d", "!"]
    assert set(old["top_logprobs"][0]) == {"a", "bytes:\\xf0\\x9f", "bytes:\\x8c\\x8d"}


def test_the_offsets_of_a_stream_go_on_from_chunk_to_chunk(halves):
    whole = halves.post("/v1/completions", COMPLETE | {"logprobs": 1}).json()
    offsets = whole["choices"][0]["logprobs"]["text_offset"]
    assert offsets == [0, 1, 2, 2, 3]
    chunks = chunks_of(halves, "/v1/completions", COMPLETE | {"logprobs": 1, "n": 2})
    for index in (0, 1):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        told = [
            place for one in mine if one["logprobs"] for place in one["logprobs"]["text_offset"]
        ]
        assert told == offsets


async def with_a_special_token(run: Running) -> None:
    run.start()
    drawn = [TokenLogprob(ord(one), -0.1, ()) for one in f"a{chr(END)}b"]
    run.say("ab", *(one.token for one in drawn), logprobs=drawn)
    run.succeed(Generated("ab", tuple(one.token for one in drawn), 1, "length", tuple(drawn)))


def test_a_special_token_takes_no_place_in_the_text():
    with serving(lambda clock: FakePool(clock, script=with_a_special_token)) as rig:
        answer = rig.post("/v1/completions", COMPLETE | {"logprobs": 1}).json()
        assert answer["choices"][0]["text"] == "ab"
        assert answer["choices"][0]["logprobs"]["text_offset"] == [0, 1, 1]


async def says_line_ends(run: Running) -> None:
    run.start()
    run.say("a\u2028b\u2029c\u0085d", 1)
    run.succeed(Generated("a\u2028b\u2029c\u0085d", (1,), 1, "stop"))


def test_no_letter_in_a_stream_is_taken_for_the_end_of_a_line():
    with serving(lambda clock: FakePool(clock, script=says_line_ends)) as rig:
        answer = rig.post("/v1/chat/completions", CHAT | {"stream": True})
        lines = answer.text.splitlines()  # as httpx and many clients count lines
        datas = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert all(line.startswith("data: ") for line in lines if line)
        text = "".join(d["choices"][0]["delta"].get("content", "") for d in datas)
        assert text == "a\u2028b\u2029c\u0085d"


def test_a_top_p_of_0_takes_the_likeliest_token_as_at_openai(rig):
    asked = CHAT | {"top_p": 0, "temperature": 1.5, "seed": 4}
    assert rig.post("/v1/chat/completions", asked).status_code == 200
    sampling = rig.pool.requests[-1].payload.sampling
    assert sampling.temperature == 0
    assert 0 < sampling.top_p <= 1


def test_a_history_of_tool_calls_reaches_the_model(rig, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "fakes.http_rig.LetterCodec.encode_chat",
        lambda _, messages, tools: seen.extend([*messages, *tools]) or [65],
    )
    messages = [
        {"role": "user", "content": "weather in Bonn?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": CALL}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "22 degrees"}]},
        {"role": "assistant", "content": None, "function_call": CALL | {"arguments": "{"}},
        {"role": "function", "name": "weather", "content": "23 degrees"},
        {"role": "user", "content": "thanks"},
    ]
    asked = {"model": "echo", "messages": messages, "tools": TOOLS, "tool_choice": "none"}
    answer = rig.post("/v1/chat/completions", asked | {"parallel_tool_calls": False})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["finish_reason"] in ("stop", "length")
    assert seen[1]["content"] == ""
    assert seen[1]["tool_calls"][0]["id"] == "c1"
    function = seen[1]["tool_calls"][0]["function"]
    assert function == {"name": "weather", "arguments": {"city": "Bonn"}}
    assert seen[2] == {"role": "tool", "tool_call_id": "c1", "content": "22 degrees"}
    assert seen[3]["tool_calls"][0]["function"] == {"name": "weather", "arguments": "{"}
    assert seen[4] == {"role": "tool", "name": "weather", "content": "23 degrees"}
    assert len(seen) == len(messages)  # tools that can't be called aren't told
    old = {"functions": [{"name": "weather"}], "function_call": "none"}
    assert rig.post("/v1/chat/completions", CHAT | old).status_code == 200


def test_functions_that_may_be_called_are_refused_with_the_remedy(rig):
    answer = rig.post("/v1/chat/completions", CHAT | {"functions": [{"name": "weather"}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "functions"
    assert "send tools" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"store": True, "metadata": {"a": "b"}},
        {"safety_identifier": "x", "prompt_cache_key": "y", "prompt_cache_retention": "24h"},
        {"reasoning_effort": "none", "verbosity": "medium", "parallel_tool_calls": True},
        {"user": "u", "service_tier": "scale"},
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        {"cache_salt": "z", "request_id": "r", "include_reasoning": True},
    ],
)
def test_fields_that_change_no_answer_pass(rig, fields):
    answer = rig.post("/v1/chat/completions", CHAT | fields)
    assert answer.status_code == 200, answer.text


def test_a_field_without_effect_is_named_in_the_log_once_and_its_value_never(
    rig, caplog, monkeypatch
):
    monkeypatch.setattr(foreign_fields, "_told", set())
    caplog.set_level(logging.WARNING, "llmtaskpool")
    for _ in range(3):
        rig.post("/v1/chat/completions", CHAT | {"store": True, "prompt_cache_key": "secret"})
    named = [getattr(record, "field", None) for record in caplog.records]
    assert sorted(filter(None, named)) == ["prompt_cache_key", "store"]
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "hint"),
    [
        ("POST", "/v1/responses", "/v1/chat/completions"),
        ("GET", "/v1/responses/resp_1", "/v1/chat/completions"),
        ("POST", "/v1/messages", "/v1/chat/completions"),
        ("POST", "/api/chat", "/v1/chat/completions"),
        ("POST", "/chat/completions", "/v1/chat/completions"),
        ("POST", "/v1/v1/embeddings", "/v1/embeddings"),
        ("GET", "/models", "/v1/models"),
    ],
)
def test_a_route_of_another_api_is_404_with_the_one_to_use(rig, method, path, hint):
    with rig.client() as http:
        answer = http.request(method, path, json={} if method == "POST" else None)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_route"
    assert f"{hint}" in answer.json()["error"]["message"]
