"""Text to tokens and back in the API process, without torch or transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import tokenizers
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers.decoders import DecodeStream

from llmtaskpool_worker.engines.protocol import ModelSpec
from llmtaskpool_worker.engines.sources import locate

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


class Tokenizer:
    """The tokenizer and chat template of one model's folder. Safe to use from several threads."""

    def __init__(self, folder: Path, *, now: Callable[[], datetime] = datetime.now) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        # Nothing is cut or filled up silently: what is too long is refused where it is checked.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config = _json(folder / "tokenizer_config.json")
        self._special = {
            name: token for name in _SPECIAL if (token := _token(config.get(name))) is not None
        }
        self._template = _template(folder, config, now)
        self._byte_level = _is_byte_level(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the model wants around it."""
        return self._ids(text, special=True)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation by the model's template, ready for an answer.

        Raises:
            ValueError: the model has no template, or its template refuses the messages.
        """
        if self._template is None:
            raise ValueError("the model has no chat template: use /v1/completions")
        try:
            text = self._template(
                {"messages": list(messages), "add_generation_prompt": True, **self._special}
            )
        except TemplateError as error:
            raise ValueError(f"the chat template says: {error.message}") from None
        return self._ids(text, special=False)

    def _ids(self, text: str, *, special: bool) -> list[int]:
        # A batch of one, and not `encode`, which keeps the interpreter to itself for as long as
        # it runs: the event loop stood still for 1.4 s while a thread encoded 600,000 letters.
        encoded = self._tokenizer.encode_batch_fast([text], add_special_tokens=special)
        ids: list[int] = encoded[0].ids
        return ids

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token stands for; not always whole UTF-8."""
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if self._byte_level:
            return b"".join(
                bytes([_BYTE_OF[letter]]) if letter in _BYTE_OF else letter.encode()
                for letter in piece
            )
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return str(piece).replace("\u2581", " ").encode()

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def detokenizer(self) -> Detokenizer:
        """A fresh incremental detokenizer."""
        return Detokenizer(self._tokenizer)


class Detokenizer:
    """Text of tokens as they come; halves of a letter wait for the rest of it."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._tokens: list[int] = []
        self._length = 0

    def push(self, token: int) -> str:
        """Text that became certain with this token; often all of it, sometimes none."""
        self._tokens.append(token)
        text: str = self._stream.step(self._tokenizer, token) or ""
        self._length += len(text)
        return text

    def finish(self) -> str:
        """What is left: a broken last letter becomes U+FFFD, as ``decode`` has it."""
        text: str = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        return text[self._length :]


class StopMatcher:
    """Finds the first of some stop strings in text that comes in pieces.

    Text that may be the beginning of a stop string is held back. Each piece is searched together
    with no more than the longest stop string before it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Text that is certain to be part of the answer. After ``stopped``, always empty."""
        if self.stopped or not self._stops:
            return "" if self.stopped else piece
        text = self._held + piece
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The held text: no stop string came of it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of ``stop``."""
    start = max(0, len(text) - len(stop) + 1)
    while (start := text.find(stop[0], start)) >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0


def load_tokenizer(spec: ModelSpec) -> Tokenizer:
    """The tokenizer of a model whose folder is there. Raises OSError, ValueError."""
    return Tokenizer(locate(spec.source))


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_bytes()) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _token(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _template(
    folder: Path, config: dict[str, Any], now: Callable[[], datetime]
) -> Callable[[dict[str, Any]], str] | None:
    """The chat template compiled the way transformers documents: sandboxed, blocks trimmed."""
    file = folder / "chat_template.jinja"
    source = file.read_text() if file.is_file() else config.get("chat_template")
    if isinstance(source, list):  # several named ones
        named = {entry.get("name"): entry.get("template") for entry in source}
        source = named.get("default")
    if not isinstance(source, str):
        return None

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, indent: int | None = None, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: now().strftime(form)
    compiled = environment.from_string(source)
    return lambda values: compiled.render(**values)


def _is_byte_level(tokenizer: tokenizers.Tokenizer) -> bool:
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    kinds = [decoder.get("type")] + [part.get("type") for part in decoder.get("decoders", [])]
    return "ByteLevel" in kinds


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return letters | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_letters()
