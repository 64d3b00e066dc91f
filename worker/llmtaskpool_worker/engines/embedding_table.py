"""Leaving a tied embedding table in its weight file.

A table that is tied to the output layer is held twice once that layer is packed (linear.py).
Looking up tokens reads a few rows, so the table can stay mapped from the file: only the rows in
use are resident, and workers on one machine share them.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import torch
from torch import nn


def map_tied_embeddings(model: nn.Module, folder: Path) -> bool:
    """Point the input embeddings of a float32 model on a CPU at the file that holds them.

    Returns whether it was done; it isn't where the file holds another dtype or name.
    """
    embeddings = model.get_input_embeddings()  # type: ignore[operator]  # a method of every transformers model
    table = getattr(embeddings, "weight", None)
    if not isinstance(table, nn.Parameter) or table.device.type != "cpu":
        return False
    names = [name for name, value in model.named_parameters() if value is table]
    for file in sorted(folder.glob("*.safetensors")):
        place = _find(file, names, tuple(table.shape))
        if place is not None and table.dtype == torch.float32:
            rows = np.memmap(file, dtype="<f4", mode="c", offset=place, shape=tuple(table.shape))
            table.data = torch.from_numpy(rows)
            return True
    return False


def _find(file: Path, names: list[str], shape: tuple[int, ...]) -> int | None:
    """Byte offset of the first of ``names`` that ``file`` holds as float32 of this shape."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    for name in names:
        entry = header.get(name)
        if entry and entry["dtype"] == "F32" and tuple(entry["shape"]) == shape:
            begin: int = entry["data_offsets"][0]
            return 8 + int(length) + begin
    return None
