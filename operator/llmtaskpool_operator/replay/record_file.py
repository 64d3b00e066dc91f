"""Where a record is written: a file of bounded size, or standard output."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

FILE_BYTES_MAX = 64 * 1024 * 1024
"""About two weeks of one pool; then the file is moved to its name and ``.1``, and begun anew."""


class RecordFile:
    """Appends lines. ``write`` never raises: at a fault ``failed`` is told, once, and it stops."""

    def __init__(
        self, path: Path, failed: Callable[[str], object], limit: int = FILE_BYTES_MAX
    ) -> None:
        """Raises OSError when the file can't be made."""
        self._path = path
        self._failed = failed
        self._limit = limit
        self._open()

    def write(self, text: str) -> None:
        """Append ``text``, one or more whole lines."""
        if self._file.closed:
            return
        data = text.encode()
        try:
            if self._file.tell() and self._file.tell() + len(data) > self._limit:
                self._file.close()
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                self._open()
            self._file.write(data)
        except OSError as error:
            self.close()
            self._failed(f"nothing is recorded any more: {self._path}: {error.strerror}")

    def close(self) -> None:
        """Nothing is written after this."""
        self._file.close()

    def _open(self) -> None:
        # Unbuffered: what was written is there whatever becomes of this process.
        self._file = self._path.open("ab", buffering=0)


def to_stdout(text: str) -> None:
    """Write whole lines to standard output at once, where `kubectl logs` finds them."""
    sys.stdout.write(text)
    sys.stdout.flush()
