"""What the OpenAI generation routes answer, whole and in chunks, as plain JSON-able values."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llmtaskpool_worker.http_api.catalog import Model
from llmtaskpool_worker.scheduling.task import Generated, TextDelta, TokenLogprob

Json = dict[str, Any]


def usage(results: Sequence[Generated], choices: int) -> Json:
    """Token counts; a prompt that has several choices counts once."""
    prompt_tokens = sum(result.prompt_tokens for result in results[::choices])
    cached = sum(result.cached_tokens for result in results[::choices])
    return _counts(prompt_tokens, sum(len(result.tokens) for result in results), cached)


def _counts(prompt_tokens: int, completion_tokens: int, cached: int = 0) -> Json:
    """``cached``: prompt tokens that had not to be computed; where there are none, none are told.

    OpenAI's field is optional, and other servers leave it out as well.
    """
    details = {"prompt_tokens_details": {"cached_tokens": cached}} if cached else {}
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    } | details


@dataclass(slots=True)
class Shape(ABC):
    """The form of one route's answers."""

    task_id: str
    created: int
    model: Model
    service_tier: str | None
    with_logprobs: bool
    prompt_tokens: Sequence[int] = ()
    """Of each choice, for usage in chunks."""
    chunk_usage: Literal["none", "null", "so far"] = "none"
    """Of chunks before the last: the field is absent, null, or counts what there is so far."""
    _drawn: dict[int, int] = field(default_factory=dict)

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

    def deltas(self, index: int, delta: TextDelta) -> list[Json]:
        """The chunks of some text."""
        return [self.delta(index, delta)]

    def lasts(self, index: int, result: Generated) -> list[Json]:
        """The chunks that end a choice."""
        return [self.last(index, result)]

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

    def _chunk_usage(self, index: int, drawn: int = 0) -> Json:
        """The field usage of a chunk that adds ``drawn`` tokens to a choice."""
        if self.chunk_usage == "none":
            return {}
        if self.chunk_usage == "null":
            return {"usage": None}
        self._drawn[index] = completion = self._drawn.get(index, 0) + drawn
        prompt = self.prompt_tokens[index]
        return {"usage": _counts(prompt, completion)}


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
        return self._chunk(
            index,
            {"content": delta.text},
            self._logprobs(delta.logprobs),
            drawn=len(delta.tokens),
        )

    def last(self, index: int, result: Generated) -> Json:
        """The chunk with the reason of the end."""
        return self._chunk(index, {}, reason=result.finish_reason)

    def _head(self, *, chunk: bool) -> Json:
        return self._common("chatcmpl", "chat.completion.chunk" if chunk else "chat.completion")

    def _chunk(
        self,
        index: int,
        delta: Json,
        logprobs: Json | None = None,
        *,
        reason: str | None = None,
        drawn: int = 0,
    ) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._head(chunk=True) | {"choices": [choice]} | self._chunk_usage(index, drawn)

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
            "token": _spelled(spelled),
            "logprob": logprob,
            "bytes": list(spelled),
        }


@dataclass(slots=True)
class CompletionShape(Shape):
    """text_completion, whole and in chunks."""

    _places: dict[int, _Place] = field(default_factory=dict)

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
        choice = self._choice(index, delta.text, delta.logprobs, None)
        return self._chunk(index, choice, len(delta.tokens))

    def last(self, index: int, result: Generated) -> Json:
        """The chunk with the reason of the end."""
        return self._chunk(index, self._choice(index, "", None, result.finish_reason))

    def _head(self, *, chunk: bool) -> Json:  # noqa: ARG002  both are called text_completion
        return self._common("cmpl", "text_completion")

    def _chunk(self, index: int, choice: Json, drawn: int = 0) -> Json:
        return self._head(chunk=True) | {"choices": [choice]} | self._chunk_usage(index, drawn)

    def _choice(
        self, index: int, text: str, drawn: Sequence[TokenLogprob] | None, reason: str | None
    ) -> Json:
        logprobs = None
        if self.with_logprobs and drawn is not None:
            place = self._places.setdefault(index, _Place(text))
            logprobs = self._logprobs(drawn, place)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, drawn: Sequence[TokenLogprob], place: _Place) -> Json:
        """OpenAI's older form: parallel lists; offsets are letters of the choice's whole text."""
        spelled = [self.model.token(one.token) for one in drawn]
        return {
            "tokens": [_spelled(one, "bytes:") for one in spelled],
            "token_logprobs": [one.logprob for one in drawn],
            "top_logprobs": [self._alternatives(one) or None for one in drawn],
            "text_offset": [
                place.pass_by(text) if self.model.is_in_text(one.token) else place.letters
                for text, one in zip(spelled, drawn, strict=True)
            ],
        }

    def _alternatives(self, drawn: TokenLogprob) -> dict[str, float]:
        """By what they are called; of several called the same the likeliest."""
        named: dict[str, float] = {}
        for token, value in drawn.top:
            named.setdefault(_spelled(self.model.token(token), "bytes:"), value)
        return named


class _Place:
    """How far in a choice's text its tokens have come; ``text`` is how the text begins."""

    def __init__(self, text: str) -> None:
        self.letters = 0
        self._begins_with_blank = text.startswith(" ")
        self._begun = False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def pass_by(self, spelled: bytes) -> int:
        """The place of a token, in letters; one that goes on inside a letter has that one's."""
        if not self._begun and not self._begins_with_blank:
            spelled = spelled.removeprefix(b" ")  # sentencepiece's, which is no part of the text
        self._begun = True
        place = self.letters
        self.letters += len(self._decoder.decode(spelled))
        return place


def _spelled(token: bytes, mark: str = "") -> str:
    """A token's text; bytes that are none are told as OpenAI tells them, ``\\xf0\\x9f``.

    ``mark`` goes before such a token: the older form has no field with its bytes.
    """
    try:
        return token.decode()
    except UnicodeDecodeError:
        return mark + token.decode("utf-8", "backslashreplace")
