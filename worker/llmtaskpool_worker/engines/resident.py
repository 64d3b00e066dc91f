"""Giving memory back to the machine that only loading needed (Linux; elsewhere nothing happens).

PyPI's torch brings CUDA libraries that even a CPU-only process maps and touches while it loads,
and loading leaves holes in malloc's arenas: together a quarter of a gigabyte that is never used
again but counts as resident. The same holds for the mapped weight file once the linear layers are
packed: of its embeddings only the rows in use need to be here. All these pages are clean copies
of files, so they come back by themselves when somebody does need one.
"""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from pathlib import Path

_MADV_PAGEOUT = 21
_MAPPING = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \d+ +(/.+(?:\.so[.\d]*|\.safetensors))$"
)


def give_back_heap() -> None:
    """Return freed heap pages to the system."""
    gc.collect()
    trim_heap()


def trim_heap() -> None:
    """As above, of what is freed already."""
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc only
            libc.malloc_trim(ctypes.c_size_t(0))


def give_back() -> None:
    """Return freed heap pages and untouched library pages to the system."""
    give_back_heap()
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if mapping := _MAPPING.match(line):
            start, end = int(mapping[1], 16), int(mapping[2], 16)
            if "w" not in mapping[3]:
                libc.madvise(start, end - start, _MADV_PAGEOUT)  # refused: the pages stay
