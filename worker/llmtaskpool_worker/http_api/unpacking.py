"""Bodies that a client has packed: unpacked piece by piece, and never more than is allowed."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from llmtaskpool_worker.disclosure import shown
from llmtaskpool_worker.http_api.errors import ApiError

PIECE_BYTES = 64 * 1024
"""Unpacked at once: a small input may unpack to a thousand times its size."""

READ = "gzip, deflate, identity"

_WINDOW_BITS = {
    "gzip": 16 + zlib.MAX_WBITS,
    "x-gzip": 16 + zlib.MAX_WBITS,
    "deflate": zlib.MAX_WBITS,
}


class Unpacker:
    """Passes bytes on as they are."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What became of ``data``, in pieces."""
        if data:  # the end of a body is told by an empty one
            yield data

    def end(self) -> None:
        """All was fed. Raises ApiError 400 when it was not whole."""


class _Inflater(Unpacker):
    """gzip (RFC 1952, several members too) and deflate (RFC 1950)."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._inflate = zlib.decompressobj(_WINDOW_BITS[encoding])
        self._fresh = True
        """Nothing of a member was read yet."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What became of ``data``, in pieces of at most PIECE_BYTES."""
        while data:
            if self._inflate.eof:
                self._inflate = zlib.decompressobj(_WINDOW_BITS[self._encoding])
            try:
                piece = self._inflate.decompress(data, PIECE_BYTES)
            except zlib.error:
                raise self._broken() from None
            self._fresh = False
            data = self._inflate.unused_data or self._inflate.unconsumed_tail
            if piece:
                yield piece

    def end(self) -> None:
        """Raises ApiError 400 when the end is missing."""
        if not self._fresh and not self._inflate.eof:
            raise self._broken()

    def _broken(self) -> ApiError:
        return ApiError(
            400,
            f"The body is not valid {self._encoding}: send it whole, or without Content-Encoding.",
            param="body",
            code="invalid_encoding",
            close=True,
        )


def unpacker_of(content_encoding: str) -> Unpacker:
    """For the value of a Content-Encoding header. Raises ApiError 415 naming what isn't read."""
    encodings = [one.strip().lower() for one in content_encoding.split(",")]
    named = [one for one in encodings if one not in ("", "identity")]
    if not named:
        return Unpacker()
    if len(named) == 1 and named[0] in _WINDOW_BITS:
        return _Inflater(named[0])
    raise ApiError(
        415,
        f"Content-Encoding is {shown(content_encoding)}: send the body as {READ} or plain.",
        param="content-encoding",
        code="unsupported_encoding",
        close=True,
    )
