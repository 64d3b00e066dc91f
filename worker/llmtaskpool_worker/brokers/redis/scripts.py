"""The scripts that the server runs: each does one step of the queue, atomically.

They belong to the worker's version and lie side by side on the server by their hash, so old and new
workers share a queue. A server that was restarted or failed over knows none: courier.py loads them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "lua"
_SHARED = ("common", "ended")
_GROWS = frozenset({"accept", "replay", "shelve"})
"""What a server whose memory is full refuses. All others go on: they give memory back."""
_ONCE = frozenset({"claim", "again", "shed"})
"""What may not be said again when its answer was lost."""


@dataclass(frozen=True, slots=True)
class Script:
    """``repeatable``: saying it again after a lost answer changes nothing."""

    name: str
    text: bytes
    sha: str
    repeatable: bool


def build(name: str, parts: dict[str, str]) -> Script:
    """A script of its own part and of what it needs of the shared ones; ``parts`` by file name."""
    flags = "" if name in _GROWS else " flags=allow-oom"
    body = _needed("".join(parts[shared] for shared in _SHARED), parts[name])
    text = f"#!lua{flags}\n{body}".encode()
    sha = hashlib.sha1(text, usedforsecurity=False).hexdigest()  # the server's name for it
    return Script(name, text, sha, name not in _ONCE)


_DEFINITION = re.compile(r"^local (?:function )?(\w+(?:, \w+)*)", re.MULTILINE)
_COMMENT = re.compile(r"^ *--.*\n| +--.*$", re.MULTILINE)


def _needed(shared: str, own: str) -> str:
    """A script's own text after those definitions of the shared one that it comes to use.

    A server makes all functions of a script anew at each call, which takes as long as a command.
    A definition begins at a line's beginning with ``local`` and ends where the next begins.
    """
    shared, body = _COMMENT.sub("", shared), _COMMENT.sub("", own)
    starts = [match.start() for match in _DEFINITION.finditer(shared)]
    for start, end in zip(reversed(starts), [len(shared), *reversed(starts)], strict=False):
        definition = shared[start:end]
        names = _DEFINITION.match(definition)
        words = set(re.findall(r"\w+", body))
        if names is not None and words & set(names[1].split(", ")):
            body = definition + body
    return body


@cache
def parts() -> dict[str, str]:
    """All sources by name."""
    return {path.stem: path.read_text() for path in sorted(_FOLDER.glob("*.lua"))}


@cache
def scripts() -> dict[str, Script]:
    """All scripts by name."""
    return {name: build(name, parts()) for name in parts() if name not in _SHARED}
