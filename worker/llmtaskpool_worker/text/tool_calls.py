"""Calls of tools in what a model writes, found while the text comes in pieces.

How a model writes a call depends on what was asked of it: a named tool's arguments alone, a JSON
list of calls, or free text with calls in it. Free text is read in the two forms most models are
trained on: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` (Hermes, Qwen, SmolLM2)
and one bare ``{"name": ..., "parameters": {...}}`` (Llama 3).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

from llmtaskpool_worker.text.tokens import overlap

BEGIN, END = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"
"""Llama 3 writes it before a call; it is a special token, and seldom in the text."""


@dataclass(frozen=True, slots=True)
class Words:
    """Text that is no call."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call, with its arguments as JSON, or with how they begin."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class More:
    """What the arguments of the last call go on with."""

    arguments: str


Said = Words | Call | More


class CallReader(Protocol):
    """Reads one answer."""

    def push(self, text: str) -> list[Said]:
        """What became certain with this text."""

    def finish(self) -> list[Said]:
        """What is left, once no text follows."""


class NamedCall:
    """All that is said are the arguments of one tool."""

    def __init__(self, name: str) -> None:
        self._name: str | None = name

    def push(self, text: str) -> list[Said]:
        """The first piece begins the call."""
        if self._name is None:
            return [More(text)]
        name, self._name = self._name, None
        return [Call(name, text)]

    def finish(self) -> list[Said]:
        """Nothing was held back."""
        return []


class ListedCalls:
    """A JSON list of objects with name and arguments; each is told once it is whole."""

    def __init__(self) -> None:
        self._text = ""
        self._place = 0
        self._depth = 0
        self._begun = 0
        self._in_string = self._escaped = False

    def push(self, text: str) -> list[Said]:
        """The calls that ended in this text."""
        self._text += text
        said: list[Said] = []
        while self._place < len(self._text):
            letter = self._text[self._place]
            self._place += 1
            if self._in_string:
                self._in_string = self._escaped or letter != '"'
                self._escaped = not self._escaped and letter == "\\"
            elif letter == '"':
                self._in_string = True
            elif letter == "{":
                self._begun = self._place - 1 if not self._depth else self._begun
                self._depth += 1
            elif letter == "}" and self._depth:
                self._depth -= 1
                if not self._depth and (call := _call_of(self._text[self._begun : self._place])):
                    said.append(call)
        return said

    def finish(self) -> list[Said]:
        """A call that was cut is none."""
        return []


class FreeCalls:
    """Free text in which calls of ``names`` may be. What looks like a call and is none is text."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self._held = ""
        self._in_call = False
        self._begun = False
        self._bare = False

    def push(self, text: str) -> list[Said]:
        """What a tag may begin with is held back, and so is all of a bare object."""
        self._held += text
        if not self._begun:
            start = self._held.lstrip().removeprefix(PYTHON_TAG)
            if not start or PYTHON_TAG.startswith(self._held.lstrip()):
                return []
            self._begun, self._bare = True, start.startswith("{")
        if self._bare:
            return []
        said: list[Said] = []
        while self._one(said):
            pass
        return said

    def finish(self) -> list[Said]:
        """A call that was never closed is read all the same: a model may end without the tag."""
        held, self._held = self._held, ""
        if self._in_call or self._bare:
            inside = held.strip().removeprefix(PYTHON_TAG).removesuffix(END)
            call = _call_of(inside, self._names)
            return [call] if call else _words((BEGIN if self._in_call else "") + held)
        return _words(held)

    def _one(self, said: list[Said]) -> bool:
        """Take the next thing out of what is held; whether there may be another."""
        tag = END if self._in_call else BEGIN
        before, found, after = self._held.partition(tag)
        if not found:
            if not self._in_call:
                certain = before[: len(before) - overlap(before, BEGIN)].rstrip("\n")
                said += _words(certain)
                self._held = before[len(certain) :]
            return False
        if self._in_call:
            call = _call_of(before, self._names)
            said += [call] if call else _words(BEGIN + before + END)
        else:
            # The line's end before a call is the template's and not the model's word.
            said += _words(before.rstrip("\n"))
        self._held, self._in_call = after, not self._in_call
        return True


def _words(text: str) -> list[Said]:
    return [Words(text)] if text else []


def _call_of(text: str, names: Collection[str] | None = None) -> Call | None:
    """The call that a JSON object is; None when it is none, or of a tool that isn't there."""
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(name := found.get("name"), str):
        return None
    arguments = found.get("arguments", found.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict) or (names is not None and name not in names):
        return None
    return Call(name, json.dumps(arguments, ensure_ascii=False))
