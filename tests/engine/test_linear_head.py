"""A linear layer over a model that embeds, as a classifier: equal to torch, and what is refused."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from llmtaskpool_worker.engines.one_pass.load import load_one_pass
from llmtaskpool_worker.engines.protocol import AdmitInputs, TextRow, Values
from llmtaskpool_worker.engines.weights import ModelRefused
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from .tiny_models import write_headed

LABELS = ["calm", "angry", "sad"]
TEXTS = ([5, 9, 33, 7], [8, 8], [200, 4, 77, 21, 3, 60, 11])


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_headed(tmp_path_factory.mktemp("embedder"), "embed")
    torch.manual_seed(4)
    save_file({"weight": torch.randn(3, 48), "bias": torch.randn(3)}, folder / "head.safetensors")
    return folder


def told(folder: Path, **names: Any) -> list[list[float]]:
    (folder / "head.json").write_text(json.dumps({"labels": LABELS} | names))
    loop = load_one_pass(folder, "classify")
    assert loop.ready().about["labels"] == LABELS
    rows = [TextRow(array("I", text).tobytes(), 0, len(text)) for text in TEXTS]
    assert loop.accept(AdmitInputs(1, rows)) == []
    found: list[Any] = []
    while loop.busy():
        found += [event.values for event in loop.step() if isinstance(event, Values)]
    return list(found[0])


@pytest.mark.parametrize(
    ("names", "activation"),
    [
        ({}, torch.nn.Softmax(-1)),
        ({"several": True}, torch.nn.Sigmoid()),
        ({"normalize": False}, torch.nn.Softmax(-1)),
    ],
)
def test_its_numbers_are_those_of_torch_over_the_model_s_vectors(
    embedder: Path, names: dict[str, Any], activation: torch.nn.Module
) -> None:
    model, head = AutoModel.from_pretrained(embedder), load_file(embedder / "head.safetensors")
    for text, found in zip(TEXTS, told(embedder, **names), strict=True):
        with torch.inference_mode():
            vector = model(torch.tensor([text])).last_hidden_state[0].mean(0)
            if names.get("normalize", True):
                vector = torch.nn.functional.normalize(vector, dim=0)
            expected = activation(head["weight"] @ vector + head["bias"])
        assert found == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("names", "tensors", "says"),
    [
        (None, {}, r'head.json is missing.*"labels"'),
        ({"labels": []}, {}, "needs labels, each of them once"),
        ({"labels": ["a", "a", "b"]}, {}, "needs labels, each of them once"),
        ({"labels": LABELS, "kind": 1}, {}, "unknown field `kind`"),
        ({"labels": LABELS[:2]}, {}, r"bias of head.safetensors is \(3,\), and 2 labels"),
        ({"labels": LABELS}, {"more": torch.ones(1)}, "none of that name"),
        ({"labels": LABELS}, {"bias": torch.full((3,), torch.nan)}, "no numbers"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_with_the_remedy(
    embedder: Path, tmp_path: Path, names: Any, tensors: dict[str, Any], says: str
) -> None:
    for file in embedder.iterdir():
        if file.name not in ("head.json", "head.safetensors"):
            (tmp_path / file.name).symlink_to(file)
    save_file(load_file(embedder / "head.safetensors") | tensors, tmp_path / "head.safetensors")
    if names is not None:
        (tmp_path / "head.json").write_text(json.dumps(names))
    with pytest.raises(ModelRefused, match=says):
        load_one_pass(tmp_path, "classify")
