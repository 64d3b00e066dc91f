"""Which failures to load are tried again, and what is told of them."""

from __future__ import annotations

import errno

import pytest
import torch
from llmtaskpool_worker.engines import load_errors
from safetensors import SafetensorError


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.ENOSPC, "x", "/secret"), "No space left on device): free the disk"),
        (OSError(errno.EIO, "x", "/secret"), "Input/output error): look at the disk"),
        (FileNotFoundError(errno.ENOENT, "x", "/secret"), "bring the file back"),
        (OSError(errno.ESTALE, "x", "/secret"), "look at the volume"),
        (SafetensorError("I/O error: /secret (os error 28)"), "No space left on device): free"),
        (MemoryError(), "for lack of memory: raise the container's limit"),
        (torch.OutOfMemoryError("CUDA out of memory /secret"), "for lack of memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"),
            "for lack of memory",
        ),
    ],
)
def test_what_the_machine_lacks_now_is_tried_again(error: Exception, remedy: str) -> None:
    assert load_errors.may_pass(error)
    assert remedy in load_errors.told(error)
    assert "secret" not in load_errors.told(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("secret"),
        KeyError("secret"),
        RuntimeError("secret"),
        SafetensorError("Error while deserializing header: secret"),
        OSError("transformers found no file named secret"),
    ],
)
def test_what_the_files_hold_is_not(error: Exception) -> None:
    assert not load_errors.may_pass(error)
    assert "check that its files are whole" in load_errors.told(error)
    assert "secret" not in load_errors.told(error)
