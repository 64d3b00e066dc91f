"""Models of tables: registered modules, equal to torch, and what of a folder is refused."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llmtaskpool_worker.engines.one_pass.load import load_one_pass
from llmtaskpool_worker.engines.one_pass.loop import OnePassLoop
from llmtaskpool_worker.engines.protocol import (
    AdmitEmbedding,
    AdmitInputs,
    RequestFailed,
    Step,
    Tensor,
    Values,
)
from llmtaskpool_worker.engines.resolve import resolve
from llmtaskpool_worker.engines.weights import ModelRefused
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.datasets import load_breast_cancer
from torch import nn

MLP: dict[str, Any] = {"module": "mlp", "sizes": [3, 4, 1]}
TOWERS: dict[str, Any] = {"module": "two-tower", "first": [3, 8, 4], "second": [5, 4]}
BAG: dict[str, Any] = {"module": "embedding-bag", "items": 9, "sizes": [4, 2]}


def write(folder: Path, spec: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    (folder / "model.json").write_text(json.dumps(spec))
    save_file(tensors, folder / "model.safetensors")
    return folder


def layers(*sizes: int, prefix: str) -> dict[str, torch.Tensor]:
    made = {}
    for place, (before, after) in enumerate(pairwise(sizes)):
        made[f"{prefix}layers.{place}.weight"] = torch.randn(after, before)
        made[f"{prefix}layers.{place}.bias"] = torch.randn(after)
    return made


def tensor(name: str, numbers: Any, datatype: str = "FP32") -> Tensor:
    kind = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8"}[datatype]
    given = np.asarray(numbers, dtype=kind)
    return Tensor(name, datatype, list(given.shape), given.tobytes())


def run(loop: OnePassLoop, *requests: list[Tensor]) -> list[NDArray[np.float32]]:
    """What each request is answered, all of them sent at once."""
    for place, tensors in enumerate(requests):
        assert loop.accept(AdmitInputs(place, tensors=tensors)) == []
    found: dict[int, NDArray[np.float32]] = {}
    while loop.busy():
        for event in loop.step():
            if isinstance(event, Values):
                (output,) = event.values
                assert (output["name"], output["datatype"]) == ("output", "FP32")
                found[event.id] = np.frombuffer(output["data"], "<f4").reshape(output["shape"])
            else:
                assert isinstance(event, Step), event
    return [found[place] for place in range(len(requests))]


def test_a_scorer_of_risk_trained_on_real_data_scores_as_torch_does(tmp_path: Path) -> None:
    rows, risk = load_breast_cancer(return_X_y=True)
    mean, scale = rows.mean(0), rows.std(0)
    x = torch.tensor((rows - mean) / scale, dtype=torch.float32)
    y = torch.tensor(risk, dtype=torch.float32)[:, None]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(x), y).backward()
        optimizer.step()
    spec = {"module": "mlp", "sizes": [30, 16, 1], "output": "sigmoid"}
    spec |= {"mean": mean.tolist(), "scale": scale.tolist()}
    first, last = model[0], model[2]
    weights = {
        "tower.layers.0.weight": first.weight.detach(),
        "tower.layers.0.bias": first.bias.detach(),
        "tower.layers.1.weight": last.weight.detach(),
        "tower.layers.1.bias": last.bias.detach(),
    }
    loop = load_one_pass(write(tmp_path, spec, weights), "tensor")
    (found,) = run(loop, [tensor("x", rows)])
    with torch.inference_mode():
        expected = torch.sigmoid(model(x)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    right = float(((found[:, 0] > 0.5) == risk).mean())
    assert right > 0.97, "it has learned something"


def test_two_towers_give_the_inner_product_or_the_cosine_of_what_they_make(tmp_path: Path) -> None:
    weights = layers(3, 8, 4, prefix="first.") | layers(5, 4, prefix="second.")
    loop = load_one_pass(write(tmp_path, TOWERS, weights), "tensor")
    user, item = torch.randn(6, 3), torch.randn(6, 5)
    hidden = nn.functional.linear(
        user, weights["first.layers.0.weight"], weights["first.layers.0.bias"]
    )
    one = nn.functional.linear(
        hidden.relu(), weights["first.layers.1.weight"], weights["first.layers.1.bias"]
    )
    other = nn.functional.linear(
        item, weights["second.layers.0.weight"], weights["second.layers.0.bias"]
    )
    (found,) = run(loop, [tensor("first", user), tensor("second", item)])
    np.testing.assert_allclose(found[:, 0], (one * other).sum(-1), rtol=1e-5, atol=1e-5)
    loop = load_one_pass(write(tmp_path, TOWERS | {"normalize": True}, weights), "tensor")
    (found,) = run(loop, [tensor("first", user), tensor("second", item)])
    cosine = nn.functional.cosine_similarity(one, other)
    np.testing.assert_allclose(found[:, 0], cosine, atol=1e-6)


@pytest.mark.parametrize("mode", ["mean", "sum"])
def test_a_bag_of_ids_is_what_torch_makes_of_it_and_an_empty_one_is_nothing(
    tmp_path: Path, mode: str
) -> None:
    weights = {"table.weight": torch.randn(9, 4)} | layers(4, 2, prefix="tower.")
    loop = load_one_pass(write(tmp_path, BAG | {"mode": mode}, weights), "tensor")
    bags = [[1, 5, 5], [8, -1, -1], [-1, -1, -1]]
    short = [[0, 1]]
    found, other = run(loop, [tensor("ids", bags, "INT64")], [tensor("ids", short, "INT64")])
    bag = nn.EmbeddingBag.from_pretrained(weights["table.weight"], mode=mode)
    tower = weights["tower.layers.0.weight"], weights["tower.layers.0.bias"]
    flat, begins = torch.tensor([1, 5, 5, 8, 0, 1]), torch.tensor([0, 3, 4])
    expected = nn.functional.linear(bag(flat, begins), *tower)
    np.testing.assert_allclose(np.concatenate((found[:2], other)), expected, atol=1e-6)
    np.testing.assert_allclose(found[2], tower[1], atol=1e-6)


def test_rows_of_many_requests_share_a_pass_and_each_gets_its_own(tmp_path: Path) -> None:
    loop = load_one_pass(write(tmp_path, MLP, layers(3, 4, 1, prefix="tower.")), "tensor")
    requests = [[tensor("x", np.random.default_rng(n).normal(size=(n + 1, 3)))] for n in range(5)]
    together = run(loop, *requests)
    assert loop.steps == 1
    for given, found in zip(requests, together, strict=True):
        np.testing.assert_allclose(found, run(loop, given)[0], atol=1e-6)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ([], "takes tensors"),
        ([tensor("y", [[1, 2, 3]])], "none of this model's"),
        ([tensor("x", [[1, 2]])], "shape"),
        ([tensor("x", [1, 2, 3])], "shape"),
        ([Tensor("x", "FP32", [1, 3], b"\0" * 8)], "shape"),
        ([Tensor("x", "BOOL", [1, 3], b"\0" * 3)], "none of this model's"),
    ],
)
def test_tensors_that_a_model_does_not_take_are_told(
    tmp_path: Path, tensors: list[Tensor], said: str
) -> None:
    loop = load_one_pass(write(tmp_path, MLP, layers(3, 4, 1, prefix="tower.")), "tensor")
    (failed,) = loop.accept(AdmitInputs(1, tensors=tensors))
    assert isinstance(failed, RequestFailed)
    assert said in failed.message
    (failed,) = loop.accept(AdmitEmbedding(2, [5]))
    assert isinstance(failed, RequestFailed)


def test_an_id_that_no_item_has_is_told(tmp_path: Path) -> None:
    weights = {"table.weight": torch.randn(9, 4)} | layers(4, 2, prefix="tower.")
    loop = load_one_pass(write(tmp_path, BAG, weights), "tensor")
    (failed,) = loop.accept(AdmitInputs(1, tensors=[tensor("ids", [[1, 9]], "INT64")]))
    assert isinstance(failed, RequestFailed)
    assert "below 9" in failed.message


def test_a_row_that_comes_to_nothing_fails_its_request_and_no_other(tmp_path: Path) -> None:
    loop = load_one_pass(write(tmp_path, MLP, layers(3, 4, 1, prefix="tower.")), "tensor")
    loop.accept(AdmitInputs(1, tensors=[tensor("x", [[1, float("inf"), 2], [1, 2, 3]])]))
    loop.accept(AdmitInputs(2, tensors=[tensor("x", [[1, 2, 3]])]))
    told = {e.id: e for e in loop.step() if isinstance(e, Values | RequestFailed)}
    assert isinstance(told[1], RequestFailed)
    assert told[1].code == "not_finite"
    assert isinstance(told[2], Values)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (MLP | {"module": "pickle"}, "pickle"),
        (MLP | {"sizes": [3]}, "sizes"),
        (MLP | {"sizes": [3, 0, 1]}, "sizes"),
        (MLP | {"sizes": [3, 10**6, 10**6]}, "numbers"),
        (MLP | {"sizes": [3, 5, 1]}, "tower.layers.0.bias"),
        (MLP | {"activation": "exec"}, "activation"),
        (MLP | {"code": "x"}, "code"),
        (MLP | {"mean": [1.0]}, "mean"),
        (MLP | {"scale": [1.0, 0.0, 1.0]}, "scale"),
        (TOWERS | {"second": [5, 3]}, "first ends in 4"),
        (BAG | {"items": 0}, "items"),
    ],
)
def test_a_model_json_that_can_not_be_is_refused_with_what_is_wrong(
    tmp_path: Path, spec: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelRefused, match=said):
        load_one_pass(write(tmp_path, spec, layers(3, 4, 1, prefix="tower.")), "tensor")


def test_a_folder_of_a_table_needs_no_tokenizer(tmp_path: Path) -> None:
    folder = write(tmp_path, MLP, layers(3, 4, 1, prefix="tower."))
    assert resolve(str(folder), lambda stage, fraction: None) == folder
