"""Which failures to load may pass by themselves, and what people are told of them. No torch.

What a file holds doesn't get better by reading it again. What the machine lacks at this moment
may: a file that is away, a disk that is full or fails, memory. Messages of errors are not told:
they have paths in them.
"""

from __future__ import annotations

import errno
import os
import re

_RUST = re.compile(r"\(os error (\d+)\)")
"""How safetensors and tokenizers, which raise no OSError, tell one."""
_REMEDIES = {
    errno.ENOSPC: "free the disk of the model cache or give it more room",
    errno.EDQUOT: "free the disk of the model cache or give it more room",
    errno.EIO: "look at the disk's health",
    errno.ENOENT: "bring the file back or correct the model's source",
    errno.EACCES: "let the worker's user read it",
}


def may_pass(error: BaseException) -> bool:
    """Whether another try, later, may end well."""
    return _number(error) is not None or _lacks_memory(error)


def told(error: BaseException) -> str:
    """What failed and what to do, in a sentence without any path."""
    number = _number(error)
    if number is not None:
        remedy = _REMEDIES.get(number, "look at the volume that the model is on")
        return f"loading failed ({os.strerror(number)}): {remedy}"
    if _lacks_memory(error):
        return (
            "loading failed for lack of memory: raise the container's limit, use a smaller "
            "dtype, or a smaller model"
        )
    return (
        f"loading failed ({type(error).__name__}): check that its files are whole and that "
        "transformers knows its architecture"
    )


def _number(error: BaseException) -> int | None:
    """The system's number for an error; None where the system has no part in it.

    transformers raises OSError for what it finds wrong in a folder, too: those have no number.
    """
    if isinstance(error, OSError):
        return error.errno
    found = _RUST.search(str(error))
    return int(found[1]) if found else None


def _lacks_memory(error: BaseException) -> bool:
    """torch has an error of its own for a device, and a plain RuntimeError for the host."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "t allocate memory" in str(error)
