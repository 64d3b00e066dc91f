"""The models that the HTTP routes serve, and how a client's text becomes their tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from llmtaskpool_worker.disclosure import shown
from llmtaskpool_worker.http_api.errors import ApiError, invalid

BIG_TEXT = 1024
"""Texts of more letters are tokenized in a thread, so that the event loop goes on."""


class Codec(Protocol):
    """What the routes need of a tokenizer (text.tokens.Tokenizer has it)."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the model wants around it."""

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation by the model's template, ready for an answer."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token stands for; not always whole UTF-8."""


@dataclass(slots=True)
class Model:
    """One model; what isn't known before it is loaded is None.

    ``longest_token`` is the most letters that one token stands for: it refuses a text that can't
    fit without tokenizing it.
    """

    name: str
    task: Literal["generate", "embed"]
    created: int
    codec: Codec | None = None
    context_length: int | None = None
    vocab_size: int | None = None
    dimensions: int | None = None
    longest_token: int = 512

    def _ready_codec(self) -> Codec:
        if self.codec is None:
            raise ApiError(
                503,
                f"The model {self.name} is still loading: try again later.",
                code="starting",
                retry_after_seconds=2.0,
            )
        return self.codec

    async def encode(self, value: str | Sequence[int], field: str) -> tuple[int, ...]:
        """Token ids of a text, or the given ids once checked. Raises ApiError naming ``field``."""
        codec = self._ready_codec()
        if not isinstance(value, str):
            await asyncio.sleep(0)  # as for texts
            return self._checked(value, field)
        self._may_fit(len(value), field)
        return self._fitting(await _off_loop(len(value), lambda: codec.encode(value)), field)

    async def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        """Token ids of a conversation. Raises ApiError naming ``messages``."""
        codec = self._ready_codec()
        letters = sum(len(message["content"]) for message in messages)
        self._may_fit(letters, "messages")
        size = letters + 64 * len(messages)
        try:
            tokens = await _off_loop(size, lambda: codec.encode_chat(messages))
        except ValueError as error:
            raise invalid("messages", f"messages can't be used with {self.name}: {error}") from None
        return self._fitting(tokens, "messages")

    def token(self, token: int) -> bytes:
        """The bytes of one token."""
        return self._ready_codec().token_bytes(token)

    def _checked(self, value: Sequence[int], field: str) -> tuple[int, ...]:
        tokens = self._fitting(value, field)
        largest = max(tokens)
        if self.vocab_size is not None and largest >= self.vocab_size:
            raise invalid(
                field,
                f"{field} holds the token id {largest}: {self.name} knows 0 to "
                f"{self.vocab_size - 1}.",
            )
        return tokens

    def _may_fit(self, letters: int, field: str) -> None:
        if self.context_length and letters > self.context_length * self.longest_token:
            raise self._over(field, f"a text of {letters} letters")

    def _fitting(self, tokens: Sequence[int], field: str) -> tuple[int, ...]:
        if not tokens:
            raise invalid(field, f"{field} is empty: send at least one token of text.")
        if self.context_length and len(tokens) > self.context_length - self._reserve():
            raise self._over(field, f"{len(tokens)} tokens")
        return tuple(tokens)

    def _reserve(self) -> int:
        """Room that must be left for the answer."""
        return 1 if self.task == "generate" else 0

    def _over(self, field: str, size: str) -> ApiError:
        return invalid(
            field,
            f"{field} is {size}: the context of {self.name} is {self.context_length} tokens, "
            "the answer included. Send less.",
            code="context_length_exceeded",
        )

    def max_tokens(self, field: str, wanted: int | None, prompt_tokens: int) -> int:
        """The bound of the output: ``wanted``, else all that the context leaves."""
        if self.context_length is None:
            return wanted or 256
        room = self.context_length - prompt_tokens
        if wanted is not None and wanted > room:
            raise invalid(
                field,
                f"{field} is {wanted}: with a prompt of {prompt_tokens} tokens the context of "
                f"{self.name} ({self.context_length}) leaves {room}. Send at most {room}.",
                code="context_length_exceeded",
            )
        return wanted or room


async def _off_loop(letters: int, encode: Callable[[], list[int]]) -> list[int]:
    if letters > BIG_TEXT:
        return await asyncio.to_thread(encode)
    await asyncio.sleep(0)  # between the many texts of one request others have their turn
    return encode()


class Catalog:
    """Models by name."""

    def __init__(self, models: Sequence[Model]) -> None:
        self._by_name = {model.name: model for model in models}

    def all(self) -> list[Model]:
        """In the order configured."""
        return list(self._by_name.values())

    def get(self, name: str, task: Literal["generate", "embed"] | None = None) -> Model:
        """The model called ``name``. Raises ApiError 404 when unknown, 400 for another task."""
        model = self._by_name.get(name)
        if model is None:
            known = ", ".join(self._by_name) or "none"
            raise ApiError(
                404,
                f"The model {shown(name)} does not exist here. Use one of: {known}.",
                param="model",
                code="model_not_found",
            )
        if task is not None and model.task != task:
            does = {"generate": "generates text", "embed": "makes embeddings"}
            raise invalid(
                "model",
                f"model is {shown(name)}, which {does[model.task]}: use one that {does[task]}.",
            )
        return model
