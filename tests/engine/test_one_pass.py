"""Models that run once over their input: equal to the plain call of transformers, row by row."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llmtaskpool_worker.engines.one_pass.load import load_one_pass
from llmtaskpool_worker.engines.one_pass.loop import OnePassLoop
from llmtaskpool_worker.engines.protocol import (
    Admit,
    AdmitEmbedding,
    AdmitInputs,
    Cancel,
    Finished,
    FromEngine,
    RequestFailed,
    SetThreads,
    Step,
    TextRow,
    Values,
    Vector,
)
from llmtaskpool_worker.engines.weights import ModelRefused

from .tiny_models import ENCODERS, HEADS, LABELS, write_headed

LENGTHS = (3, 40, 7, 120, 7, 64)
CLOSE = 2e-5

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def headed(tmp_path_factory: pytest.TempPathFactory) -> Write:
    written: dict[str, Path] = {}

    def folder(task: str, family: str = "bert", **options: Any) -> Path:
        name = f"{task}-{family}-{options}"
        if name not in written:
            made = tmp_path_factory.mktemp("headed")
            written[name] = write_headed(made, task, family, **options)
        return written[name]

    return folder


def texts(seed: int = 0) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(2, 250, length).tolist() for length in LENGTHS]


def row(tokens: Sequence[int], second: int = 0, end: int = 0) -> TextRow:
    return TextRow(array("I", tokens).tobytes(), second, end or len(tokens))


def run(loop: OnePassLoop) -> list[FromEngine]:
    events: list[FromEngine] = []
    while loop.busy():
        events += loop.step()
    return events


def values(loop: OnePassLoop, rows: Sequence[TextRow], **options: Any) -> list[Any]:
    assert loop.accept(AdmitInputs(1, list(rows), options)) == []
    (answer,) = [event for event in run(loop) if not isinstance(event, Step)]
    assert isinstance(answer, Values), answer
    return answer.values


def plain(folder: Path, task: str) -> Any:
    return HEADS[task].from_pretrained(folder, local_files_only=True).eval()


def reference(
    folder: Path, task: str, tokens: Sequence[Sequence[int]], types: Sequence[Sequence[int]] = ()
) -> list[Any]:
    """What the plain model gives for each text alone."""
    model = plain(folder, task)
    given = [{"token_type_ids": torch.tensor([one])} for one in types] or [{}] * len(tokens)
    with torch.inference_mode():
        return [
            model(input_ids=torch.tensor([one]), **more)
            for one, more in zip(tokens, given, strict=True)
        ]


@pytest.mark.parametrize("family", ENCODERS)
def test_a_classifier_of_any_family_gives_what_transformers_gives(
    headed: Write, family: str
) -> None:
    folder = headed("classify", family)
    found = values(load_one_pass(folder, "classify"), [row(one) for one in texts()])
    expected = [out.logits[0].softmax(-1) for out in reference(folder, "classify", texts())]
    np.testing.assert_allclose(found, torch.stack(expected), atol=CLOSE)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_texts_of_these_families_are_run_without_padding(headed: Write, family: str) -> None:
    head: Any = load_one_pass(headed("classify", family), "classify").head
    assert head.cost([3, 100]) == 103


def test_positions_with_a_bias_of_their_own_are_run_with_padding(headed: Write) -> None:
    head: Any = load_one_pass(headed("classify", "mpnet"), "classify").head
    assert head.cost([3, 100]) == 200


def test_a_cross_encoder_scores_pairs_as_it_was_trained_to(headed: Write) -> None:
    folder = headed("rerank")
    loop = load_one_pass(folder, "rerank")
    rows = [row(one, second=2) for one in texts()]
    types = [[0] * 2 + [1] * (len(one) - 2) for one in texts()]
    expected = [float(out.logits) for out in reference(folder, "rerank", texts(), types)]
    found = values(loop, rows, use_activation=False)
    np.testing.assert_allclose(found, expected, atol=CLOSE)
    sigmoid = torch.sigmoid(torch.tensor(expected))
    np.testing.assert_allclose(values(loop, rows), sigmoid, atol=CLOSE)


def test_a_cross_encoder_that_says_identity_gives_its_logits(tmp_path: Path) -> None:
    folder = write_headed(tmp_path, "rerank")
    config = json.loads((folder / "config.json").read_text())
    config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    (folder / "config.json").write_text(json.dumps(config))
    loop = load_one_pass(folder, "rerank")
    rows = [row(one) for one in texts()]
    assert values(loop, rows) == values(loop, rows, use_activation=False)


def test_several_labels_may_be_true_at_once(headed: Write) -> None:
    folder = headed("classify", problem_type="multi_label_classification")
    found = values(load_one_pass(folder, "classify"), [row(one) for one in texts()])
    expected = [out.logits[0].sigmoid() for out in reference(folder, "classify", texts())]
    np.testing.assert_allclose(found, torch.stack(expected), atol=CLOSE)


def test_tags_of_each_token_are_those_of_transformers(headed: Write) -> None:
    folder = headed("tag")
    loop = load_one_pass(folder, "tag")
    assert loop.ready().about == {"labels": LABELS["tag"]}
    found = values(loop, [row(one) for one in texts()])
    for (places, scores), out in zip(found, reference(folder, "tag", texts()), strict=True):
        best = out.logits[0].softmax(-1).max(-1)
        assert places == best.indices.tolist()
        np.testing.assert_allclose(scores, best.values, atol=CLOSE)


def test_answers_are_the_spans_that_transformers_pipeline_finds(headed: Write) -> None:
    folder = headed("answer")
    rows = [row(one, second=2, end=len(one) - 1) for one in texts()]
    types = [[0] * 2 + [1] * (len(one) - 2) for one in texts()]
    found = values(load_one_pass(folder, "answer"), rows, top_k=3)
    for spans, out, tokens in zip(
        found, reference(folder, "answer", texts(), types), texts(), strict=True
    ):
        assert spans == expected_spans(out, 2, len(tokens) - 1, top=3)


def expected_spans(out: Any, second: int, end: int, *, top: int) -> Any:
    """As of transformers' QuestionAnsweringPipeline: a softmax over the context and [CLS]."""
    away = torch.full_like(out.start_logits[0], -10_000.0)
    allowed = [0, *range(second, end)]
    begins, ends = away.clone(), away.clone()
    begins[allowed], ends[allowed] = out.start_logits[0][allowed], out.end_logits[0][allowed]
    begins, ends = begins.softmax(-1), ends.softmax(-1)
    all_spans = [
        (float(begins[first] * ends[last]), first - second, last - second)
        for first in range(second, end)
        for last in range(first, min(first + 15, end))
    ]
    best = sorted(all_spans, reverse=True)[:top]
    return [[first, last, pytest.approx(score, abs=CLOSE)] for score, first, last in best]


def test_a_model_that_embeds_gives_cosines_of_pairs(headed: Write) -> None:
    loop = load_one_pass(headed("embed"), "embed")
    given = texts()
    for place, tokens in enumerate(given):
        loop.accept(AdmitEmbedding(place, tokens))
    vectors = {
        event.id: np.frombuffer(event.vector, "<f4")
        for event in run(loop)
        if isinstance(event, Vector)
    }
    pairs = [[0, 1], [2, 4], [3, 3]]
    found = values(loop, [row(one) for one in given], pairs=pairs)
    np.testing.assert_allclose(found, [vectors[a] @ vectors[b] for a, b in pairs], atol=1e-6)
    assert found[2] == pytest.approx(1.0, abs=1e-6)


def test_a_step_takes_rows_of_all_requests_in_turn_and_no_more_than_its_budget(
    headed: Write,
) -> None:
    loop = load_one_pass(headed("classify"), "classify")
    loop.head.budget = 100
    loop.accept(AdmitInputs(1, [row([5] * 10)] * 50))
    loop.accept(AdmitInputs(2, [row([5] * 10)] * 3))
    loop.accept(AdmitInputs(3, [row([5] * 200)]))
    steps = [event for event in run(loop) if isinstance(event, Step)]
    assert all(step.prefill_tokens <= 100 or step.ran == [3] for step in steps)
    assert [3] in [step.ran for step in steps[:3]], "one that fills a step is not put off"
    assert {2} <= set(steps[0].ran), "a request of many rows holds up none"
    assert [len(step.ran) for step in steps].count(10) >= 4


def test_a_row_that_comes_to_nothing_fails_its_request_and_no_other(headed: Write) -> None:
    loop = load_one_pass(headed("classify"), "classify")
    head: Any = loop.head
    named = dict(head.encoder.model.named_parameters())
    (embeddings,) = [one for name, one in named.items() if "word_embeddings" in name]
    with torch.inference_mode():
        embeddings[77] = float("nan")
    loop.accept(AdmitInputs(1, [row([5, 6]), row([5, 77, 6]), row([8])]))
    loop.accept(AdmitInputs(2, [row([5, 6])]))
    told = {e.id: e for e in run(loop) if isinstance(e, Values | RequestFailed)}
    assert isinstance(told[1], RequestFailed)
    assert told[1].code == "not_finite"
    assert isinstance(told[2], Values)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (AdmitInputs(1, []), "empty_prompt"),
        (AdmitInputs(1, [row([5]), row([])]), "empty_prompt"),
        (AdmitInputs(1, [row([5] * 257)]), "context_length_exceeded"),
        (AdmitInputs(1, [row([300])]), "token_out_of_range"),
        (AdmitInputs(1, [TextRow(row([5, 6]).tokens, 3, 2)]), "token_out_of_range"),
        (AdmitEmbedding(1, [5]), "wrong_model"),
        (Admit(1, [5], 4), "wrong_model"),
    ],
)
def test_what_can_not_be_run_is_told_at_once(headed: Write, message: Any, code: str) -> None:
    loop = load_one_pass(headed("classify"), "classify")
    (failed,) = loop.accept(message)
    assert isinstance(failed, RequestFailed)
    assert failed.code == code
    assert not loop.busy()


def test_a_cancelled_request_is_told_so_and_its_rows_are_not_run(headed: Write) -> None:
    loop = load_one_pass(headed("classify"), "classify")
    loop.head.budget = 1024
    loop.accept(SetThreads(1))
    for request_id in (1, 2, 3):
        loop.accept(AdmitInputs(request_id, [row([5] * 200)] * 9))
    first = loop.step()
    loop.accept(Cancel(1))
    loop.accept(Cancel(3))
    events = [*first, *run(loop)]
    steps = [event for event in events if isinstance(event, Step)]
    ends = [end for step in steps for end in step.finished]
    assert ends == [Finished(1, "cancelled"), Finished(3, "cancelled")]
    assert [step.ran.count(3) for step in steps] == [0] * len(steps)
    assert [event.id for event in events if isinstance(event, Values)] == [2]


def test_the_context_of_a_roberta_ends_where_its_positions_do(headed: Write) -> None:
    loop = load_one_pass(headed("classify", "roberta"), "classify")
    longest = loop.ready().context_length
    assert longest == 254, "two of its 256 positions are for padding"
    assert len(values(loop, [row([5] * longest)])) == 1


@pytest.mark.parametrize(
    ("made_for", "task", "said"),
    [
        ("embed", "classify", "ForSequenceClassification"),
        ("classify", "tag", "ForTokenClassification"),
        ("tag", "answer", "ForQuestionAnswering"),
        ("classify", "rerank", "add task=classify"),
    ],
)
def test_a_model_for_another_task_is_refused_with_the_remedy(
    headed: Write, made_for: str, task: str, said: str
) -> None:
    with pytest.raises(ModelRefused, match=said):
        load_one_pass(headed(made_for), task)


def test_a_pooler_that_no_head_reads_may_be_in_the_file(tmp_path: Path, headed: Write) -> None:
    from safetensors.torch import load_file, save_file

    write_headed(tmp_path, "answer")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file) | {"bert.pooler.dense.weight": torch.zeros(48, 48)}
    save_file(tensors, file, metadata={"format": "pt"})
    assert load_one_pass(tmp_path, "answer").ready().context_length == 256
