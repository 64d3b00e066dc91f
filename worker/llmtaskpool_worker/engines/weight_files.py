"""Whether weight files are whole, before anything is loaded of them. Imports no torch."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

_LFS_POINTER = b"version https://git-lfs"


def unreadable(folder: Path) -> str | None:
    """What is wrong with the safetensors files of ``folder``; None when all are whole.

    Header and length are checked, which is cheap at any size: a file that was cut off fails.
    Raises OSError where a file can't be read now.
    """
    for file in sorted(folder.glob("*.safetensors")):
        if is_pointer(file):
            return f"{file.name} is a pointer of git-lfs and not the weights: run git lfs pull"
        try:
            with safe_open(file, framework="np"):
                pass
        except SafetensorError as error:
            why = re.fullmatch(r"Error while deserializing header: (\w+)(?:[:(,].*)?", str(error))
            return (
                f"{file.name} is cut off or spoilt ({why[1] if why else 'SafetensorError'}): "
                "copy or download it again"
            )
    return None


def is_pointer(file: Path) -> bool:
    """Whether git-lfs has left a note in place of the file."""
    with file.open("rb") as stream:
        return stream.read(len(_LFS_POINTER)) == _LFS_POINTER


def numbers_in(folder: Path) -> int:
    """How many numbers the safetensors files of ``folder`` hold, by their headers."""
    count = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            count += sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118 - no mapping
    return count
