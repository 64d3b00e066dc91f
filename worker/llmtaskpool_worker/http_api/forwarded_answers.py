"""What is answered for models of servers: their choices, under this pool's ids and names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmtaskpool_worker.http_api.sse import encode, event
from llmtaskpool_worker.scheduling.task import Forwarded, ForwardRoute

Json = dict[str, Any]

_OBJECTS: dict[ForwardRoute, tuple[str, str, str]] = {
    "chat/completions": ("chatcmpl", "chat.completion", "chat.completion.chunk"),
    "completions": ("cmpl", "text_completion", "text_completion"),
}


class ForwardedShape:
    """The form of one request's answer. ``choices``: of each prompt."""

    def __init__(
        self, route: ForwardRoute, task_id: str, created: int, model: str, choices: int
    ) -> None:
        self._prefix, self._whole, self._chunk = _OBJECTS[route]
        self._head = {
            "id": f"{self._prefix}-{task_id}",
            "created": created,
            "model": model,
            "system_fingerprint": None,
        }
        self._choices = choices
        self._opened = encode(self._head | {"object": self._chunk})[:-1]

    def whole(self, results: Sequence[Forwarded]) -> Json:
        """The answer without streaming."""
        return self._head | {
            "object": self._whole,
            "choices": [{"index": at} | one.value for at, one in enumerate(results)],
            "usage": self.usage(results),
        }

    def chunk(self, index: int, choice: bytes, *, with_usage: bool) -> bytes:
        """A frame with what a server said; ``choice`` is a JSON object without its index."""
        inside = choice[1:] if choice == b"{}" else b"," + choice[1:]
        usage = b',"usage":null' if with_usage else b""
        return event(
            self._opened + b',"choices":[{"index":%d' % index + inside + b"]" + usage + b"}"
        )

    def last(self, results: Sequence[Forwarded]) -> bytes:
        """The frame that stream_options.include_usage asks for."""
        end = {"object": self._chunk, "choices": [], "usage": self.usage(results)}
        return event(encode(self._head | end))

    def usage(self, results: Sequence[Forwarded]) -> Json:
        """The server's own for one choice; of several their sums, a prompt counted once."""
        if len(results) == 1:
            return results[0].usage
        prompt = sum(one.prompt_tokens for one in results[:: self._choices])
        completion = sum(one.completion_tokens for one in results)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
