"""Pictures before anything of them is unpacked: their kind and size, by their header. No torch.

A picture of a few kilobytes may unpack to gigabytes. Its header says how large it is, so one that
is too large is refused by that, in the API process, and again where it would be unpacked.
"""

from __future__ import annotations

import io

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
PIXELS_MAX = 25_000_000
"""Width times height: 75 MB unpacked."""
SIDE_MAX = 16_384
IMAGE_ARCHITECTURES = ("ForImageClassification", "ForObjectDetection")
"""How the names of architectures end that take pictures."""


class BadImage(Exception):
    """The message says what is wrong, and what to send instead."""


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
