"""What the OpenAI generation routes answer, whole and in chunks, as plain JSON-able values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmtaskpool_worker.http_api.catalog import Model
from llmtaskpool_worker.scheduling.task import Generated, TextDelta, TokenLogprob

Json = dict[str, Any]


def usage(results: Sequence[Generated], choices: int) -> Json:
    """Token counts; a prompt that has several choices counts once."""
    prompt_tokens = sum(result.prompt_tokens for result in results[::choices])
    completion_tokens = sum(len(result.tokens) for result in results)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


@dataclass(slots=True)
class Shape(ABC):
    """The form of one route's answers."""

    task_id: str
    created: int
    model: Model
    service_tier: str | None
    with_logprobs: bool

    @abstractmethod
    def whole(self, results: Sequence[Generated], choices: int) -> Json:
        """The answer without streaming."""

    @abstractmethod
    def opening(self, choices: int) -> list[Json]:
        """The chunks that go before all text."""

    @abstractmethod
    def delta(self, index: int, delta: TextDelta) -> Json:
        """A chunk with text."""

    @abstractmethod
    def last(self, index: int, result: Generated) -> Json:
        """The chunk with the reason of the end."""

    @abstractmethod
    def _head(self, *, chunk: bool) -> Json:
        """What all answers of the route begin with."""

    def usage_chunk(self, results: Sequence[Generated], choices: int) -> Json:
        """The chunk that stream_options.include_usage asks for: no choices."""
        return self._head(chunk=True) | {"choices": [], "usage": usage(results, choices)}

    def _common(self, identifier: str, kind: str) -> Json:
        head: Json = {
            "id": f"{identifier}-{self.task_id}",
            "object": kind,
            "created": self.created,
            "model": self.model.name,
            "system_fingerprint": None,
        }
        if self.service_tier is not None:
            head["service_tier"] = self.service_tier
        return head

    def _text(self, token: int) -> str:
        return self.model.token(token).decode("utf-8", "replace")


class ChatShape(Shape):
    """chat.completion and chat.completion.chunk."""

    def whole(self, results: Sequence[Generated], choices: int) -> Json:
        """The answer without streaming."""
        return self._head(chunk=False) | {
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": result.text, "refusal": None},
                    "logprobs": self._logprobs(result.logprobs),
                    "finish_reason": result.finish_reason,
                }
                for index, result in enumerate(results)
            ],
            "usage": usage(results, choices),
        }

    def opening(self, choices: int) -> list[Json]:
        """The role of each choice."""
        return [self._chunk(i, {"role": "assistant", "content": ""}) for i in range(choices)]

    def delta(self, index: int, delta: TextDelta) -> Json:
        """A chunk with text."""
        return self._chunk(index, {"content": delta.text}, self._logprobs(delta.logprobs))

    def last(self, index: int, result: Generated) -> Json:
        """The chunk with the reason of the end."""
        return self._chunk(index, {}, None, result.finish_reason)

    def _head(self, *, chunk: bool) -> Json:
        return self._common("chatcmpl", "chat.completion.chunk" if chunk else "chat.completion")

    def _chunk(
        self, index: int, delta: Json, logprobs: Json | None = None, reason: str | None = None
    ) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._head(chunk=True) | {"choices": [choice]}

    def _logprobs(self, drawn: Sequence[TokenLogprob]) -> Json | None:
        if not self.with_logprobs:
            return None
        return {
            "content": [
                self._token(one.token, one.logprob)
                | {"top_logprobs": [self._token(token, value) for token, value in one.top]}
                for one in drawn
            ],
            "refusal": None,
        }

    def _token(self, token: int, logprob: float) -> Json:
        spelled = self.model.token(token)
        return {
            "token": spelled.decode("utf-8", "replace"),
            "logprob": logprob,
            "bytes": list(spelled),
        }


class CompletionShape(Shape):
    """text_completion, whole and in chunks."""

    def whole(self, results: Sequence[Generated], choices: int) -> Json:
        """The answer without streaming."""
        return self._head(chunk=False) | {
            "choices": [
                self._choice(index, result.text, result.logprobs, result.finish_reason)
                for index, result in enumerate(results)
            ],
            "usage": usage(results, choices),
        }

    def opening(self, choices: int) -> list[Json]:  # noqa: ARG002  a chat has one per choice
        """Nothing goes before the text."""
        return []

    def delta(self, index: int, delta: TextDelta) -> Json:
        """A chunk with text."""
        return self._chunk(self._choice(index, delta.text, delta.logprobs, None))

    def last(self, index: int, result: Generated) -> Json:
        """The chunk with the reason of the end."""
        return self._chunk(self._choice(index, "", None, result.finish_reason))

    def _head(self, *, chunk: bool) -> Json:  # noqa: ARG002  both are called text_completion
        return self._common("cmpl", "text_completion")

    def _chunk(self, choice: Json) -> Json:
        return self._head(chunk=True) | {"choices": [choice]}

    def _choice(
        self, index: int, text: str, drawn: Sequence[TokenLogprob] | None, reason: str | None
    ) -> Json:
        logprobs = self._logprobs(drawn) if self.with_logprobs and drawn is not None else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, drawn: Sequence[TokenLogprob]) -> Json:
        """OpenAI's older form: parallel lists; offsets count from this part's beginning."""
        texts = [self._text(one.token) for one in drawn]
        offsets = [0]
        for text in texts:
            offsets.append(offsets[-1] + len(text))
        return {
            "tokens": texts,
            "token_logprobs": [one.logprob for one in drawn],
            "top_logprobs": [
                {self._text(token): value for token, value in one.top} or None for one in drawn
            ],
            "text_offset": offsets[:-1],
        }
