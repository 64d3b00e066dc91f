"""The tokenizer of Marian's models: two of SentencePiece, and one vocabulary over both.

A folder of Helsinki-NLP holds ``source.spm``, ``target.spm`` and ``vocab.json``: a text is cut by
the source's pieces, an answer is put together of the target's, and ids are the vocabulary's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmtaskpool_worker.scheduling.task import EncodedRow

_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"
"""Stands for a blank in pieces."""


class PieceTokenizer:
    """The tokenizer of one folder. Safe to use from several threads.

    What looks like a special token in a text (</s>, >>fra<<) is letters.
    """

    def __init__(self, folder: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self._source = SentencePieceProcessor(model_file=str(folder / "source.spm"))
        self._ids: dict[str, int] = json.loads((folder / "vocab.json").read_bytes())
        self._pieces: dict[int, str] = {place: piece for piece, place in self._ids.items()}
        self._end, self._unknown = self._ids["</s>"], self._ids["<unk>"]
        self._left_out = {self._ids[one] for one in ("</s>", "<unk>", "<pad>") if one in self._ids}

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, and the end."""
        pieces: list[str] = self._source.encode(text, out_type=str)
        return [*(self._ids.get(piece, self._unknown) for piece in pieces), self._end]

    def encode_document(self, text: str) -> list[int]:
        """As ``encode``."""
        return self.encode(text)

    def encode_rows(
        self, texts: Sequence[str | tuple[str, str]], *, spans: bool = False
    ) -> list[EncodedRow]:
        """A row for each text, without places. Raises ValueError for pairs."""
        if spans or not all(isinstance(text, str) for text in texts):
            raise ValueError("this tokenizer reads single texts, and knows no places in them")
        rows = [self.encode(str(text)) for text in texts]
        return [EncodedRow(row, 0, len(row) - 1) for row in rows]

    def complete(self, tokens: Sequence[int]) -> list[int]:
        """Ids of this tokenizer with the end, where it is missing."""
        ids = list(tokens)
        return ids if ids[-1:] == [self._end] else [*ids, self._end]

    def encode_chat(
        self, _messages: Sequence[Mapping[str, Any]], _tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """Raises ValueError: these models hold no conversations."""
        raise ValueError("the model translates and has no chat template: use /translate")

    def reads_tools(self) -> bool:
        """No."""
        return False

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token stands for."""
        piece = self._pieces.get(token, "")
        return piece.replace(_BLANK, " ").encode()

    def is_in_text(self, token: int) -> bool:
        """Whether an answer's text holds it."""
        return token not in self._left_out

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        told = self.detokenizer()
        return "".join(map(told.push, tokens))

    def detokenizer(self) -> PieceDetokenizer:
        """A fresh one."""
        return PieceDetokenizer(self)


class PieceDetokenizer:
    """Text of tokens as they come. Pieces are whole letters: nothing is held back."""

    def __init__(self, tokenizer: PieceTokenizer) -> None:
        self._tokenizer = tokenizer
        self._begun = False

    def push(self, token: int) -> str:
        """The text of this token; the blank before the first word is left out."""
        if not self._tokenizer.is_in_text(token):
            return ""
        text = self._tokenizer.token_bytes(token).decode()
        if not self._begun:
            text = text.removeprefix(" ")
            self._begun = bool(text)
        return text

    def finish(self) -> str:
        """Nothing is left."""
        return ""
