"""What the one-pass loop asks of a model: how big a row is, and what comes of a batch of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llmtaskpool_worker.engines.protocol import AdmitEmbedding, AdmitInputs, FromEngine, Ready

Message = AdmitEmbedding | AdmitInputs
ANSWER_BYTES = 32 << 20
"""Of numbers that one request is answered: a message of the engine holds 64 MiB."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a row can't be run, or came to nothing: a code for programs, a sentence for people."""

    code: str
    message: str


class Head(Protocol):
    """One loaded model and its task. Every call is from the thread that steps."""

    budget: int
    """The most that one step may take, in the unit of ``cost``; one row may take more."""

    @property
    def room(self) -> int | None:
        """Bytes that a step may hold; None where no step of its budget could hold more."""

    def fit_into(self, room: int) -> int:
        """Measure what steps hold, and take from now on only what fits into ``room`` bytes.

        Returns the most that a step will hold. Raises ModelRefused where nothing fits.
        """

    def needs(self, rows: Sequence[Any]) -> int:
        """Bytes that a step over these rows holds for a moment, by what was measured."""

    def ready(self) -> Ready:
        """What was loaded; the loop adds how many requests it takes at once."""

    def rows(self, message: Message) -> Sequence[Any] | Fault:
        """The rows of a request, or why it can't be run."""

    def size(self, row: Any) -> int:
        """Of one row: tokens, or pixels."""

    def cost(self, sizes: Sequence[int]) -> int:
        """What a batch of rows of these sizes takes, with all that it is padded with."""

    def run(self, rows: Sequence[Any]) -> Sequence[Any]:
        """One forward pass: a value or a Fault for each row."""

    def answer(self, message: Message, values: Sequence[Any], size: int) -> FromEngine:
        """What a request is told once all its rows have run. ``size``: of its rows together."""

    def beat_with(self, beat: Callable[[], None]) -> None:
        """Call ``beat`` at each layer from now on."""
