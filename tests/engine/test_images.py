"""Pictures: equal to what transformers gives for each, and refused before they are unpacked."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes.pictures import bomb, picture
from llmtaskpool_worker.engines.image_files import BadImage, opened
from llmtaskpool_worker.engines.one_pass.load import load_one_pass
from llmtaskpool_worker.engines.one_pass.loop import OnePassLoop
from llmtaskpool_worker.engines.protocol import AdmitInputs, RequestFailed, TextRow, Values
from llmtaskpool_worker.engines.resolve import resolve
from llmtaskpool_worker.engines.sources import SourceRefused
from llmtaskpool_worker.engines.weights import ModelRefused
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    MobileNetV2ImageProcessorPil,
    ViTImageProcessorPil,
    YolosImageProcessorPil,
)

from .answers import told

LABELS = {0: "red", 1: "green", 2: "blue"}
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "initializer_range": 0.3}
CLASSIFIERS: dict[str, tuple[dict[str, Any], Any]] = {
    "vit": (TINY | {"image_size": 32, "patch_size": 8}, ViTImageProcessorPil),
    "mobilenet_v2": ({"depth_multiplier": 0.35, "image_size": 64}, MobileNetV2ImageProcessorPil),
}
PICTURES = [picture(), picture(30, 90, kind="JPEG"), picture(64, 64, color="blue")]


def write_classifier(folder: Path, family: str) -> Path:
    options, processor = CLASSIFIERS[family]
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, id2label=LABELS, **options)
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    size = options["image_size"]
    processor(size={"height": size, "width": size}, do_center_crop=False).save_pretrained(folder)
    return folder


def write_detector(folder: Path) -> Path:
    torch.manual_seed(0)
    options = TINY | {"image_size": [48, 48], "patch_size": 8, "num_detection_tokens": 7}
    config = AutoConfig.for_model("yolos", id2label=LABELS, **options)
    AutoModelForObjectDetection.from_config(config).save_pretrained(folder)
    size = {"shortest_edge": 48, "longest_edge": 64}
    YolosImageProcessorPil(size=size).save_pretrained(folder)
    return folder


def values(loop: OnePassLoop, pictures: list[bytes], **options: Any) -> list[Any]:
    assert loop.accept(AdmitInputs(1, options=options, images=pictures)) == []
    answer = told(loop)[1]
    assert isinstance(answer, Values), answer
    return answer.values


def unpacked(packed: bytes) -> Image.Image:
    return Image.open(io.BytesIO(packed)).convert("RGB")


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_a_classifier_gives_what_transformers_gives_for_each_picture(
    tmp_path: Path, family: str
) -> None:
    folder = write_classifier(tmp_path, family)
    loop = load_one_pass(folder, "classify")
    assert loop.ready().about == {"labels": list(LABELS.values()), "modality": "image"}
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    with torch.inference_mode():
        expected = [
            model(**processor(images=[unpacked(one)], return_tensors="pt")).logits[0].softmax(-1)
            for one in PICTURES
        ]
    np.testing.assert_allclose(values(loop, PICTURES), torch.stack(expected), atol=2e-5)


def test_a_detector_gives_what_transformers_gives_for_each_picture(tmp_path: Path) -> None:
    folder = write_detector(tmp_path)
    found = values(load_one_pass(folder, "detect"), PICTURES, threshold=0.2)
    model = AutoModelForObjectDetection.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    for one, objects in zip(PICTURES, found, strict=True):
        image = unpacked(one)
        with torch.inference_mode():
            out = model(**processor(images=[image], return_tensors="pt"))
        (expected,) = processor.post_process_object_detection(
            out, threshold=0.2, target_sizes=[(image.height, image.width)]
        )
        assert len(expected["scores"]) == len(objects) > 0
        by_score = expected["scores"].argsort(descending=True)
        for place, got in zip(by_score.tolist(), objects, strict=True):
            assert got["label"] == LABELS[int(expected["labels"][place])]
            assert got["score"] == pytest.approx(float(expected["scores"][place]), abs=2e-5)
            box = expected["boxes"][place].tolist()
            np.testing.assert_allclose(list(got["box"].values()), np.trunc(box), atol=1)


def test_a_spoilt_picture_fails_its_request_and_no_other(tmp_path: Path) -> None:
    loop = load_one_pass(write_classifier(tmp_path, "vit"), "classify")
    loop.accept(AdmitInputs(1, images=[PICTURES[0], PICTURES[1][:-300]]))
    loop.accept(AdmitInputs(2, images=[PICTURES[0]]))
    found = told(loop)
    assert isinstance(found[1], RequestFailed)
    assert found[1].code == "invalid"
    assert isinstance(found[2], Values)
    (failed,) = loop.accept(AdmitInputs(3, [TextRow(b"\0\0\0\0")]))
    assert isinstance(failed, RequestFailed)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_kinds_of_pictures_that_are_read(kind: str) -> None:
    assert opened(picture(kind=kind)).size == (60, 40)


@pytest.mark.parametrize(
    ("packed", "said"),
    [
        (bomb(), "pixels"),
        (bomb(6_000, 6_000), "6000 x 6000"),
        (bomb(20_000, 10), "on a side"),
        (b"", "no picture"),
        (b"GIF89a", "no picture"),
        (picture(kind="TIFF"), "no picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no picture"),
    ],
)
def test_what_is_too_large_or_no_picture_is_refused_by_its_header(packed: bytes, said: str) -> None:
    with pytest.raises(BadImage, match=said):
        opened(packed)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "int8"])
def test_a_dtype_is_used_or_refused(tmp_path: Path, dtype: str) -> None:
    folder = write_classifier(tmp_path, "vit")
    if dtype == "int8":
        with pytest.raises(
            ModelRefused,
            match="dtype=int8 is for models that generate, on a CPU: use auto, float32",
        ):
            load_one_pass(folder, "classify", dtype=dtype)
        return
    loop = load_one_pass(folder, "classify", dtype=dtype)
    assert loop.ready().dtype == ("float32" if dtype == "auto" else dtype)
    plain = values(load_one_pass(folder, "classify"), PICTURES)
    np.testing.assert_allclose(values(loop, PICTURES), plain, atol=0.1)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"architecture": "hf-hub:org/evil"}, "none of timm's"),
        ({"architecture": "resnet18", "model_args": {"checkpoint_path": "x.pth"}}, "no numbers"),
        ({"architecture": "resnet18", "model_args": {"pretrained": True}}, "no numbers"),
    ],
)
def test_a_config_of_timm_that_would_load_from_elsewhere_is_refused(
    tmp_path: Path, told: dict[str, Any], said: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {}} | told))
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(SourceRefused, match=said):
        resolve(str(tmp_path), lambda stage, fraction: None)


def test_a_model_without_its_image_processor_is_refused(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path, "vit")
    assert resolve(str(folder), lambda stage, fraction: None) == folder, "it needs no tokenizer"
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelRefused, match=r"preprocessor_config\.json"):
        load_one_pass(folder, "classify")
