"""Requests for models of servers: what is the pool's of them, and what goes on as it is.

The server knows its fields better than this worker does (tools, response_format, images, logit_bias
and what comes next year), so it checks them. Read here is only what the pool acts on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from pydantic import ConfigDict, Field, ValidationError

from llmtaskpool_worker.http_api.catalog import Model
from llmtaskpool_worker.http_api.counting import MESSAGES_MAX, count_chat, count_keys
from llmtaskpool_worker.http_api.errors import from_validation, invalid
from llmtaskpool_worker.http_api.openai_schema import (
    CHOICES_MAX,
    INPUTS_REMEDY,
    MAX_TOKENS_MAX,
    PROMPTS_MAX,
    PROMPTS_REMEDY,
    CommonFields,
    Inputs,
    Prompts,
    StreamOptions,
    named,
)
from llmtaskpool_worker.scheduling.task import SCORE_ROUTES, Forward, ForwardRoute

OURS = frozenset(
    {
        "model",
        "weight",
        "priority",
        "service_tier",
        "timeout_seconds",
        "queue_timeout_seconds",
        "n",
        "stream",
        "stream_options",
    }
)
"""Fields that this pool acts on: they don't go on. n choices are n requests."""

INPUTS_AT_ONCE = 32
"""Texts to embed in one request to a server: others get their turn between them."""

IMAGE_LETTERS = 2000
"""What a part of a message that is no text counts for, in letters: some 500 tokens."""

_Whole = Annotated[int, Field(strict=True)]
_Flag = Annotated[bool, Field(strict=True)]


class ForwardedFields(CommonFields):
    """What the pool acts on of any request; all else is the server's."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    n: _Whole = Field(
        1, ge=1, le=CHOICES_MAX, description=f"a whole number from 1 to {CHOICES_MAX}"
    )
    stream: _Flag = Field(False, description="true or false")
    stream_options: StreamOptions | None = Field(
        None, description='an object such as {"include_usage": true}, with "stream": true'
    )
    max_tokens: _Whole | None = Field(
        None, ge=1, le=MAX_TOKENS_MAX, description="a whole number of tokens from 1"
    )
    max_completion_tokens: _Whole | None = Field(
        None, ge=1, le=MAX_TOKENS_MAX, description="a whole number of tokens from 1"
    )


class ForwardedChat(ForwardedFields):
    """Of POST /v1/chat/completions."""

    messages: Annotated[
        list[dict[str, Any]], Field(min_length=1, max_length=MESSAGES_MAX, fail_fast=True)
    ] = Field(description='a list of objects such as {"role": "user", "content": "text"}')


class ForwardedCompletion(ForwardedFields):
    """Of POST /v1/completions."""

    prompt: Prompts = Field(description=PROMPTS_REMEDY)


class ForwardedEmbedding(ForwardedFields):
    """Of POST /v1/embeddings."""

    input: Inputs = Field(description=INPUTS_REMEDY)


_SCHEMAS: Mapping[ForwardRoute, type[ForwardedFields]] = {
    "chat/completions": ForwardedChat,
    "completions": ForwardedCompletion,
    "embeddings": ForwardedEmbedding,
}
KINDS: Mapping[ForwardRoute, str] = {
    "chat/completions": "chat",
    "completions": "generate",
    "embeddings": "embed",
    "rerank": "rerank",
    "score": "score",
    "classify": "classify",
}


@dataclass(frozen=True, slots=True)
class Forwarding:
    """A request as tasks: ``payloads`` of prompt by prompt, ``fields.n`` choices of each.

    ``texts`` are what each prompt has to read, for a tokenizer to count.
    """

    route: ForwardRoute
    fields: ForwardedFields
    payloads: list[Forward]
    texts: list[list[str]]

    @property
    def kind(self) -> str:
        """The kind of its tasks."""
        return KINDS[self.route]

    @property
    def tasks(self) -> tuple[str, ...]:
        """What its model must be for; none: the server knows what it can."""
        if self.route in SCORE_ROUTES:
            return ()
        return ("embed",) if self.route == "embeddings" else ("generate",)


def forwarding(route: ForwardRoute, given: Mapping[str, Any], model: Model) -> Forwarding:
    """A body for ``model``'s server. Raises ApiError 400 naming what the pool can't act on."""
    schema = _SCHEMAS[route]
    count_keys(given, "body")
    count_keys(given.get("stream_options"), "stream_options")
    count_chat(given)
    there = {name: value for name, value in given.items() if value is not None}
    try:
        fields = schema.model_validate({k: v for k, v in there.items() if k in schema.model_fields})
    except ValidationError as error:
        raise from_validation(error, schema) from None
    if fields.stream_options and not fields.stream:
        raise invalid(
            "stream_options", 'stream_options needs "stream": true: set it or leave both out.'
        )
    rest = {name: value for name, value in there.items() if name not in OURS}
    if route != "embeddings" and model.most_tokens is not None:
        fields = _bounded(fields, rest, model)
    payloads: list[Forward] = []
    texts: list[list[str]] = []
    for part in _parts(route, rest):
        read = _texts(part)
        texts.append(read)
        payloads += _choices(route, fields, part, _letters(part, read))
    if len(payloads) > PROMPTS_MAX and route == "completions":
        raise invalid(
            "n",
            f"n is {fields.n}: with {len(texts)} prompts that makes {len(payloads)} choices, and "
            f"{PROMPTS_MAX} are allowed in one request. Send several requests.",
        )
    return Forwarding(route, fields, payloads, texts)


def _bounded(fields: ForwardedFields, rest: dict[str, Any], model: Model) -> ForwardedFields:
    """With the longest answer that the model may give, where none was asked for.

    Raises ApiError 400 for a longer one.
    """
    for name in ("max_completion_tokens", "max_tokens"):
        model.check_wanted(name, getattr(fields, name))
    if fields.max_completion_tokens is not None or fields.max_tokens is not None:
        return fields
    rest["max_tokens"] = model.most_tokens
    return fields.model_copy(update={"max_tokens": model.most_tokens})


def _parts(route: ForwardRoute, rest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A body for each prompt, and for each group of texts to embed."""
    if route == "chat/completions":
        return [dict(rest)]
    name = "prompt" if route == "completions" else "input"
    ones = [one for _, one in named(name, rest[name])]
    if route == "completions":
        return [{**rest, name: one} for one in ones]
    groups = range(0, len(ones), INPUTS_AT_ONCE)
    return [{**rest, name: ones[at : at + INPUTS_AT_ONCE]} for at in groups]


def _choices(
    route: ForwardRoute, fields: ForwardedFields, body: dict[str, Any], letters: int
) -> list[Forward]:
    """One payload a choice. A seed is moved on, so that choices differ; else they share a body."""
    most = fields.max_completion_tokens or fields.max_tokens
    seed = body.get("seed")
    encoded = msgspec.json.encode(body)
    found = []
    for choice in range(fields.n if route != "embeddings" else 1):
        if choice and type(seed) is int:
            encoded = msgspec.json.encode({**body, "seed": (seed + choice) % 2**63})
        found.append(Forward(route, encoded, letters, None, most))
    return found


def _texts(body: Mapping[str, Any]) -> list[str]:
    """The texts that a model reads: of messages and tools, of a prompt, of inputs."""
    found: list[str] = []
    for message in body.get("messages", ()):
        content = message.get("content")
        if isinstance(content, str):
            found.append(content)
        elif isinstance(content, list):
            parts = [part for part in content if isinstance(part, dict)]
            found += [part["text"] for part in parts if isinstance(part.get("text"), str)]
        if message.get("tool_calls"):
            found.append(msgspec.json.encode(message["tool_calls"]).decode())
    if body.get("tools"):
        found.append(msgspec.json.encode(body["tools"]).decode())
    for name in ("prompt", "input"):
        value = body.get(name)
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, list):
            found += [one for one in value if isinstance(one, str)]
    return found


def _letters(body: Mapping[str, Any], texts: Sequence[str]) -> int:
    """Letters to read: of texts, four for a token id, and IMAGE_LETTERS for other parts."""
    letters = sum(map(len, texts))
    for message in body.get("messages", ()):
        content = message.get("content")
        if isinstance(content, list):
            others = [p for p in content if isinstance(p, dict) and p.get("type") != "text"]
            letters += IMAGE_LETTERS * len(others)
    for name in ("prompt", "input"):
        value = body.get(name)
        if isinstance(value, list):
            ids = value if value and isinstance(value[0], int) else ()
            letters += 4 * len(ids)
            letters += sum(4 * len(one) for one in value if isinstance(one, list))
    return letters
