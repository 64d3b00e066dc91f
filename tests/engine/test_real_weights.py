"""Real models of packages: what the worker gives is what plain torch gives, and makes sense."""

from __future__ import annotations

import importlib
import io
import sys
import tomllib
from base64 import b64encode
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from llmtaskpool_worker.engines.one_pass.load import load_one_pass
from llmtaskpool_worker.engines.resolve import resolve
from llmtaskpool_worker.kinds import ArgumentsError, CallContext, Kind
from llmtaskpool_worker.kinds.registry import ENTRY_POINT_GROUP, Kinds, load_entry_points
from PIL import Image

from .real_weights import (
    LITE,
    MEAN,
    STD,
    efficientnet,
    mobilenet_weights,
    picture,
    write_efficientnet,
    write_mobilenet,
)
from .test_images import values

pytestmark = pytest.mark.model
FACES = Path(__file__).parents[2] / "examples" / "faces"
PICTURES = ("chelsea.png", "coffee.png", "astronaut.png")


def unpacked(name: str) -> Image.Image:
    return Image.open(io.BytesIO(picture(name))).convert("RGB")


def same(folder: Path, model: torch.nn.Module, transform: Any) -> list[str]:
    """Check all pictures in one request against ``model``; the label of each."""
    assert resolve(str(folder), lambda *_: None) == folder
    loop = load_one_pass(folder, "classify")
    found = values(loop, [picture(name) for name in PICTURES])
    pixels = [transform(unpacked(name)) for name in PICTURES]
    with torch.inference_mode():
        expected = torch.stack([model(one[None])[0].softmax(-1) for one in pixels])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    names = loop.ready().about["labels"]
    return [names[int(np.argmax(one))] for one in found]


def test_mobilenet_sees_what_torchvision_s_sees(tmp_path: Path) -> None:
    model = torchvision.models.mobilenet_v2().eval()
    model.load_state_dict(mobilenet_weights())
    transform = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(256),
            torchvision.transforms.CenterCrop(224),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize(MEAN, STD),
        ]
    )
    seen = same(write_mobilenet(tmp_path), model, transform)
    assert seen[0].startswith("Egyptian cat")
    assert seen[1].startswith("espresso")


def test_efficientnet_lite_sees_what_timm_s_sees(tmp_path: Path) -> None:
    model = efficientnet()
    config = timm.data.resolve_data_config({}, model=timm.create_model(LITE))
    seen = same(write_efficientnet(tmp_path), model, timm.data.create_transform(**config))
    assert "cat" in seen[0]
    assert seen[1].startswith("espresso")


@pytest.fixture
def faces() -> Iterator[Kind]:
    """The kind of the example's package, as the worker registers it once that is installed."""
    sys.path.insert(0, str(FACES))
    told = tomllib.loads((FACES / "pyproject.toml").read_text())
    found = told["project"]["entry-points"][ENTRY_POINT_GROUP].items()
    kinds = Kinds()
    load_entry_points(kinds, [EntryPoint(*one, ENTRY_POINT_GROUP) for one in found])
    kind = kinds.get("faces")
    assert kind is not None
    usual = torch.get_num_threads()
    yield kind
    torch.set_num_threads(usual)
    sys.path.remove(str(FACES))
    del sys.modules["llmtaskpool_faces"]


def test_faces_are_found_by_a_kind_of_a_user_as_mtcnn_finds_them(faces: Kind) -> None:
    given = {"image": b64encode(picture("astronaut.png")).decode()}
    assert faces.check is not None
    faces.check(given)
    found: Any = faces.handler(given, CallContext("t", 0.0))
    (face,) = found["faces"]
    mtcnn = importlib.import_module("facenet_pytorch").MTCNN(keep_all=True)
    boxes, scores = mtcnn.detect(unpacked("astronaut.png"))
    assert face["score"] == pytest.approx(float(scores[0]), abs=1e-6)
    assert list(face["box"].values()) == pytest.approx(boxes[0].tolist(), abs=1e-3)
    assert faces.handler(
        {"image": b64encode(picture("coffee.png")).decode()}, CallContext("u", 0.0)
    ) == {"faces": []}


@pytest.mark.parametrize("image", [None, "%", b64encode(b"no picture").decode()])
def test_a_picture_that_is_none_is_refused_before_its_task_is_accepted(
    faces: Kind, image: Any
) -> None:
    assert faces.check is not None
    with pytest.raises(ArgumentsError, match="image"):
        faces.check({"image": image})
