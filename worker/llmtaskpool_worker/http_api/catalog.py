"""The models that the HTTP routes serve, and how a client's text becomes their tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from llmtaskpool_worker.disclosure import shown
from llmtaskpool_worker.http_api.errors import ApiError, invalid
from llmtaskpool_worker.http_api.turns import Turn
from llmtaskpool_worker.scheduling.task import EncodedRow

BIG_TEXT = 1024
"""Texts of more letters are tokenized in a thread, so that the event loop goes on."""


class Counter(Protocol):
    """What counts the tokens of a prompt for a server (text.token_count.TokenCounter)."""

    def count(self, texts: Sequence[str]) -> int:
        """Tokens of all texts together."""


class Codec(Protocol):
    """What the routes need of a tokenizer (text.tokens.Tokenizer has it)."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the special tokens around it; its own control tokens work."""

    def encode_document(self, text: str) -> list[int]:
        """Token ids of somebody's text, with the special tokens around it and none inside."""

    def encode_rows(
        self, texts: Sequence[str | tuple[str, str]], *, spans: bool = False
    ) -> list[EncodedRow]:
        """Texts, and pairs of texts, for a model that runs once over them; with their places."""

    def complete(self, tokens: Sequence[int]) -> list[int]:
        """Ids of this tokenizer with the special tokens around them that are missing."""

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """Token ids of a conversation by the model's template, ready for an answer."""

    def reads_tools(self) -> bool:
        """Whether the template tells the model of tools."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token stands for; not always whole UTF-8."""

    def is_in_text(self, token: int) -> bool:
        """Whether an answer's text holds it: special tokens are left out of it."""


@dataclass(slots=True)
class Model:
    """One model; what isn't known before it is loaded is None.

    ``longest_token`` is the most letters that one token stands for: it refuses a text that can't
    fit without tokenizing it. ``token_ids``: clients of this embedding model are known to use its
    own tokenizer, so that ids they send are its ids. ``aliases``: other names that clients may
    ask for; answers and metrics have ``name``. ``forwards``: a server answers for it, and takes
    requests as they are; ``about`` is what its engine said of it (a table's inputs); ``counter``
    counts the tokens of its prompts, where one was given. ``most_tokens``: the longest answer that
    may be asked for; None: what the context leaves.
    """

    name: str
    task: str
    created: int
    codec: Codec | None = None
    context_length: int | None = None
    vocab_size: int | None = None
    dimensions: int | None = None
    longest_token: int = 512
    token_ids: bool = False
    aliases: tuple[str, ...] = ()
    forwards: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)
    counter: Counter | None = None
    most_tokens: int | None = None

    async def count(self, texts: Sequence[str]) -> int:
        """Tokens of a prompt for a server, as far as its texts tell."""
        assert self.counter is not None  # noqa: S101 - the caller has looked
        counter = self.counter
        letters = sum(map(len, texts))
        if letters <= BIG_TEXT:
            return counter.count(texts)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(_TOKENIZING, lambda: counter.count(texts))

    def ready_codec(self) -> Codec:
        """Its tokenizer. Raises ApiError 503 while it loads."""
        if self.codec is None:
            raise self.starting()
        return self.codec

    def starting(self) -> ApiError:
        """What is told of a model that is not loaded yet."""
        return ApiError(
            503,
            f"The model {self.name} is still loading: try again later.",
            code="starting",
            retry_after_seconds=2.0,
        )

    async def encode(self, value: str | Sequence[int], field: str) -> tuple[int, ...]:
        """Token ids of a prompt or a text to embed, or the given ids once checked.

        Raises ApiError naming ``field``.
        """
        codec = self.ready_codec()
        if self.task != "generate":
            return await self._encode_document(codec, value, field)
        if not isinstance(value, str):
            return self._checked(value, field)
        self.may_fit(len(value), field)
        return self._fitting(await off_loop(len(value), lambda: codec.encode(value)), field)

    async def encode_all(
        self, values: Sequence[tuple[str, str | Sequence[int]]]
    ) -> list[tuple[int, ...]]:
        """The same of many, each with the name of its field."""
        turn, encoded = Turn(), []
        for name, value in values:
            encoded.append(await self.encode(value, name))
            await turn.pass_on()
        return encoded

    async def _encode_document(
        self, codec: Codec, value: str | Sequence[int], field: str
    ) -> tuple[int, ...]:
        if not isinstance(value, str):
            if not self.token_ids:
                raise self._foreign_ids(field)
            self._checked(value, field)
            return self._fitting(codec.complete(value), field)
        self.may_fit(len(value), field)
        tokens = await off_loop(len(value), lambda: codec.encode_document(value))
        if len(tokens) <= len(codec.complete(())):
            raise invalid(
                field, f"{field} is empty or blank: {self.name} has nothing to read. Send text."
            )
        return self._fitting(tokens, field)

    def _foreign_ids(self, field: str) -> ApiError:
        return invalid(
            field,
            f"{field} is token ids: they would be taken for ids of the tokenizer of {self.name}, "
            "which most clients don't use (LangChain sends those of OpenAI's cl100k unless made "
            "with check_embedding_ctx_length=False). Send text. If they are this model's own ids, "
            "give it the option token_ids=true.",
            code="token_ids_refused",
        )

    async def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[int, ...]:
        """Token ids of a conversation. Raises ApiError naming ``messages``."""
        codec = self.ready_codec()
        letters = sum(_letters(one) for one in (*messages, *tools))
        self.may_fit(letters, "messages")
        size = letters + 64 * len(messages)
        try:
            tokens = await off_loop(size, lambda: codec.encode_chat(messages, tools))
        except ValueError as error:
            raise invalid("messages", f"messages can't be used with {self.name}: {error}") from None
        return self._fitting(tokens, "messages")

    def token(self, token: int) -> bytes:
        """The bytes of one token."""
        return self.ready_codec().token_bytes(token)

    def is_in_text(self, token: int) -> bool:
        """Whether an answer's text holds it: special tokens are left out of it."""
        return self.ready_codec().is_in_text(token)

    def check_tokens(self, field: str, tokens: Iterable[int]) -> None:
        """Raises ApiError 400 naming ``field`` for an id that the model doesn't have."""
        most = self.vocab_size
        foreign = next((one for one in tokens if most is not None and one >= most), None)
        if foreign is not None and most is not None:
            raise invalid(
                field,
                f"{field} holds the token id {foreign}: {self.name} knows 0 to {most - 1}.",
            )

    def reads_tools(self) -> bool:
        """Whether its chat template tells the model of tools."""
        return self.ready_codec().reads_tools()

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

    def may_fit(self, letters: int, field: str) -> None:
        """Refuse what is too long whatever its tokens are. Raises ApiError naming ``field``."""
        if self.context_length and letters > self.context_length * self.longest_token:
            least = -(-letters // self.longest_token)
            raise self.over(field, f"your {field} resulted in at least {least} tokens")

    def _fitting(self, tokens: Sequence[int], field: str) -> tuple[int, ...]:
        if not tokens:
            raise invalid(field, f"{field} is empty: send at least one token of text.")
        size = len(tokens)
        if self.context_length and size > self.context_length:
            raise self.over(field, f"your {field} resulted in {size} tokens")
        if self.context_length and size == self.context_length and self.task == "generate":
            raise self.over(field, _requested(field, size, 1), " or completion")
        return tuple(tokens)

    def over(self, field: str, problem: str, also: str = "") -> ApiError:
        """In the words by which clients know a full context (litellm, LangChain, Open WebUI).

        The code is in the message too: LangChain looks for it in what openai's package prints.
        """
        return invalid(
            field,
            f"This model's maximum context length is {self.context_length} tokens. However, "
            f"{problem}. Please reduce the length of the {field}{also} "
            "(context_length_exceeded).",
            code="context_length_exceeded",
        )

    def max_tokens(self, field: str, wanted: int | None, prompt_tokens: int, of: str) -> int:
        """The bound of the output: ``wanted``, else all that the context leaves.

        More than the context leaves beside the prompt, the field ``of``, is refused, as OpenAI
        does: an answer that can't be as long as asked for is not cut silently.
        """
        self.check_wanted(field, wanted)
        if self.context_length is None:
            return wanted or min(256, self.most_tokens or 256)
        room = self.context_length - prompt_tokens
        if wanted is not None and wanted > room:
            error = self.over(of, _requested(of, prompt_tokens, wanted), " or completion")
            error.message += f" {field} may be at most {room} here."
            error.param = field
            raise error
        return wanted or min(room, self.most_tokens or room)

    def check_wanted(self, field: str, wanted: int | None) -> None:
        """Raises ApiError naming ``field`` for a longer answer than this model may give."""
        if wanted is not None and self.most_tokens is not None and wanted > self.most_tokens:
            raise invalid(
                field,
                f"{field} is {wanted}, and {self.name} answers with at most {self.most_tokens} "
                "tokens here: send at most that, or leave it out.",
            )


_TOKENIZING = ThreadPoolExecutor(max_workers=4, thread_name_prefix="tokenize")
"""Of its own: asyncio's default executor is full when handlers or files fill it."""


def _requested(field: str, prompt: int, completion: int) -> str:
    return (
        f"you requested {prompt + completion} tokens ({prompt} in the {field}, {completion} in "
        "the completion)"
    )


def _letters(value: Any) -> int:
    """Letters of all texts in a message."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_letters, value.values()))
    return sum(map(_letters, value)) if isinstance(value, Sequence) else 0


T = TypeVar("T")


async def off_loop(letters: int, encode: Callable[[], T]) -> T:
    """What ``encode`` makes of so many letters: in a thread when they are many."""
    if letters > BIG_TEXT:
        return await asyncio.get_running_loop().run_in_executor(_TOKENIZING, encode)
    return encode()


_DOES = {
    "generate": "generates text",
    "embed": "makes embeddings",
    "rerank": "scores pairs of texts (task: rerank)",
    "classify": "classifies (task: classify)",
    "tag": "tags tokens (task: tag)",
    "answer": "finds answers in a text (task: answer)",
    "detect": "finds objects in pictures (task: detect)",
    "tensor": "runs over tables (task: tensor)",
    "translate": "translates (task: translate)",
    "summarize": "summarizes (task: summarize)",
    "transcribe": "writes down what is said (task: transcribe)",
}


class Catalog:
    """Models by name."""

    def __init__(self, models: Sequence[Model]) -> None:
        self._by_name = {name: model for model in models for name in (model.name, *model.aliases)}

    def all(self) -> list[tuple[str, Model]]:
        """Each name, aliases too, and its model, in the order configured."""
        return list(self._by_name.items())

    def forwards(self, body: Mapping[str, Any]) -> bool:
        """Whether a server answers for the model that a body names."""
        return self.of_server(body) is not None

    def of_server(self, body: Mapping[str, Any]) -> Model | None:
        """The model that a body names, where a server answers for it."""
        name = body.get("model")
        model = self._by_name.get(name) if isinstance(name, str) else None
        return model if model is not None and model.forwards else None

    def get(self, name: str, *tasks: str) -> Model:
        """The model called ``name``, which does one of ``tasks`` where some are given.

        Raises ApiError 404 when it is unknown, 400 when it is for another task.
        """
        model = self._by_name.get(name)
        if model is None:
            known = ", ".join(self._by_name) or "none"
            raise ApiError(
                404,
                f"The model {shown(name)} does not exist here. Use one of: {known}.",
                param="model",
                code="model_not_found",
            )
        if tasks and model.task not in tasks:
            wanted = " or ".join(_DOES.get(task, task) for task in tasks)
            raise invalid(
                "model",
                f"model is {shown(name)}, which {_DOES.get(model.task, model.task)}: use one that "
                f"{wanted}.",
            )
        return model
