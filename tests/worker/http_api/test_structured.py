"""Structured output and calls of tools: what is asked of the engine, and what clients read."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from fakes.fake_pool import FakePool, Running
from fakes.http_rig import Rig, serving
from llmtaskpool_worker.scheduling.task import Generate, Generated
from llmtaskpool_worker.text import grammar
from pydantic import BaseModel

HI = [{"role": "user", "content": "hi"}]
CHAT = {"model": "echo", "messages": HI, "max_tokens": 64}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "time"}}
TOOLS = [WEATHER, TIME]
CALL = {"name": "weather", "arguments": {"city": "Bonn"}}
TAGGED = f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>"
NAMED = {"type": "function", "function": {"name": "weather"}}


def says(text: str, reason: str = "stop"):
    """A pool whose every answer is ``text``, which comes four letters at a time."""

    async def script(run: Running) -> None:
        run.start()
        pieces = [text[place : place + 4] for place in range(0, len(text), 4)]
        for number, piece in enumerate(pieces):
            run.say(piece, number)
        run.succeed(Generated(text, tuple(range(len(pieces))), 1, reason))

    return serving(lambda clock: FakePool(clock, script=script))


@pytest.fixture(scope="module")
def rig():
    with serving() as running:
        yield running


def grammars(rig: Rig) -> list[str | None]:
    payloads = [request.payload for request in rig.pool.requests]
    return [one.sampling.grammar for one in payloads if isinstance(one, Generate)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, grammar.of_schema({"type": "object"})),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            grammar.of_schema(SCHEMA),
        ),
        ({"structured_outputs": {"json": SCHEMA}}, grammar.of_schema(SCHEMA)),
        ({"structured_outputs": {"regex": "a+"}}, grammar.of_pattern("a+")),
        ({"guided_json": json.dumps(SCHEMA)}, grammar.of_schema(SCHEMA)),
        ({"guided_choice": ["a.b", "c"]}, grammar.of_pattern(r"a\.b|c")),
        ({"tools": TOOLS, "tool_choice": NAMED}, "weather"),
        ({"tools": TOOLS, "tool_choice": "none"}, None),
        ({"tools": TOOLS}, None),
    ],
)
def test_each_way_to_ask_becomes_the_grammar_of_its_task(rig, fields, expected) -> None:
    before = len(grammars(rig))
    assert rig.post("/v1/chat/completions", CHAT | fields).status_code == 200
    if expected == "weather":
        expected = grammar.of_schema(WEATHER["function"]["parameters"])
    assert grammars(rig)[before:] == [expected]


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"response_format": {"type": "xml"}}, "response_format", "xml"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 5}}}},
            "response_format.json_schema.schema",
            "type must be",
        ),
        (
            {"structured_outputs": {"json": {"not": {"type": "string"}}}},
            "structured_outputs.json",
            "not",
        ),
        ({"guided_regex": "(?=a)b"}, "guided_regex", "look-a"),
        ({"guided_json": "{"}, "guided_json", "no JSON schema"),
        ({"structured_outputs": {}}, "structured_outputs", "empty"),
        (
            {"guided_regex": "a", "response_format": {"type": "json_object"}},
            "guided_regex",
            "both given",
        ),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        (
            {"tools": [TIME], "tool_choice": NAMED},
            "tool_choice",
            "weather, which is not among tools",
        ),
        (
            {"tools": TOOLS, "tool_choice": "required", "guided_regex": "a"},
            "guided_regex",
            "send one",
        ),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools", ""),
        ({"logit_bias": {"one": 1}}, "logit_bias", ""),
        ({"logit_bias": {"5": 101}}, "logit_bias", ""),
        ({"logit_bias": {"99999999": 1}}, "logit_bias", "99999999"),
        ({"stop_token_ids": [2_000_000]}, "stop_token_ids", "2000000"),
        ({"min_tokens": 65}, "min_tokens", "max_tokens"),
        ({"repetition_penalty": 0}, "repetition_penalty", "0.01"),
    ],
)
def test_what_can_not_be_followed_is_a_400_that_names_it(rig, fields, param, said) -> None:
    answer = rig.post("/v1/chat/completions", CHAT | fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"].startswith(param), error
    assert said in error["message"]


def test_fields_that_bend_the_draw_reach_the_task(rig) -> None:
    fields: dict[str, Any] = {
        "logit_bias": {"5": -2.5},
        "min_tokens": 3,
        "stop_token_ids": [7, 8],
        "repetition_penalty": 1.3,
    }
    assert rig.post("/v1/chat/completions", CHAT | fields).status_code == 200
    sampling = rig.pool.requests[-1].payload.sampling
    assert sampling.logit_bias == ((5, -2.5),)
    assert (sampling.min_tokens, sampling.stop_token_ids) == (3, (7, 8))
    assert sampling.repetition_penalty == 1.3


def test_tasks_take_formats_and_no_tools(rig) -> None:
    body = {"kind": "chat", "model": "echo", "input": HI}
    arguments = {"max_tokens": 8, "response_format": {"type": "json_object"}}
    assert rig.post("/v1/tasks", body | {"arguments": arguments}).status_code == 202
    assert grammars(rig)[-1] == grammar.of_schema({"type": "object"})
    refused = rig.post("/v1/tasks", body | {"arguments": {"tools": TOOLS}})
    assert refused.status_code == 400
    assert "/v1/chat/completions" in refused.json()["error"]["message"]


def client(rig: Rig) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{rig.url}/v1", api_key="x", max_retries=0, timeout=20)


def test_the_openai_package_parses_its_models() -> None:
    class Answer(BaseModel):
        a: int

    with says('{"a": 5}') as rig, client(rig) as ai:
        done = ai.chat.completions.parse(model="echo", messages=HI, response_format=Answer)
        assert done.choices[0].message.parsed == Answer(a=5)


@pytest.mark.parametrize(
    ("choice", "text", "words", "reason"),
    [
        (
            "auto",
            f"I look.\n<tool_call>\n{json.dumps(CALL)}\n</tool_call>",
            "I look.",
            "tool_calls",
        ),
        ("auto", '{"name": "weather", "parameters": {"city": "Bonn"}}', None, "tool_calls"),
        ("required", json.dumps([CALL]), None, "tool_calls"),
        (NAMED, '{"city": "Bonn"}', None, "stop"),
    ],
)
def test_calls_reach_the_openai_package_whole_and_streamed(choice, text, words, reason) -> None:
    with says(text) as rig, client(rig) as ai:
        asked: dict[str, Any] = {"model": "echo", "messages": HI, "tools": TOOLS}
        asked["tool_choice"] = choice
        whole = ai.chat.completions.create(**asked).choices[0]
        with ai.chat.completions.stream(**asked) as stream:
            streamed = stream.get_final_completion().choices[0]
        for got in (whole, streamed):
            (call,) = got.message.tool_calls
            assert call.function.name == "weather"
            assert json.loads(call.function.arguments) == {"city": "Bonn"}
            assert call.id.startswith("call_")
            assert (got.message.content or None) == words
            assert got.finish_reason == reason


def test_without_a_call_the_answer_is_words() -> None:
    with says("It is cold. <tool") as rig, client(rig) as ai:
        got = ai.chat.completions.create(model="echo", messages=HI, tools=TOOLS).choices[0]
        assert got.message.content == "It is cold. <tool"
        assert got.message.tool_calls is None
        assert got.finish_reason == "stop"
        stream = ai.chat.completions.create(model="echo", messages=HI, tools=TOOLS, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(pieces) == "It is cold. <tool"


def test_a_call_that_is_cut_ends_with_length() -> None:
    with says('[{"name": "weather", "argum', "length") as rig:
        body = CHAT | {"tools": TOOLS, "tool_choice": "required"}
        choice = rig.post("/v1/chat/completions", body).json()["choices"][0]
        assert choice["finish_reason"] == "length"
        assert "tool_calls" not in choice["message"]


def test_a_template_that_knows_no_tools_refuses_auto_and_takes_a_named_one(monkeypatch) -> None:
    monkeypatch.setattr("fakes.http_rig.LetterCodec.reads_tools", lambda _: False)
    with says('{"city": "Bonn"}') as rig:
        refused = rig.post("/v1/chat/completions", CHAT | {"tools": TOOLS})
        assert refused.status_code == 400
        assert 'tool_choice "required"' in refused.json()["error"]["message"]
        named = CHAT | {"tools": TOOLS, "tool_choice": NAMED}
        assert rig.post("/v1/chat/completions", named).status_code == 200
