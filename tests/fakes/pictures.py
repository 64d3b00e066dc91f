"""Small pictures with something on them, and files that are none or would unpack to gigabytes."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image, ImageDraw


def picture(width: int = 60, height: int = 40, *, kind: str = "PNG", color: str = "red") -> bytes:
    drawn = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(drawn).ellipse((5, 5, width // 2, height - 5), fill=color)
    packed = io.BytesIO()
    drawn.save(packed, kind)
    return packed.getvalue()


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG that says that it is so large; a kilobyte of zeros would fill most of it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(10**6))
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
