"""Calls of tools found in what a model writes, however the text is cut into pieces."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llmtaskpool_worker.text.tool_calls import (
    Call,
    CallReader,
    FreeCalls,
    ListedCalls,
    More,
    NamedCall,
    Words,
)

NAMES = ("weather", "time")
HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>'
WEATHER = ("weather", {"city": "Bonn"})


def free() -> CallReader:
    return FreeCalls(NAMES)


def read(reader: CallReader, *pieces: str) -> tuple[str, list[tuple[str, object]]]:
    """All words, and the calls with what their arguments came to."""
    words, calls = "", []
    for said in [one for piece in pieces for one in reader.push(piece)] + reader.finish():
        if isinstance(said, Words):
            words += said.text
        elif isinstance(said, Call):
            calls.append((said.name, said.arguments))
        else:
            assert isinstance(said, More)
            name, arguments = calls.pop()
            calls.append((name, arguments + said.arguments))
    return words, [(name, json.loads(text)) for name, text in calls]


@pytest.mark.parametrize(
    ("make", "text", "words", "calls"),
    [
        (free, "No call at all.", "No call at all.", []),
        (free, HERMES, "", [WEATHER]),
        (free, f"I look.\n{HERMES}", "I look.", [WEATHER]),
        (free, f"{HERMES}{HERMES}", "", [WEATHER, WEATHER]),
        (free, HERMES.replace("</tool_call>", ""), "", [WEATHER]),
        (free, HERMES.replace("weather", "unknown"), HERMES.replace("weather", "unknown"), []),
        (free, "<tool_call>no JSON</tool_call>", "<tool_call>no JSON</tool_call>", []),
        (free, "a < b and <tool", "a < b and <tool", []),
        (free, '{"name": "weather", "parameters": {"city": "Bonn"}}', "", [WEATHER]),
        (free, '<|python_tag|>{"name": "weather", "parameters": {"city": "Bonn"}}', "", [WEATHER]),
        (free, '{"city": "Bonn"}', '{"city": "Bonn"}', []),
        (free, '{"name": "weather", "param', '{"name": "weather", "param', []),
        (ListedCalls, '[{"name": "weather", "arguments": {"city": "Bonn"}}]', "", [WEATHER]),
        (
            ListedCalls,
            '[{"name": "weather", "arguments": {"city": "Bo]}\\"nn"}}, '
            '{"name": "time", "arguments": {}}]',
            "",
            [("weather", {"city": 'Bo]}"nn'}), ("time", {})],
        ),
        (ListedCalls, '[{"name": "weather", "arguments": {"ci', "", []),
        (lambda: NamedCall("weather"), '{"city": "Bonn"}', "", [WEATHER]),
    ],
)
def test_calls_and_words_are_told_apart(
    make: Callable[[], CallReader], text: str, words: str, calls: list[tuple[str, object]]
) -> None:
    assert read(make(), text) == (words, calls)
    assert read(make(), *text) == (words, calls), "letter by letter"


@given(
    st.lists(
        st.sampled_from([HERMES, "<", "tool_call>", "</tool_call>", "{", "words ", "\n", '"x"'])
    ),
    st.lists(st.integers(1, 9)),
)
def test_whatever_the_cuts_the_same_is_read(parts: list[str], lengths: list[int]) -> None:
    text = "".join(parts)
    pieces, rest = [], text
    for length in lengths:
        pieces.append(rest[:length])
        rest = rest[length:]
    assert read(free(), *pieces, rest) == read(free(), text)


def test_what_may_be_a_calls_beginning_is_held_back_and_no_more() -> None:
    reader = free()
    assert reader.push("Look: <tool") == [Words("Look: ")]
    assert reader.push("box> and") == [Words("<toolbox> and")]
