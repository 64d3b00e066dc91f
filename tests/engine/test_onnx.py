"""ONNX models: equal to onnxruntime's own call, in bounds, and never with code beside them."""

from __future__ import annotations

import importlib.util
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
import torch
from fakes.pictures import picture
from llmtaskpool_worker.engines import onnx_files
from llmtaskpool_worker.engines.child import load_loop
from llmtaskpool_worker.engines.one_pass import onnx_tensors
from llmtaskpool_worker.engines.one_pass.load import load_one_pass
from llmtaskpool_worker.engines.one_pass.loop import OnePassLoop
from llmtaskpool_worker.engines.one_pass.onnx_model import OnnxModel
from llmtaskpool_worker.engines.protocol import (
    AdmitInputs,
    RequestFailed,
    Tensor,
    TextRow,
    Values,
)
from llmtaskpool_worker.engines.resolve import resolve
from llmtaskpool_worker.engines.sources import SourceRefused, hub_files
from llmtaskpool_worker.engines.weights import ModelRefused
from onnx import helper
from transformers import AutoConfig, AutoImageProcessor, ViTImageProcessorPil

from .answers import told
from .onnx_models import (
    FLOAT,
    HIDDEN,
    INT64,
    VOCABULARY,
    classifier_of_pictures,
    model,
    node,
    plain,
    ranking,
    reader,
    scorer,
    weights,
)
from .tiny_models import LABELS, write_pair_tokenizer

TEXTS = ([5, 9, 33, 7, 8, 250], [8, 8], [200, 4, 77, 21, 3, 60, 11, 2, 2])
SECOND = 1
"""Where the second text of each row begins."""
PICTURES = [picture(), picture(30, 90, kind="JPEG"), picture(64, 64, color="blue")]


def write(folder: Path, made: onnx.ModelProto, task: str = "tensor") -> Path:
    """A folder as an exporter leaves it: for texts and pictures with what transformers reads."""
    onnx.save_model(made, folder / "model.onnx")
    if task == "pictures":
        config = AutoConfig.for_model("vit", id2label=dict(enumerate(LABELS["classify"])))
        config.architectures = ["ViTForImageClassification"]
        config.save_pretrained(folder)
        ViTImageProcessorPil(size={"height": 40, "width": 40}).save_pretrained(folder)
    elif task != "tensor":
        head = {"embed": "Model", "tag": "ForTokenClassification", "answer": "ForQuestionAnswering"}
        config = AutoConfig.for_model(
            "bert",
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            max_position_embeddings=64,
            id2label=dict(enumerate(LABELS.get(task, ["0", "1"]))),
        )
        config.architectures = [f"Bert{head.get(task, 'ForSequenceClassification')}"]
        config.save_pretrained(folder)
        write_pair_tokenizer(folder, token_types=True)
    return folder


def values(loop: OnePassLoop, message: AdmitInputs) -> list[Any]:
    assert loop.accept(message) == []
    answer = told(loop)[message.id]
    assert isinstance(answer, Values), answer
    return answer.values


def tensor(name: str, numbers: Any) -> Tensor:
    given = np.asarray(numbers)
    kind = {"f4": "FP32", "f8": "FP64", "i8": "INT64"}[given.dtype.str[1:]]
    return Tensor(name, kind, list(given.shape), given.tobytes())


def outputs(answer: Values) -> dict[str, Any]:
    kinds = {"FP32": "<f4", "INT64": "<i8"}
    return {
        one["name"]: np.frombuffer(one["data"], kinds[one["datatype"]]).reshape(one["shape"])
        for one in answer.values
    }


def request(rows: int, width: int = 2) -> dict[str, Any]:
    draw = np.random.default_rng(rows)
    x = draw.normal(size=(rows, 3)).astype("f4")
    return {"x": x, "ids": draw.integers(0, 9, (rows, width))}


def ask(loop: OnePassLoop, number: int, given: dict[str, Any]) -> None:
    tensors = [tensor(name, one) for name, one in given.items()]
    assert loop.accept(AdmitInputs(number, tensors=tensors)) == []


def test_tables_of_many_requests_share_a_run_and_are_what_onnxruntime_gives(tmp_path: Path) -> None:
    loop = load_one_pass(write(tmp_path, scorer()), "tensor")
    about = loop.ready().about
    assert about["inputs"][1] == {"name": "ids", "datatype": "INT64", "shape": [-1, -1]}
    assert [one["name"] for one in about["outputs"]] == ["scores", "place"]
    requests = [request(1), request(4), request(2, width=5)]
    for number, given in enumerate(requests):
        ask(loop, number, given)
    found = told(loop)
    assert loop.steps == 1, "one step for all of them"
    for number, given in enumerate(requests):
        expected = plain(tmp_path / "model.onnx", given)
        got = outputs(found[number])
        np.testing.assert_allclose(got["scores"], expected["scores"], atol=1e-6)
        np.testing.assert_array_equal(got["place"], expected["place"])


def test_numbers_of_another_width_are_brought_to_the_model_s(tmp_path: Path) -> None:
    loop = load_one_pass(write(tmp_path, scorer()), "tensor")
    given = request(3)
    ask(loop, 1, given | {"x": given["x"].astype("f8")})
    expected = plain(tmp_path / "model.onnx", given)["scores"]
    np.testing.assert_allclose(outputs(told(loop)[1])["scores"], expected, atol=1e-6)


def test_rows_that_depend_on_each_other_never_meet_those_of_another_request(tmp_path: Path) -> None:
    loop = load_one_pass(write(tmp_path, ranking()), "tensor")
    requests = [weights(3, 2, seed=n) for n in range(2)]
    for number, x in enumerate(requests):
        ask(loop, number, {"x": x})
    found = told(loop)
    for number, x in enumerate(requests):
        expected = plain(tmp_path / "model.onnx", {"x": x})["share"]
        np.testing.assert_allclose(outputs(found[number])["share"], expected, atol=1e-6)


def test_an_id_that_no_item_has_fails_its_request_and_no_other(tmp_path: Path) -> None:
    loop = load_one_pass(write(tmp_path, scorer()), "tensor")
    good, bad = request(2), request(2)
    ask(loop, 1, bad | {"ids": bad["ids"] + 99})
    ask(loop, 2, good)
    found = told(loop)
    assert isinstance(found[1], RequestFailed)
    assert (found[1].code, "out of range" in found[1].message) == ("invalid", True)
    assert isinstance(found[2], Values)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"x": weights(1, 3)}, "ids is missing"),
        ({"x": weights(2, 3), "ids": np.array([[1]])}, "different numbers of rows"),
        ({"x": weights(1, 4), "ids": np.array([[1]])}, "shape"),
        ({"x": weights(3), "ids": np.array([[1]])}, "shape"),
        ({"y": weights(1, 3)}, "none of this model's"),
    ],
)
def test_tensors_that_an_onnx_model_does_not_take_are_told(
    tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    loop = load_one_pass(write(tmp_path, scorer()), "tensor")
    tensors = [tensor(name, one) for name, one in given.items()]
    (failed,) = loop.accept(AdmitInputs(1, tensors=tensors))
    assert isinstance(failed, RequestFailed)
    assert said in failed.message


def test_tensors_beyond_what_memory_holds_are_refused_with_the_numbers(tmp_path: Path) -> None:
    loop = load_one_pass(write(tmp_path, scorer()), "tensor")
    loop.head.fit_into(128 << 10)
    most = loop.head.most_numbers
    assert 5 <= most <= 128 << 10, "what it was measured to hold"
    fits = request(most // 5)  # three numbers and two ids of each row
    ask(loop, 1, fits)
    expected = plain(tmp_path / "model.onnx", fits)["scores"]
    np.testing.assert_allclose(outputs(told(loop)[1])["scores"], expected, atol=1e-6)
    tensors = [tensor(name, one) for name, one in request(most // 5 + 1).items()]
    (failed,) = loop.accept(AdmitInputs(2, tensors=tensors))
    assert isinstance(failed, RequestFailed)
    assert (failed.id, failed.code) == (2, "too_large")
    assert f"{5 * (most // 5 + 1)} numbers, and memory holds {most} here: send" in failed.message


def test_outputs_that_no_answer_holds_fail_their_request_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = load_one_pass(write(tmp_path, scorer()), "tensor")
    ten_rows = 10 * (4 * 4 + 8)  # of each four scores and a place
    monkeypatch.setattr(onnx_tensors, "ANSWER_BYTES", ten_rows)
    ask(loop, 1, request(11))
    ask(loop, 2, request(10))
    found = told(loop)
    assert isinstance(found[1], RequestFailed)
    assert found[1].code == "too_large"
    assert f"264 bytes, and {ten_rows} are answered at once: send" in found[1].message
    assert isinstance(found[2], Values)


def expected_of(task: str, file: Path, text: list[int]) -> Any:
    """What the task's head makes of onnxruntime's own answer for one text, alone."""
    types = [int(place >= SECOND) for place in range(len(text))]
    given = {"input_ids": text, "attention_mask": [1] * len(text), "token_type_ids": types}
    found = plain(file, {name: np.array([one]) for name, one in given.items()})
    if task == "embed":
        mean = found["last_hidden_state"][0].mean(0)
        return mean / np.linalg.norm(mean)
    logits = torch.from_numpy(found["logits"][0])
    if task == "rerank":
        return float(torch.sigmoid(logits)[0])
    return torch.softmax(logits, -1).numpy()


@pytest.mark.parametrize("task", ["embed", "rerank", "classify", "tag", "answer"])
def test_texts_beside_each_other_are_what_onnxruntime_gives_for_each_alone(
    tmp_path: Path, task: str
) -> None:
    labels = len(LABELS.get(task, ["0", "1"]))
    folder = write(tmp_path, reader(task, labels), task)
    assert resolve(str(folder), lambda *_: None) == folder
    loop = load_one_pass(folder, task)
    assert loop.ready().context_length == 64
    rows = [TextRow(array("I", text).tobytes(), SECOND, len(text)) for text in TEXTS]
    found = values(loop, AdmitInputs(1, rows))
    assert loop.steps == 1
    for text, one in zip(TEXTS, found, strict=True):
        if task == "answer":
            (first, last, score) = one[0]
            assert 0 <= first <= last < len(text)
            assert 0 < score <= 1
            continue
        expected = expected_of(task, folder / "model.onnx", text)
        if task == "embed":
            one = np.frombuffer(one, "<f4")
        if task == "tag":
            assert one[0] == expected.argmax(-1).tolist()
            one, expected = one[1], expected.max(-1)
        np.testing.assert_allclose(one, expected, atol=1e-5)


@pytest.mark.parametrize("rows", ["pictures", 1])
def test_pictures_are_what_onnxruntime_gives_for_each(tmp_path: Path, rows: Any) -> None:
    folder = write(tmp_path, classifier_of_pictures(3, rows=rows), "pictures")
    assert resolve(str(folder), lambda *_: None) == folder
    loop = load_one_pass(folder, "classify")
    assert loop.ready().about == {"labels": LABELS["classify"], "modality": "image"}
    found = values(loop, AdmitInputs(1, images=PICTURES))
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    from llmtaskpool_worker.engines.image_files import opened

    for one, got in zip(PICTURES, found, strict=True):
        pixels = processor(images=[opened(one).convert("RGB")], return_tensors="np")
        logits = plain(folder / "model.onnx", {"pixel_values": pixels["pixel_values"]})["logits"]
        np.testing.assert_allclose(got, torch.from_numpy(logits[0]).softmax(-1), atol=1e-5)


def test_it_computes_with_as_many_threads_as_torch_and_no_more(tmp_path: Path) -> None:
    file = write(tmp_path, scorer()) / "model.onnx"
    usual, process = torch.get_num_threads(), psutil.Process()
    grown = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            before = process.num_threads()
            kept = OnnxModel(file)
            kept.run(request(2))
            grown.append(process.num_threads() - before)
    finally:
        torch.set_num_threads(usual)
    assert grown == [0, 2], "who runs it is one of them"


def custom() -> Any:
    ends = ("x", FLOAT, ["rows", 3]), ("y", FLOAT, ["rows", 3])
    return model([node("Steal", "x", "y", domain="elsewhere")], ends[:1], ends[1:])


def custom_in_a_branch() -> Any:
    ends = ("flag", INT64, ["rows"]), ("y", FLOAT, ["rows"])
    value = [helper.make_tensor_value_info("y", FLOAT, None)]
    stolen = helper.make_graph([node("Steal", "", "y", domain="elsewhere")], "b", [], value)
    both = {"then_branch": stolen, "else_branch": stolen}
    return model([node("If", "flag", "y", **both)], ends[:1], ends[1:])


def reads(location: str, **told: str) -> Any:
    made = scorer()
    one = made.graph.initializer[0]
    one.ClearField("raw_data")
    one.data_location = one.EXTERNAL
    for key, value in ({"location": location} | told).items():
        entry = one.external_data.add()
        entry.key, entry.value = key, value
    return made


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (custom(), "Steal is of elsewhere, a library, and code"),
        (custom_in_a_branch(), "Steal is of elsewhere, a library, and code"),
        (reads("../secret"), "no file beside it"),
        (reads("/etc/passwd"), "no file beside it"),
        (reads("*/_ORT_MEM_ADDR_/*", offset="140000"), "no file beside it"),
        (reads(".."), "no file beside it"),
        (reads("missing.bin"), "no file beside it"),
        (reads("there.bin", offset="100", length="144"), "cut off"),
        (reads("there.bin", offset="-4"), "cut off"),
    ],
)
def test_code_and_files_from_elsewhere_are_refused(tmp_path: Path, made: Any, said: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(1000))
    (folder / "there.bin").write_bytes(bytes(200))
    with pytest.raises(SourceRefused, match=said):
        resolve(str(write(folder, made)), lambda *_: None)


def test_numbers_in_a_file_beside_it_are_read(tmp_path: Path) -> None:
    plainly = scorer()
    onnx.save_model(
        plainly,
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=100,
    )
    resolve(str(tmp_path), lambda *_: None)
    loop = load_one_pass(tmp_path, "tensor")
    ask(loop, 1, request(2))
    expected = plain(tmp_path / "model.onnx", request(2))["scores"]
    np.testing.assert_allclose(outputs(told(loop)[1])["scores"], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda whole: whole[: len(whole) // 2], "cut off, spoilt"),
        (lambda _: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(tmp_path: Path, spoil: Any, said: str) -> None:
    file = write(tmp_path, scorer()) / "model.onnx"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(SourceRefused, match=said):
        resolve(str(tmp_path), lambda *_: None)


@pytest.mark.parametrize("missing", ["onnxruntime", "onnx"])
def test_without_the_extra_the_remedy_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    def find(name: str) -> Any:
        return None if name == missing else importlib.util.find_spec(name)

    monkeypatch.setattr(onnx_files, "find_spec", find)
    with pytest.raises(SourceRefused, match=rf"{missing} is not .*llmtaskpool\[onnx\]") as refused:
        resolve(str(write(tmp_path, scorer())), lambda *_: None)
    assert not refused.value.may_pass


def lists() -> Any:
    """What scikit-learn's classifiers give unless told otherwise: a map for each row."""
    made = scorer()
    made.graph.output[1].type.sequence_type.elem_type.map_type.key_type = INT64
    kind = made.graph.output[1].type.sequence_type.elem_type.map_type.value_type
    kind.tensor_type.elem_type = FLOAT
    zipped = helper.make_node(
        "ZipMap", ["scores"], ["place"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3]
    )
    del made.graph.node[-1]
    made.graph.node.append(zipped)
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return made


@pytest.mark.parametrize(
    ("made", "task", "asked", "said"),
    [
        (scorer(), "generate", {}, "task=generate writes token by token"),
        (scorer(), "embed", {}, "config.json is missing"),
        (scorer(), "tensor", {"device": "cuda"}, "run on the CPU"),
        (scorer(), "tensor", {"dtype": "bfloat16"}, "as its file says"),
        (lists(), "tensor", {}, "zipmap=False"),
        (model([node("Nonsense", "x", "y")], [("x", FLOAT, [1])], [("y", FLOAT, [1])]),
         "tensor", {}, "onnxruntime .* can't load"),
        (reader("embed", sizes=(1, 8)), "embed", {}, "dynamic axes"),
        (reader("classify", 4), "classify", {}, "of different models"),
        (reader("embed"), "classify", {}, "needs the output logits|different models"),
        (ranking(), "embed", {}, "attention_mask"),
        (classifier_of_pictures(4), "pictures", {}, "of different models"),
        (classifier_of_pictures(3, rows=7), "pictures", {}, "dynamic first axis"),
    ],
)  # fmt: skip
def test_what_an_onnx_model_can_not_be_is_told_at_load(
    tmp_path: Path, made: Any, task: str, asked: dict[str, Any], said: str
) -> None:
    bare = made.graph.name == scorer().graph.name and said.startswith("config")
    write(tmp_path, made, "tensor" if bare else task)
    served = "classify" if task == "pictures" else task
    with pytest.raises(ModelRefused, match=said):
        load_loop(served, tmp_path, 1, dict(asked))


def test_safetensors_come_first_and_a_hub_is_asked_for_one_of_the_two() -> None:
    both = ["config.json", "model.safetensors", "onnx/model.onnx"]
    assert not any(one.endswith(".onnx") for one in hub_files(both))
    assert "onnx/model.onnx" in hub_files(["config.json", "onnx/model.onnx"])
