"""Chunks of a server put together to the whole answer that it would have given."""

from __future__ import annotations

import json

from llmtaskpool_worker.text.forwarded import ForwardedChoice


def whole(*choices: dict, chat: bool = True, usage: dict | None = None):
    made = ForwardedChoice(chat=chat)
    for choice in choices:
        assert json.loads(made.push(choice).choice) == choice
    return made.result("stop", usage, 7)


def test_texts_are_joined_and_names_are_not():
    answer = whole(
        {"delta": {"role": "assistant", "content": ""}},
        {"delta": {"reasoning_content": "let me "}},
        {"delta": {"reasoning_content": "see"}},
        {"delta": {"content": "4"}},
        {"delta": {"content": "2", "refusal": None}, "finish_reason": None},
        {"delta": {}, "finish_reason": "stop", "stop_reason": 5},
    )
    assert answer.value == {
        "message": {"role": "assistant", "content": "42", "reasoning_content": "let me see"},
        "logprobs": None,
        "stop_reason": 5,
        "finish_reason": "stop",
    }


def test_two_tool_calls_in_pieces():
    def call(index, **function):
        return {"delta": {"tool_calls": [{"index": index, "function": function}]}}

    first = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}
    second = {"index": 1, "id": "b", "type": "function", "function": {"name": "g"}}
    answer = whole(
        {"delta": {"role": "assistant", "content": None, "tool_calls": [first]}},
        call(0, arguments='{"x":'),
        call(0, arguments="1}"),
        {"delta": {"tool_calls": [second]}},
        call(1, arguments="{}"),
    )
    message = answer.value["message"]
    assert message["content"] is None
    assert [(c["id"], c["function"]) for c in message["tool_calls"]] == [
        ("a", {"name": "f", "arguments": '{"x":1}'}),
        ("b", {"name": "g", "arguments": "{}"}),
    ]


def test_completions_have_a_text_and_lists_of_logprobs():
    answer = whole(
        {"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": [-1.0], "text_offset": [0]}},
        {"text": "b", "logprobs": {"tokens": ["b"], "token_logprobs": [-2.0], "text_offset": [1]}},
        chat=False,
    )
    assert answer.value["text"] == "ab"
    assert answer.value["logprobs"] == {
        "tokens": ["a", "b"],
        "token_logprobs": [-1.0, -2.0],
        "text_offset": [0, 1],
    }


def test_usage_is_the_server_s_or_counted():
    told = {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}
    assert whole({"text": "a"}, chat=False, usage=told).usage == told
    counted = whole({"text": "a"}, {"text": "b"}, chat=False)
    assert (counted.prompt_tokens, counted.completion_tokens) == (7, 2)


def test_odd_chunks_are_no_error():
    answer = whole(
        {"delta": "text"},
        {"delta": {"tool_calls": ["x", {"function": 5}]}},
        {"logprobs": 5},
        {"delta": {"function_call": {"name": "f", "arguments": "{"}}},
        {"delta": {"function_call": {"arguments": "}"}}},
    )
    assert answer.value["message"]["function_call"] == {"name": "f", "arguments": "{}"}
