"""A kind of task of one's own: the faces in a picture, found by MTCNN of facenet-pytorch."""

from __future__ import annotations

import binascii
from base64 import b64decode
from functools import cache
from typing import Any

import torch
from facenet_pytorch import MTCNN
from llmtaskpool_worker.engines.image_files import BadImage, opened
from llmtaskpool_worker.kinds import ArgumentsError, CallContext, HandlerError, Kind
from PIL import Image


@cache
def detector() -> MTCNN:
    """The model, loaded with the first picture. One core: others belong to the pool's models."""
    torch.set_num_threads(1)
    return MTCNN(keep_all=True, device="cpu")


def picture(given: Any) -> Image.Image:
    """A picture of which the header alone was read, so that a bomb stays packed."""
    try:
        return opened(b64decode(given, validate=True))
    except (TypeError, binascii.Error):
        raise ArgumentsError("image", "image is no base64: send the file in it") from None
    except BadImage as error:
        raise ArgumentsError("image", f"image {error}") from None


def check(arguments: dict[str, Any]) -> None:
    """Refuse what can't be run, before the task is accepted."""
    picture(arguments.get("image")).close()


def run(arguments: dict[str, Any], context: CallContext) -> dict[str, Any]:
    """Boxes in pixels and how sure it is of each, the largest first."""
    if context.cancelled:  # nobody wants the result any more
        raise HandlerError("cancelled", "the task was cancelled")
    boxes, scores = detector().detect(picture(arguments["image"]).convert("RGB"))
    if boxes is None:
        return {"faces": []}
    names = ("xmin", "ymin", "xmax", "ymax")
    return {
        "faces": [
            {"score": float(score), "box": dict(zip(names, map(float, box), strict=True))}
            for box, score in zip(boxes, scores, strict=True)
        ]
    }


faces = Kind("faces", run, lane="compute", check=check)
