"""What a client is told of the numbers that a model made of each row: one JSON object. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from struct import unpack_from
from sys import byteorder
from typing import Any

from llmtaskpool_worker.scheduling.task import Evaluate, Spelled

Json = dict[str, Any]


def conclude(kind: str, payload: Evaluate, values: Sequence[Any], about: Mapping[str, Any]) -> Json:
    """The result of a task. ``about`` is what its engine said of the model: its labels."""
    labels: Sequence[str] = about.get("labels", ())
    return _OF_KIND[kind](payload, values, labels)


def _rerank(payload: Evaluate, scores: Sequence[float], _labels: Sequence[str]) -> Json:
    """Documents by falling score; of equal ones the first goes first."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    top = payload.shown.get("top_n") or len(order)
    return {"results": [{"index": i, "relevance_score": scores[i]} for i in order[:top]]}


def _score(_payload: Evaluate, scores: Sequence[float], _labels: Sequence[str]) -> Json:
    data = [{"index": i, "object": "score", "score": score} for i, score in enumerate(scores)]
    return {"data": data}


def _classify(payload: Evaluate, rows: Sequence[Sequence[float]], labels: Sequence[str]) -> Json:
    """vLLM's shape; ``top_k`` adds the best labels with their scores."""
    top = payload.shown.get("top_k")
    data = []
    for index, probs in enumerate(rows):
        order = sorted(range(len(probs)), key=lambda place: -probs[place])
        one: Json = {"index": index, "label": labels[order[0]], "probs": list(probs)}
        one["num_classes"] = len(probs)
        if top:
            one["top"] = [{"label": labels[i], "score": probs[i]} for i in order[:top]]
        data.append(one)
    return {"data": data}


def _tag(payload: Evaluate, rows: Sequence[Any], labels: Sequence[str]) -> Json:
    simple = payload.shown.get("aggregation", "simple") == "simple"
    data = []
    for index, (row, spelled) in enumerate(zip(rows, payload.spelled, strict=True)):
        tokens = _tokens(spelled, row, labels)
        found = _groups(tokens, spelled.text) if simple else tokens
        data.append({"index": index, "entities": [e for e in found if e["label"] != "O"]})
    return {"data": data}


def _tokens(spelled: Spelled, row: Any, labels: Sequence[str]) -> list[Json]:
    """Each token of the text with its label; special tokens are none of it."""
    places, scores = row
    found = []
    for token, (place, score) in enumerate(zip(places, scores, strict=True)):
        start, end = _span(spelled, token)
        if start < end:
            one = {"label": labels[place], "score": score, "start": start, "end": end}
            found.append(one | {"text": spelled.text[start:end]})
    return found


def _groups(tokens: Sequence[Json], text: str) -> list[Json]:
    """Neighbours of one label as one, with the mean of their scores.

    ``B-`` begins another one of its label, ``I-`` goes on with it; labels without either are their
    own. As transformers' aggregation "simple" has it.
    """
    groups: list[list[Json]] = []
    for token in tokens:
        begins, name = _begins(token["label"])
        last = groups[-1][-1] if groups else None
        if last is not None and _begins(last["label"])[1] == name and not begins:
            groups[-1].append(token)
        else:
            groups.append([token])
    return [
        {
            "label": _begins(group[0]["label"])[1],
            "score": sum(token["score"] for token in group) / len(group),
            "start": group[0]["start"],
            "end": group[-1]["end"],
            "text": text[group[0]["start"] : group[-1]["end"]],
        }
        for group in groups
    ]


def _begins(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and the entity's name."""
    if label[:2] in ("B-", "I-"):
        return label.startswith("B-"), label[2:]
    return False, label


def _answer(payload: Evaluate, rows: Sequence[Any], _labels: Sequence[str]) -> Json:
    """The best answers to each question, of all windows of its text."""
    top = payload.shown.get("top_k", 1)
    answers: dict[int, dict[tuple[int, int], float]] = {}
    texts: dict[int, str] = {}
    for spans, row, spelled, group in zip(
        rows, payload.rows, payload.spelled, payload.groups, strict=True
    ):
        found = answers.setdefault(group, {})
        texts[group] = spelled.text
        for first, last, score in spans:
            start = _span(spelled, row.second + first)[0]
            end = _span(spelled, row.second + last)[1]
            found[start, end] = max(score, found.get((start, end), 0.0))  # windows overlap
    data = []
    for index in sorted(answers):
        best = sorted(answers[index].items(), key=lambda one: -one[1])[:top]
        shown = [
            {"answer": texts[index][start:end], "score": score, "start": start, "end": end}
            for (start, end), score in best
        ]
        data.append({"index": index, "answers": shown})
    return {"data": data}


def _detect(_payload: Evaluate, rows: Sequence[Any], _labels: Sequence[str]) -> Json:
    return {"data": [{"index": index, "objects": found} for index, found in enumerate(rows)]}


def _infer(_payload: Evaluate, tensors: Sequence[Json], _labels: Sequence[str]) -> Json:
    """Open Inference Protocol v2: tensors with their numbers in row-major order."""
    outputs = []
    for one in tensors:
        numbers = array(_CODES[one["datatype"]], one["data"])
        if byteorder == "big":
            numbers.byteswap()
        outputs.append({**one, "data": numbers.tolist()})
    return {"outputs": outputs}


_CODES = {"FP32": "f", "FP64": "d", "INT32": "i", "INT64": "q"}


def _span(spelled: Spelled, token: int) -> tuple[int, int]:
    start, end = unpack_from("<2I", spelled.spans, 8 * token)
    return int(start), int(end)


_OF_KIND: Mapping[str, Callable[[Evaluate, Sequence[Any], Sequence[str]], Json]] = {
    "rerank": _rerank,
    "score": _score,
    "classify": _classify,
    "tag": _tag,
    "answer": _answer,
    "detect": _detect,
    "infer": _infer,
}
