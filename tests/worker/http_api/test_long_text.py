"""Results with long texts are the same JSON, though they are made in pieces."""

from __future__ import annotations

import asyncio
import json

import pytest
from llmtaskpool_worker.http_api.long_text import LONG_LETTERS, with_texts_encoded
from llmtaskpool_worker.http_api.sse import encode


@pytest.mark.parametrize("text", ["", "short", 'a"\\\n\x01' * LONG_LETTERS, "ж😀" * LONG_LETTERS])
def test_a_text_of_any_length_is_told_as_it_is(text: str) -> None:
    value = {"name": "n", "content": text, "more": [1, {"deep": text}]}
    task = {"id": "t", "result": {"value": value}}
    told = json.loads(encode(asyncio.run(with_texts_encoded(task))))
    assert told == {"id": "t", "result": {"value": value}}


@pytest.mark.parametrize("result", [None, {"text": "x" * (LONG_LETTERS + 1)}, {"value": [1]}])
def test_other_results_are_left_alone(result: object) -> None:
    task = {"id": "t", "result": result}
    assert asyncio.run(with_texts_encoded(task)) is task
