"""From a picture to the numbers that a model takes: resized, cropped and scaled, each once.

transformers' image processors go from Pillow to an array and back at each of these steps, which
takes as long as a small model. The same numbers come of Pillow alone and one product. Which steps
there are is asked of the processor, and whether the numbers are its own is found out at load, with
pictures of odd sizes; where they aren't, it is called as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

NAMES = ("pixel_values", "pixel_mask")
"""What a processor gives that a model takes."""
SAMPLES = ((97, 61), (40, 33), (301, 512), (224, 224))
"""Width and height of the pictures that both are tried with: wide, small, high, square."""
TOLERANCE = 1e-5
"""Numbers are about 1: the two round in another order."""

Pixels = Callable[[Image.Image], Mapping[str, Tensor]]
"""Of a picture in RGB: tensors with one row each."""


@dataclass(frozen=True, slots=True)
class Steps:
    """What becomes of a picture. ``short``: of its shorter side; ``size``, ``crop``: (w, h)."""

    resample: Image.Resampling
    short: int | None
    size: tuple[int, int] | None
    crop: tuple[int, int] | None
    factor: Tensor
    less: Tensor

    def __call__(self, picture: Image.Image) -> Mapping[str, Tensor]:
        """x * factor - less, for each of the three colours."""
        if (size := self._resized(picture.size)) is not None:
            picture = picture.resize(size, self.resample)
        if self.crop is not None:
            picture = picture.crop(_middle(picture.size, self.crop))
        numbers = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
        return {"pixel_values": numbers.float().mul_(self.factor).sub_(self.less)}

    def takes(self, picture: Image.Image) -> bool:
        """Whether it is large enough: what is cropped beyond its borders is left to others."""
        width, height = self._resized(picture.size) or picture.size
        return self.crop is None or (width >= self.crop[0] and height >= self.crop[1])

    def _resized(self, size: tuple[int, int]) -> tuple[int, int] | None:
        if self.short is None:
            return self.size
        width, height = size
        if width <= height:
            return self.short, int(self.short * height / width)
        return int(self.short * width / height), self.short


def pixels_of(processor: Any) -> Pixels:
    """The steps of an image processor of transformers, or the processor itself."""

    def processed(picture: Image.Image) -> Mapping[str, Tensor]:
        given = processor(images=[picture], return_tensors="pt")
        return {name: given[name] for name in NAMES if name in given}

    steps = _steps(processor)
    if steps is None or not all(_equal(steps, processed, *size) for size in SAMPLES):
        return processed
    return lambda picture: steps(picture) if steps.takes(picture) else processed(picture)


def _steps(processor: Any) -> Steps | None:
    """What a processor says that it does; None where that is more than these steps."""

    def said(name: str, usual: Any = None) -> Any:
        return getattr(processor, name, usual)

    if getattr(processor, "backend", None) != "pil" or said("do_pad"):
        return None
    try:
        short, size = _size(said("size")) if said("do_resize") else (None, None)
        crop = _size(said("crop_size"))[1] if said("do_center_crop") else None
        scale = float(said("rescale_factor")) if said("do_rescale") else 1.0
        normal = bool(said("do_normalize"))
        mean, std = (
            torch.tensor(said(name) if normal else [usual] * 3, dtype=torch.float64)
            for name, usual in (("image_mean", 0.0), ("image_std", 1.0))
        )
        colours = (1, 3, 1, 1)
        return Steps(
            Image.Resampling(int(said("resample", Image.Resampling.BILINEAR))),
            short,
            size,
            crop,
            (scale / std).float().reshape(colours),
            (mean / std).float().reshape(colours),
        )
    except (TypeError, ValueError, KeyError, RuntimeError):
        return None


def _size(told: Any) -> tuple[int | None, tuple[int, int] | None]:
    """The length of the shorter side, or width and height. Raises ValueError for other sizes."""
    sizes = {name: value for name, value in dict(told).items() if value is not None}
    if sizes.keys() == {"shortest_edge"}:
        return int(sizes["shortest_edge"]), None
    if sizes.keys() == {"height", "width"}:
        return None, (int(sizes["width"]), int(sizes["height"]))
    raise ValueError(str(sizes))


def _middle(size: tuple[int, int], crop: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top = (size[0] - crop[0]) // 2, (size[1] - crop[1]) // 2
    return left, top, left + crop[0], top + crop[1]


def _equal(steps: Steps, processed: Pixels, width: int, height: int) -> bool:
    draw = np.random.default_rng(0)
    picture = Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
    if not steps.takes(picture):
        return True
    expected, found = processed(picture), steps(picture)
    return expected.keys() == found.keys() and all(
        found[name].shape == one.shape and bool(((found[name] - one).abs() <= TOLERANCE).all())
        for name, one in expected.items()
    )
