"""The bodies of the OpenAI routes: what is read, what is refused, and how they become tasks.

A field's description says what to send: it is the remedy in error messages and the table in
docs/api.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmtaskpool_worker.disclosure import shown
from llmtaskpool_worker.http_api.chat_messages import Message
from llmtaskpool_worker.http_api.counting import MESSAGES_MAX, count_chat, count_keys
from llmtaskpool_worker.http_api.errors import from_validation, invalid
from llmtaskpool_worker.http_api.foreign_fields import pass_over
from llmtaskpool_worker.http_api.structured import (
    FORMAT_REMEDY,
    Choices,
    Pattern,
    ResponseFormat,
    Schema,
    StructuredOutputs,
    Wish,
    wish_of,
)
from llmtaskpool_worker.http_api.tools import (
    CHOICE_REMEDY,
    TOOLS_REMEDY,
    Calling,
    ToolChoice,
    Tools,
    calling,
)
from llmtaskpool_worker.scheduling.task import Sampling

MAX_TOKENS_MAX = 1_048_576
CHOICES_MAX = 16
STOPS_MAX = 4
BIASED_MAX = 1024
INPUTS_MAX = 2048
PROMPTS_MAX = 64

WEIGHT_HEADER = "x-llmtaskpool-weight"
PRIORITY_MAX = 10
TIER_WEIGHTS: Mapping[str, float] = {
    "flex": 0.25,
    "auto": 1.0,
    "default": 1.0,
    "scale": 1.0,
    "priority": 4.0,
}

_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Whole = Annotated[int, Field(strict=True)]
_Flag = Annotated[bool, Field(strict=True)]
_TokenId = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
_BiasedToken = Annotated[str, Field(strict=True, pattern=r"^[0-9]{1,9}$")]
_TokenIds = Annotated[list[_TokenId], Field(min_length=1, fail_fast=True)]
_Text = Annotated[str, Field(strict=True)]
_Stop = Annotated[str, Field(strict=True, min_length=1, max_length=1024)]

Prompts = (
    _Text
    | _TokenIds
    | Annotated[list[_Text], Field(min_length=1, max_length=PROMPTS_MAX, fail_fast=True)]
    | Annotated[list[_TokenIds], Field(min_length=1, max_length=PROMPTS_MAX, fail_fast=True)]
)
"""One prompt or several, as texts or as token ids; PROMPTS_REMEDY says so."""
Inputs = (
    _Text
    | _TokenIds
    | Annotated[list[_Text], Field(min_length=1, max_length=INPUTS_MAX, fail_fast=True)]
    | Annotated[list[_TokenIds], Field(min_length=1, max_length=INPUTS_MAX, fail_fast=True)]
)
"""What is to be embedded, likewise."""
_REMEDY = "a text, a list of token ids, or a list of at most {most} of either"
PROMPTS_REMEDY, INPUTS_REMEDY = _REMEDY.format(most=PROMPTS_MAX), _REMEDY.format(most=INPUTS_MAX)


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StreamOptions(_Body):
    """How a stream is to be sent."""

    include_usage: _Flag = False
    continuous_usage_stats: _Flag = False
    include_obfuscation: _Flag = False


class CommonFields(_Body):
    """What every OpenAI body here may hold."""

    model: Annotated[_Text, Field(min_length=1, max_length=256)] = Field(
        description="the name of a model that /v1/models lists"
    )
    user: _Text | None = Field(None, max_length=512, description="a text of at most 512 letters")
    weight: _Number | None = Field(
        None, gt=0, le=1e6, description="a number above 0, 1 is ordinary, more goes earlier"
    )
    priority: _Whole | None = Field(
        None, ge=-(2**31), le=2**31 - 1, description="a whole number, 0 is ordinary, lower first"
    )
    service_tier: Literal["auto", "default", "flex", "priority", "scale"] | None = Field(
        None, description="one of auto, default, flex, priority"
    )
    timeout_seconds: _Number | None = Field(
        None, gt=0, le=86_400, description="the most seconds it may run, above 0, at most 86400"
    )
    queue_timeout_seconds: _Number | None = Field(
        None, gt=0, le=86_400, description="the most seconds it may wait, above 0, at most 86400"
    )


class _Generation(CommonFields):
    """What both chat and completions may hold."""

    max_tokens: _Whole | None = Field(
        None, ge=1, le=MAX_TOKENS_MAX, description="a whole number of tokens from 1"
    )
    n: _Whole = Field(
        1, ge=1, le=CHOICES_MAX, description=f"a whole number from 1 to {CHOICES_MAX}"
    )
    stop: _Stop | Annotated[list[_Stop], Field(max_length=STOPS_MAX, fail_fast=True)] | None = (
        Field(
            None, description=f"a text or a list of at most {STOPS_MAX} texts, none of them empty"
        )
    )
    temperature: _Number = Field(1.0, ge=0, le=2, description="a number from 0 to 2")
    top_p: _Number = Field(1.0, ge=0, le=1, description="a number from 0 to 1")
    top_k: _Whole = Field(
        0, ge=-1, le=2**31 - 1, description="a whole number, 0 or -1 for no limit"
    )
    min_p: _Number = Field(0.0, ge=0, le=1, description="a number from 0 to 1")
    seed: _Whole | None = Field(None, ge=-(2**63), le=2**63 - 1, description="a 64-bit number")
    presence_penalty: _Number = Field(0.0, ge=-2, le=2, description="a number from -2 to 2")
    frequency_penalty: _Number = Field(0.0, ge=-2, le=2, description="a number from -2 to 2")
    ignore_eos: _Flag = Field(False, description="true or false")
    repetition_penalty: _Number = Field(
        1.0, ge=0.01, le=10, description="a number from 0.01 to 10, 1 changes nothing"
    )
    logit_bias: Annotated[
        dict[_BiasedToken, Annotated[_Number, Field(ge=-100, le=100)]],
        Field(max_length=BIASED_MAX),
    ] = Field(
        default_factory=dict,
        description=f"an object of at most {BIASED_MAX} token ids with numbers from -100 to 100",
    )
    min_tokens: _Whole = Field(
        0, ge=0, le=MAX_TOKENS_MAX, description="a whole number from 0, at most max_tokens"
    )
    stop_token_ids: Annotated[list[_TokenId], Field(max_length=128, fail_fast=True)] = Field(
        default_factory=list, description="a list of at most 128 token ids"
    )
    response_format: ResponseFormat | None = Field(None, description=FORMAT_REMEDY)
    structured_outputs: StructuredOutputs | None = Field(
        None, description="an object with one of json (a schema), regex and choice (a list)"
    )
    guided_json: Schema | None = Field(None, description="a JSON schema")
    guided_regex: Pattern | None = Field(None, description="a regular expression")
    guided_choice: Choices | None = Field(None, description="a list of texts")
    stream: _Flag = Field(False, description="true or false")
    stream_options: StreamOptions | None = Field(
        None, description='an object such as {"include_usage": true}, with "stream": true'
    )

    def stops(self) -> tuple[str, ...]:
        """The stop texts, however they were given."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def wanted_tokens(self) -> tuple[str, int | None]:
        """The field that bounds the output, and its value."""
        return "max_tokens", self.max_tokens

    def alternatives(self) -> int | None:
        """How many alternatives beside each token; None for no logprobs."""
        raise NotImplementedError

    def sampling(self, choice: int) -> Sampling:
        """Sampling of the choice-th of n: a seed is moved on, so that choices differ.

        A top_p of 0 leaves the likeliest token alone, as at OpenAI: that is greedy.
        """
        return Sampling(
            temperature=self.temperature if self.top_p > 0 else 0.0,
            top_p=self.top_p or 1.0,
            top_k=max(0, self.top_k),
            min_p=self.min_p,
            seed=None if self.seed is None else (self.seed + choice) % 2**63,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logprobs=self.alternatives(),
            repetition_penalty=self.repetition_penalty,
            logit_bias=tuple((int(token), bias) for token, bias in self.logit_bias.items()),
            min_tokens=self.min_tokens,
            stop_token_ids=tuple(self.stop_token_ids),
        )

    def wish(self) -> Wish | None:
        """The grammar that the answer has to keep. Raises ApiError 400."""
        names = ("guided_json", "guided_regex", "guided_choice")
        guided = {name: getattr(self, name) for name in names}
        return wish_of(self.response_format, self.structured_outputs, guided)


class ChatRequest(_Generation):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[
        list[Message], Field(min_length=1, max_length=MESSAGES_MAX, fail_fast=True)
    ] = Field(
        description='a list of objects such as {"role": "user", "content": "text"}, with role '
        "system, developer, user, assistant or tool and content a text or text parts"
    )
    max_completion_tokens: _Whole | None = Field(
        None, ge=1, le=MAX_TOKENS_MAX, description="a whole number of tokens from 1"
    )
    tools: Tools = Field(default_factory=list, description=TOOLS_REMEDY)
    tool_choice: ToolChoice | None = Field(None, description=CHOICE_REMEDY)
    parallel_tool_calls: _Flag = Field(True, description="true or false")
    logprobs: _Flag = Field(False, description="true or false")
    top_logprobs: _Whole | None = Field(
        None, ge=0, le=20, description='a whole number from 0 to 20, with "logprobs": true'
    )

    def wanted_tokens(self) -> tuple[str, int | None]:
        """max_completion_tokens, which replaced max_tokens, goes first."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    @cached_property
    def calling(self) -> Calling | None:
        """How calls of its tools are asked for. Raises ApiError 400."""
        return calling(self.tools, self.tool_choice, several=self.parallel_tool_calls)

    def wish(self) -> Wish | None:
        """The grammar that the answer, or its call, has to keep. Raises ApiError 400."""
        wish, calls = super().wish(), self.calling
        if calls is None or calls.wish is None:
            return wish
        if wish is not None:
            raise invalid(
                wish.field, f"{wish.field} and a tool_choice that asks for a call: send one."
            )
        return calls.wish

    def alternatives(self) -> int | None:
        """``top_logprobs`` where ``logprobs`` is on."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Generation):
    """The body of POST /v1/completions."""

    prompt: Prompts = Field(description=PROMPTS_REMEDY)
    logprobs: _Whole | None = Field(None, ge=0, le=20, description="a whole number from 0 to 20")
    echo: _Flag = Field(False, description="true or false")

    def alternatives(self) -> int | None:
        """``logprobs`` itself is the count."""
        return self.logprobs


class EmbeddingRequest(CommonFields):
    """The body of POST /v1/embeddings."""

    input: Inputs = Field(description=INPUTS_REMEDY)
    encoding_format: Literal["float", "base64"] = Field("float", description="float or base64")
    dimensions: _Whole | None = Field(
        None, ge=1, le=65_536, description="the model's own number of dimensions, or nothing"
    )


Parsed = TypeVar("Parsed", bound=CommonFields)


def parse(schema: type[Parsed], body: Mapping[str, Any]) -> Parsed:
    """``body`` as ``schema``; null counts as absent, as the OpenAI clients send it.

    Raises ApiError 400 naming the field.
    """
    known = schema.model_fields
    count_keys(body, "body")
    count_keys(body.get("stream_options"), "stream_options")
    if isinstance(bias := body.get("logit_bias"), dict) and len(bias) > BIASED_MAX:
        said = f"logit_bias has {len(bias)} tokens: send {BIASED_MAX} at most."
        raise invalid("logit_bias", said)
    count_chat(body)
    kept = {}
    for name, value in body.items():
        if value is None:
            continue
        if name in known:
            kept[name] = value
        else:
            pass_over(name, body, known)
    try:
        parsed = schema.model_validate(kept)
    except ValidationError as error:
        raise from_validation(error, schema) from None
    _check_together(parsed)
    return parsed


def _check_together(parsed: CommonFields) -> None:
    """Fields that are right alone and wrong together."""
    if isinstance(parsed, _Generation):
        field, most = parsed.wanted_tokens()
        if most is not None and parsed.min_tokens > most:
            raise invalid(
                "min_tokens", f"min_tokens is {parsed.min_tokens} and {field} {most}: lower it."
            )
    if isinstance(parsed, _Generation) and parsed.stream_options and not parsed.stream:
        raise invalid(
            "stream_options", 'stream_options needs "stream": true: set it or leave both out.'
        )
    if isinstance(parsed, ChatRequest) and parsed.top_logprobs and not parsed.logprobs:
        raise invalid("top_logprobs", 'top_logprobs needs "logprobs": true: set it too.')
    if isinstance(parsed, CompletionRequest):
        if parsed.echo:
            raise invalid("echo", "echo is not supported: put the prompt before the text yourself.")
        prompts = parsed.prompt
        count = len(prompts) if isinstance(prompts, list) and not _is_ids(prompts) else 1
        if count * parsed.n > PROMPTS_MAX:
            raise invalid(
                "n",
                f"n is {parsed.n}: with {count} prompts that makes {count * parsed.n} choices, "
                f"and {PROMPTS_MAX} are allowed in one request. Send several requests.",
            )


def _is_ids(values: list[Any]) -> bool:
    return bool(values) and isinstance(values[0], int)


def named(field: str, value: str | list[Any]) -> list[tuple[str, str | list[int]]]:
    """One or many texts or token id lists, as many, each with the name that errors call it by."""
    if isinstance(value, str) or _is_ids(value):
        return [(field, value)]
    return [(f"{field}[{place}]", one) for place, one in enumerate(value)]


def weight_of(body: CommonFields, header: str | None) -> float:
    """W of a request. The first of these that is given decides:

    1. ``weight`` in the body;
    2. the header ``x-llmtaskpool-weight``;
    3. vLLM's ``priority``: W = 2^-priority, with priority held within +-10 (lower goes first);
    4. OpenAI's ``service_tier``: flex 1/4, auto, default and scale 1, priority 4;
    5. else 1.
    """
    if body.weight is not None:
        return body.weight
    if header is not None:
        return header_weight(header)
    if body.priority is not None:
        return 2.0 ** -max(-PRIORITY_MAX, min(PRIORITY_MAX, body.priority))
    return TIER_WEIGHTS[body.service_tier or "default"]


def header_weight(header: str) -> float:
    """The weight that a header gives; raises ApiError 400 naming it."""
    try:
        weight = float(header)
    except ValueError:
        weight = 0.0
    if not 0 < weight <= 1e6:
        raise invalid(
            WEIGHT_HEADER,
            f"{WEIGHT_HEADER} is {shown(header)}: send a number above 0, at most 1000000.",
        )
    return weight
