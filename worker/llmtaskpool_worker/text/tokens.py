"""Text to tokens and back in the API process, without torch or transformers."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import tokenizers

from llmtaskpool_worker.engines.protocol import ModelSpec
from llmtaskpool_worker.engines.resident import give_back_heap
from llmtaskpool_worker.engines.sources import locate
from llmtaskpool_worker.scheduling.task import EncodedRow
from llmtaskpool_worker.text.chat_history import Message
from llmtaskpool_worker.text.chat_template import ChatTemplate, template_source
from llmtaskpool_worker.text.control_tokens import (
    Finder,
    StandIns,
    control_tokens,
    renamed,
    texts_of,
)
from llmtaskpool_worker.text.detokenizer import Detokenizer
from llmtaskpool_worker.text.pieces import PieceTokenizer

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


class Tokenizer:
    """The tokenizer and chat template of one model's folder. Safe to use from several threads.

    Its control tokens have secret names inside (see control_tokens): letters that look like one
    are letters, wherever they come from.
    """

    def __init__(
        self,
        folder: Path,
        *,
        now: Callable[[], datetime] = datetime.now,
        random_below: Callable[[int], int] = secrets.randbelow,
    ) -> None:
        spec = json.loads((folder / "tokenizer.json").read_bytes())
        config = _json(folder / "tokenizer_config.json")
        special = {
            name: token for name in _SPECIAL if (token := _token(config.get(name))) is not None
        }
        source = template_source(folder, config)
        self._template = None if source is None else ChatTemplate(source, special, now)
        written = "" if self._template is None else self._template.source + self._template.turns
        control = control_tokens(spec.get("added_tokens") or (), _special(config), written)
        mark = f"x{random_below(2**128):032x}x"
        self._random_below = random_below
        self._names = {token: f"{mark}{place:06}" for place, token in enumerate(sorted(control))}
        self._spelled = {name: token for token, name in self._names.items()}
        self._mark_begins = mark
        self._mark = re.compile(re.escape(mark) + r"\d{6}")
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(renamed(spec, self._names)))
        # Nothing is cut or filled up silently: what is too long is refused where it is checked.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._control = Finder(control)
        self._turn = Finder(self._turn_tokens(spec, control))
        self._byte_level = _is_byte_level(spec)
        self._before, self._after = self._around()
        added = self._tokenizer.get_added_tokens_decoder()
        self._left_out = frozenset(one for one, token in added.items() if token.special)

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the special tokens that the model wants around it.

        Control tokens in it are control tokens: who sends a whole prompt writes its turns too.
        """
        return self._ids(self._control.replace(text, self._name), special=True)

    def encode_document(self, text: str) -> list[int]:
        """Token ids of somebody's text, with the special tokens around it and none inside."""
        return self._ids(text, special=True)

    def encode_rows(
        self, texts: Sequence[str | tuple[str, str]], *, spans: bool = False
    ) -> list[EncodedRow]:
        """Rows for a model that runs once over its input: somebody's texts, as documents are."""
        encode = self._tokenizer.encode_batch if spans else self._tokenizer.encode_batch_fast
        return [
            _row(encoded, spans=spans, two=not isinstance(text, str))
            for text, encoded in zip(texts, encode(list(texts)), strict=True)
        ]

    def complete(self, tokens: Sequence[int]) -> list[int]:
        """Ids of this tokenizer with the special tokens around them that are missing."""
        ids = list(tokens)
        if ids[: len(self._before)] != self._before:
            ids = self._before + ids
        if self._after and ids[-len(self._after) :] != self._after:
            ids += self._after
        return ids

    def reads_tools(self) -> bool:
        """Whether its chat template tells the model of tools."""
        return self._template is not None and self._template.has_tools

    def encode_chat(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """Token ids of a conversation by the model's template, ready for an answer.

        ``tools`` are told where the template knows them. What looks like a control token in a
        message is text. In the assistant's own words only those of turns are: a model writes
        ``<think>`` itself, and it comes back with its history.

        Raises:
            ValueError: the model has no template, or its template refuses the messages.
        """
        if self._template is None:
            raise ValueError("the model has no chat template: use /v1/completions")
        stand_ins = StandIns(list(texts_of([*messages, *tools])), self._random_below)
        hidden = [self._hidden(message, stand_ins) for message in messages]
        known = [dict(stand_ins.hide(tool, self._control)) for tool in tools]
        text = self._control.replace(self._template(hidden, known), self._name)
        return self._ids(stand_ins.show(text), special=False)

    def _ids(self, text: str, *, special: bool) -> list[int]:
        # A batch of one, and not `encode`, which keeps the interpreter to itself for as long as
        # it runs: the event loop stood still for 1.4 s while a thread encoded 600,000 letters.
        encoded = self._tokenizer.encode_batch_fast([text], add_special_tokens=special)
        ids: list[int] = encoded[0].ids
        return ids

    def _hidden(self, message: Message, stand_ins: StandIns) -> Message:
        hidden: dict[str, Any] = stand_ins.hide(message, self._turn)
        if message["role"] != "assistant":
            return dict(stand_ins.hide(hidden, self._control))
        rest = {key: value for key, value in hidden.items() if key != "content"}
        return {**hidden, **stand_ins.hide(rest, self._control)}

    def _turn_tokens(self, spec: Mapping[str, Any], control: Mapping[str, bool]) -> dict[str, bool]:
        """Control tokens that no model's words hold: the special ones, and those of turns."""
        turns = set() if self._template is None else Finder(control).found(self._template.turns)
        special = {
            token["content"] for token in spec.get("added_tokens") or () if token.get("special")
        }
        return {token: alone for token, alone in control.items() if token in turns | special}

    def _around(self) -> tuple[list[int], list[int]]:
        """The special tokens that a text of this model has before and after it."""
        encoded = self._tokenizer.encode("a")
        own = [place for place, special in enumerate(encoded.special_tokens_mask) if not special]
        if not own:
            return [], []
        return encoded.ids[: own[0]], encoded.ids[own[-1] + 1 :]

    def _name(self, token: str) -> str:
        return self._names[token]

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token stands for; not always whole UTF-8."""
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if piece in self._spelled:
            return self._spelled[piece].encode()
        if self._byte_level:
            return b"".join(
                bytes([_BYTE_OF[letter]]) if letter in _BYTE_OF else letter.encode()
                for letter in piece
            )
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return str(piece).replace("\u2581", " ").encode()

    def is_in_text(self, token: int) -> bool:
        """Whether an answer's text holds it: special tokens are left out of it."""
        return token not in self._left_out

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return self._with_tokens_spelled(text)

    def detokenizer(self) -> Detokenizer:
        """A fresh incremental detokenizer."""
        return Detokenizer(
            self._tokenizer,
            self.token_bytes,
            self._with_tokens_spelled,
            self._mark_begins,
            byte_level=self._byte_level,
        )

    def _with_tokens_spelled(self, text: str) -> str:
        """Control tokens that aren't special are part of an answer (``<tool_call>``)."""
        if self._mark_begins not in text:
            return text
        return self._mark.sub(lambda match: self._spelled[match.group()], text)


def _row(encoded: Any, *, spans: bool, two: bool) -> EncodedRow:
    own = encoded.sequence_ids
    last = 1 if two else 0
    if last not in own:
        return EncodedRow(encoded.ids, 0, 0, [(0, 0)] * len(own) if spans else ())
    end = len(own) - own[::-1].index(last)
    told = [span if of == last else (0, 0) for span, of in zip(encoded.offsets, own, strict=True)]
    return EncodedRow(encoded.ids, own.index(1) if two else 0, end, told if spans else ())


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
        keep = max(overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The held text: no stop string came of it."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of ``stop``."""
    start = max(0, len(text) - len(stop) + 1)
    while (start := text.find(stop[0], start)) >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0


def load_tokenizer(spec: ModelSpec) -> Tokenizer | PieceTokenizer:
    """The tokenizer of a model whose folder is there. Raises OSError, ValueError."""
    folder = locate(spec.source)
    if (folder / "source.spm").is_file() and not (folder / "tokenizer.json").is_file():
        return PieceTokenizer(folder)
    tokenizer = Tokenizer(folder)
    give_back_heap()  # of the file's JSON, and of what was written anew: 31 MiB for SmolLM2
    return tokenizer


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_bytes()) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _token(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _special(config: Mapping[str, Any]) -> list[str]:
    """The tokens that a tokenizer_config.json calls special."""
    listed = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    values = list(listed.values()) if isinstance(listed, dict) else list(listed)
    values += [config.get(name) for name in _SPECIAL]
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        values += [one for one in decoder.values() if isinstance(one, dict) and one.get("special")]
    return [token for value in values if (token := _token(value)) is not None]


def _is_byte_level(spec: Mapping[str, Any]) -> bool:
    decoder = spec.get("decoder") or {}
    kinds = [decoder.get("type")] + [part.get("type") for part in decoder.get("decoders", [])]
    return "ByteLevel" in kinds


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return letters | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_letters()
