"""Payloads of tasks for models that read: rows of texts, tensors, pictures and sound. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """Token ids of a text or of two, with the special tokens around them.

    The last text ends at ``end``; a second one begins at ``second``. ``spans``: where in the last
    text each token stands; special tokens, and those of a first of two, at (0, 0).
    """

    tokens: Sequence[int]
    second: int
    end: int
    spans: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """What a model reads in one pass: token ids as little-endian uint32.

    The last text ends at ``end``; a second one begins at ``second``, 0: there is none.
    """

    tokens: bytes
    second: int = 0
    end: int = 0

    @property
    def size(self) -> int:
        """Tokens."""
        return len(self.tokens) // 4


@dataclass(frozen=True, slots=True)
class Spelled:
    """Where the tokens of a row stand in a text, as pairs of little-endian uint32.

    A token that stands nowhere in it begins and ends at the same letter.
    """

    text: str
    spans: bytes


@dataclass(frozen=True, slots=True)
class Tensor:
    """Numbers in little-endian order; ``datatype`` as Open Inference Protocol v2 has it: FP32."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes


IMAGE_TOKENS = 256
"""A picture takes about as long as so many tokens, until one has been measured."""
SOUND_TOKENS = 50
"""Of a second of sound: what a model that hears makes of it."""


@dataclass(frozen=True, slots=True)
class Transcribe:
    """Payload: write down what is said in a file of sound of so many ``seconds``.

    ``language``: its code, such as "en"; None: the model hears which it is. ``translate``: in
    English. ``prompt``: token ids of what was said before.
    """

    file: bytes
    seconds: float
    language: str | None = None
    translate: bool = False
    timestamps: bool = False
    prompt: tuple[int, ...] = ()
    temperature: float = 0.0
    seed: int | None = None

    @property
    def size(self) -> int:
        """In tokens, as far as they are known before."""
        return max(1, round(self.seconds * SOUND_TOKENS))


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Payload: run a model once over each row, and make a result of what comes of them.

    A model of tables takes ``tensors``, whose first dimension are the table's rows; one of pictures
    takes ``images``, files as they came.

    ``options`` is what the model's head reads, ``shown`` what of it the client wants to see
    (text/conclusions.py). ``spelled``: for each row its text, where the result tells places in it;
    ``groups``: for each row the input that it is a part of, where one has several rows.
    """

    rows: tuple[Row, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    shown: dict[str, Any] = field(default_factory=dict)
    spelled: tuple[Spelled, ...] = ()
    groups: tuple[int, ...] = ()
    tensors: tuple[Tensor, ...] = ()
    images: tuple[bytes, ...] = ()

    @property
    def size(self) -> int:
        """Tokens of all rows, or rows of the table, or what pictures weigh in tokens."""
        rows = self.tensors[0].shape[0] if self.tensors else 0
        return sum(row.size for row in self.rows) + rows + IMAGE_TOKENS * len(self.images)
