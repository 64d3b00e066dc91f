"""An answer that a server gives in chunks, put together to what it would have given whole."""

from __future__ import annotations

from typing import Any

import msgspec

from llmtaskpool_worker.scheduling.task import ChoiceDelta, Forwarded

_JOINED = frozenset({"content", "reasoning_content", "reasoning", "refusal", "text"})
"""Texts that come in pieces. All else that is a text comes once."""


class ForwardedChoice:
    """The choice of one request as it grows. ``chat``: with a message, else with a text."""

    def __init__(self, *, chat: bool) -> None:
        self._chat = chat
        self._message: dict[str, Any] = {}
        self._pieces: dict[str, list[str]] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._logprobs: dict[str, list[Any]] | None = None
        self._rest: dict[str, Any] = {}
        self.chunks = 0

    def push(self, choice: dict[str, Any]) -> ChoiceDelta:
        """Take in a chunk's choice; what those who follow the answer are told."""
        self.chunks += 1
        for name, value in choice.items():
            if name == "delta" and isinstance(value, dict):
                self._delta(value)
            elif name == "logprobs":
                self._add_logprobs(value)
            elif name == "text" and isinstance(value, str):
                self._pieces.setdefault("text", []).append(value)
            elif value is not None:
                self._rest[name] = value
        return ChoiceDelta(msgspec.json.encode(choice))

    def result(self, reason: str, usage: dict[str, Any] | None, prompt_tokens: int) -> Forwarded:
        """The whole answer. ``prompt_tokens`` stand in where the server told no usage."""
        joined = {name: "".join(pieces) for name, pieces in self._pieces.items()}
        whole: dict[str, Any]
        if self._chat:
            message = {"role": "assistant", "content": None} | self._message | joined
            if self._calls:
                message["tool_calls"] = [self._calls[at] for at in sorted(self._calls)]
                message["content"] = message["content"] or None
            whole = {"message": message}
        else:
            whole = {"text": joined.get("text", "")}
        whole["logprobs"] = self._logprobs
        whole |= self._rest
        whole["finish_reason"] = reason
        if usage is None:
            drawn = self.chunks
            usage = {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": drawn,
                "total_tokens": prompt_tokens + drawn,
            }
        return Forwarded(whole, usage)

    def _delta(self, delta: dict[str, Any]) -> None:
        for name, value in delta.items():
            if value is None:
                continue
            if name in _JOINED and isinstance(value, str):
                self._pieces.setdefault(name, []).append(value)
            elif name == "tool_calls" and isinstance(value, list):
                for call in value:
                    if isinstance(call, dict):
                        self._add_call(call)
            elif name == "function_call" and isinstance(value, dict):
                _join(self._message.setdefault("function_call", {}), value)
            else:
                self._message[name] = value

    def _add_call(self, call: dict[str, Any]) -> None:
        """A piece of a tool call: of the one at its index, else of the last."""
        at = call.get("index")
        if type(at) is not int:
            at = max(self._calls, default=0)
        known = self._calls.setdefault(at, {"id": "", "type": "function", "function": {}})
        for name in ("id", "type"):
            if isinstance(call.get(name), str) and call[name]:
                known[name] = call[name]
        if isinstance(call.get("function"), dict):
            _join(known["function"], call["function"])

    def _add_logprobs(self, value: Any) -> None:
        if not isinstance(value, dict):
            return
        if self._logprobs is None:
            self._logprobs = {}
        for name, listed in value.items():
            if isinstance(listed, list):
                self._logprobs.setdefault(name, []).extend(listed)


def _join(known: dict[str, Any], more: dict[str, Any]) -> None:
    """Arguments come in pieces; a name comes whole."""
    for name, value in more.items():
        if name == "arguments" and isinstance(value, str):
            known[name] = known.get(name, "") + value
        elif value is not None:
            known[name] = value
