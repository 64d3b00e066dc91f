"""Pictures before anything of them is unpacked: their kind and size, by their header. No torch.

A picture of a few kilobytes may unpack to gigabytes. Its header says how large it is, so one that
is too large is refused by that, in the API process, and again where it would be unpacked.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
PIXELS_MAX = 25_000_000
"""Width times height: 75 MB unpacked."""
SIDE_MAX = 16_384
IMAGE_ARCHITECTURES = ("ForImageClassification", "ForObjectDetection")
"""How the names of architectures end that take pictures."""


TIMM = "timm_wrapper"
"""What transformers calls models of timm."""
_TIMM_NAME = re.compile(r"[\w.]+", re.ASCII)


class BadImage(Exception):
    """The message says what is wrong, and what to send instead."""


def takes_pictures(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is of a model that takes pictures, and no text."""
    names = config.get("architectures") or ()
    return of_timm(config) or any(str(name).endswith(IMAGE_ARCHITECTURES) for name in names)


def of_timm(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is as timm writes it, or transformers for a model of timm."""
    return config.get("model_type") == TIMM or config.keys() >= {"architecture", "pretrained_cfg"}


def not_of_timm(config: Mapping[str, Any]) -> str | None:
    """Why a model of timm can't be made of its ``config.json``; None when it can.

    Its architecture may be the name of a place to download from, and its ``model_args`` a file
    to unpickle: names of timm's own models and plain numbers are taken alone.
    """
    if find_spec("timm") is None or find_spec("torchvision") is None:
        return "it is a model of timm: pip install timm, in the worker's image on a cluster"
    if not _TIMM_NAME.fullmatch(str(config.get("architecture"))):
        return "config.json names an architecture that is none of timm's: use its plain name"
    arguments = config.get("model_args") or {}
    plain = isinstance(arguments, Mapping) and all(
        isinstance(value, int | float) and name != "pretrained" for name, value in arguments.items()
    )
    return None if plain else "config.json has model_args that are no numbers: take them out"


def opened(packed: bytes) -> Image.Image:
    """A picture of which the header was read alone, of a kind and size that is taken.

    Raises BadImage.
    """
    try:
        picture = Image.open(io.BytesIO(packed), formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadImage(f"has more than {PIXELS_MAX} pixels: send it smaller") from None
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError):
        raise BadImage(
            f"is no picture that is read here: send one of {', '.join(FORMATS)}"
        ) from None
    width, height = picture.size
    if width * height > PIXELS_MAX or max(width, height) > SIDE_MAX:
        raise BadImage(
            f"is {width} x {height} pixels: send at most {PIXELS_MAX}, and {SIDE_MAX} on a side"
        )
    return picture
