"""What an engine process says on standard error, as far as it may be told.

Anything may be in there: an exception's message holds what it was raised about, and that can be a
prompt. So only what is known to hold none passes: our own lines, places of a traceback, classes of
exceptions, and the words of the interpreter, the C library and CUDA for how a process dies.
"""

from __future__ import annotations

import builtins
import re
from collections import deque
from pathlib import PurePath

KEPT_LINES = 12
LONGEST_LINE = 4096

_OWN = re.compile(r"(?:WARNING|ERROR|CRITICAL) llmtaskpool\.engine [ -~]{1,400}")
_FRAME = re.compile(r'\s*File "([^"]{1,400})", line (\d{1,6})(?:,)? in ([\w.<>]{1,80})')
_OURS = ("site-packages", "dist-packages", "llmtaskpool_worker", "/lib/python3")
_CLASS = re.compile(r"((?:\w+\.)*\w+)(?::.*)?")
_ROOMS = (
    "torch.",
    "transformers.",
    "safetensors",
    "tokenizers.",
    "msgspec.",
    "llmtaskpool_worker.",
)
_WORDS = re.compile(
    r"Fatal Python error: (?:Segmentation fault|Aborted|Bus error|Illegal instruction|"
    r"Floating-point exception|Floating point exception)"
    r"|terminate called (?:without an active exception|recursively)"
    r"|terminate called after throwing an instance of '[\w:]{1,80}'"
    r"|double free or corruption \([!\w]{1,20}\)|(?:malloc|free|realloc)\(\): [a-z ()]{1,60}"
    r"|corrupted (?:size vs\. prev_size|double-linked list)|\*{3} stack smashing detected \*{3}"
    r"|CUDA error: (?:device-side assert triggered|out of memory|an illegal memory access was "
    r"encountered|unspecified launch failure|unknown error)"
)


class LastWords:
    """Takes in what came on standard error, and keeps the last lines that may be told."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.hidden = 0
        self._rest = b""
        self._in_traceback = False

    def feed(self, chunk: bytes) -> list[str]:
        """The lines that ended with ``chunk`` and may be told."""
        *ended, rest = (self._rest + chunk).split(b"\n")
        self._rest = rest[-LONGEST_LINE:]
        told = []
        for raw in ended:
            line = raw[:LONGEST_LINE].decode(errors="replace").rstrip()
            safe = self._safe(line)
            if safe is not None:
                told.append(safe)
            elif line:
                self.hidden += 1
        self.lines.extend(told)
        return told

    def _safe(self, line: str) -> str | None:
        """``line`` as it may be told; None when it may not."""
        if line.startswith(("Traceback (most recent call last)", "Current thread 0x", "Thread 0x")):
            self._in_traceback = True
            return None
        if _OWN.fullmatch(line):
            return line
        if words := _WORDS.match(line):
            return words[0]
        if not self._in_traceback:
            return None
        if frame := _FRAME.fullmatch(line):
            path, number, function = frame.groups()
            ours = any(part in path for part in _OURS)
            return f"at {PurePath(path).name}:{number} in {function}" if ours else None
        if line.startswith(" ") or not line:
            return None
        self._in_traceback = False
        found = _CLASS.fullmatch(line)
        if found and (found[1].startswith(_ROOMS) or _is_exception(found[1])):
            return found[1]
        return None


def _is_exception(name: str) -> bool:
    known = getattr(builtins, name, None)
    return isinstance(known, type) and issubclass(known, BaseException)
