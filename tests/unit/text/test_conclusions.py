"""What a client is told of the numbers of a model that runs once over its input."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any

from llmtaskpool_worker.scheduling.task import Evaluate, Row, Spelled
from llmtaskpool_worker.text.conclusions import conclude

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "X"]
TEXT = "Ada Lovelace met Ann in Rome"
WORDS = [(0, 0), (0, 3), (4, 12), (13, 16), (17, 20), (21, 23), (24, 28), (0, 0)]
"""Tokens of TEXT, with a special one at each end."""


def spelled(text: str, spans: Sequence[tuple[int, int]]) -> Spelled:
    return Spelled(text, array("I", chain.from_iterable(spans)).tobytes())


def tagged(labels: Sequence[int], **shown: Any) -> list[dict[str, Any]]:
    payload = Evaluate((Row(b""),), {}, shown, (spelled(TEXT, WORDS),))
    scores = [0.5, 1.0, 0.5, 0.9, 0.8, 0.9, 0.75, 0.5]
    told = conclude("tag", payload, [[list(labels), scores]], {"labels": LABELS})
    return told["data"][0]["entities"]  # type: ignore[no-any-return]


def test_neighbours_of_one_entity_are_told_as_one_with_their_mean_score() -> None:
    assert tagged([1, 1, 2, 0, 1, 0, 3, 1]) == [
        {"label": "PER", "score": 0.75, "start": 0, "end": 12, "text": "Ada Lovelace"},
        {"label": "PER", "score": 0.8, "start": 17, "end": 20, "text": "Ann"},
        {"label": "LOC", "score": 0.75, "start": 24, "end": 28, "text": "Rome"},
    ]


def test_a_beginning_within_a_name_begins_another() -> None:
    assert [one["text"] for one in tagged([0, 1, 1, 0, 0, 0, 0, 0])] == ["Ada", "Lovelace"]


def test_labels_without_a_beginning_go_on() -> None:
    assert [one["text"] for one in tagged([0, 4, 4, 0, 0, 0, 0, 0])] == ["Ada Lovelace"]


def test_without_aggregation_each_token_is_told() -> None:
    found = tagged([1, 1, 2, 0, 0, 0, 0, 0], aggregation="none")
    assert [(one["label"], one["text"]) for one in found] == [
        ("B-PER", "Ada"),
        ("I-PER", "Lovelace"),
    ]


def test_equal_scores_keep_the_order_of_their_documents() -> None:
    payload = Evaluate((Row(b""),) * 3, {}, {"top_n": 2})
    told = conclude("rerank", payload, [1.0, 2.0, 2.0], {})
    assert [one["index"] for one in told["results"]] == [1, 2]


def test_the_best_answer_of_all_windows_is_told_once_where_they_overlap() -> None:
    windows = (spelled(TEXT, WORDS[:5]), spelled(TEXT, [(0, 0), *WORDS[3:]]))
    rows = (Row(b"", 1, 5), Row(b"", 1, 6))
    payload = Evaluate(rows, {}, {"top_k": 2}, windows, (0, 0))
    values = [[[3, 3, 0.4], [0, 1, 0.3]], [[1, 1, 0.6]]]
    told = conclude("answer", payload, values, {})
    assert told["data"] == [
        {
            "index": 0,
            "answers": [
                {"answer": "Ann", "score": 0.6, "start": 17, "end": 20},
                {"answer": "Ada Lovelace", "score": 0.3, "start": 0, "end": 12},
            ],
        }
    ]
