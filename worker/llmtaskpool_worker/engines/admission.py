"""Whether a model may be loaded at all, and what its steps are measured to hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from llmtaskpool_worker.engines.memory import limit_bytes, measured_peak, own_bytes
from llmtaskpool_worker.engines.memory_plan import Held, too_large
from llmtaskpool_worker.engines.onnx_files import bytes_of
from llmtaskpool_worker.engines.resident import trim_heap
from llmtaskpool_worker.engines.slot_cache import free_memory
from llmtaskpool_worker.engines.weight_files import numbers_in
from llmtaskpool_worker.engines.weights import ModelRefused

AUTO = "auto"
DTYPES = (AUTO, "float32", "bfloat16", "float16")
INT8 = "int8"
"""Of the weights of a model that generates, on a CPU: int8.py."""


def dtype_of(asked: str | None, usual: str, known: Sequence[str] = DTYPES) -> str:
    """The numbers that a model computes in. Raises ModelRefused for what is none of ``known``."""
    choices = f"use {', '.join(known[:-1])} or {known[-1]}"
    if asked == INT8 and asked not in known:
        raise ModelRefused(f"dtype={INT8} is for models that generate, on a CPU: {choices}")
    if asked is not None and asked not in known:
        raise ModelRefused(f"dtype={asked} is none: {choices}")
    return usual if asked in (None, AUTO) else asked


def on_cpu(device: str | None, dtype: str | None) -> None:
    """Refuse what an ONNX file can't be asked for. Raises ModelRefused."""
    if device not in (None, "cpu"):
        raise ModelRefused(
            f"device={device}: ONNX models run on the CPU here; leave device out, or serve the "
            "model's safetensors"
        )
    if dtype not in (None, AUTO):
        raise ModelRefused(f"dtype={dtype}: an ONNX model computes as its file says; leave it out")


def refuse_what_never_fits(
    folder: Path, device: str, dtype: str, options: Mapping[str, Any], why_so: str = ""
) -> None:
    """Raises ModelRefused with the numbers, before weights are read.

    It looks at what there could ever be, whoever else lets go of memory. ``dtype``: in which the
    weights are to be held; ``why_so``: where that isn't what was asked for. ``options``:
    ``memory_bytes``.
    """
    most = _most_bytes(torch.device(device), options)
    each = getattr(torch, dtype).itemsize
    if why := too_large(numbers_in(folder), dtype + why_so, each, most):
        raise ModelRefused(why)


def fits(folder: Path, bytes_each: int, options: Mapping[str, Any]) -> bool:
    """Whether a CPU's memory can ever hold so many bytes for each number of a model's weights."""
    most = _most_bytes(torch.device("cpu"), options)
    return too_large(numbers_in(folder), "", bytes_each, most) is None


def refuse_file_that_never_fits(file: Path, options: Mapping[str, Any]) -> None:
    """As above, of an ONNX model, which is held on the CPU as its files are."""
    if why := too_large(bytes_of(file), file.name, 1, _most_bytes(torch.device("cpu"), options)):
        raise ModelRefused(why)


def _most_bytes(on: torch.device, options: Mapping[str, Any]) -> int | None:
    limits = [options.get("memory_bytes")]
    if on.type == "cuda":
        limits = [int(torch.cuda.get_device_properties(on).total_memory)]
    elif on.type == "cpu":
        limits.append(limit_bytes())
    return min((int(limit) for limit in limits if limit is not None), default=None)


def held_now(device: torch.device, step: int = 0) -> Held:
    """What this process holds and may still take; ``step``: what a step of it holds."""
    return Held(own_bytes() or 0, free_memory(device), step, device.type == "cuda")


@contextmanager
def step_peak(device: torch.device) -> Iterator[Callable[[], int]]:
    """By how many bytes more than before a step on ``device`` held at most, until it is asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: max(0, int(torch.cuda.max_memory_allocated(device)) - before)
        return
    trim_heap()  # what was free in the heap would be taken again unseen
    with measured_peak() as peak:
        yield peak
