"""Heads over an encoder: embed, rerank and score, classify, tag, answer.

A step gives each row its logits. What becomes of them is the request's own choice (its options),
so that requests with different ones share a step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from llmtaskpool_worker.engines.admission import step_peak
from llmtaskpool_worker.engines.one_pass.encoder import Reads, Row
from llmtaskpool_worker.engines.one_pass.head import Fault, Message
from llmtaskpool_worker.engines.protocol import (
    AdmitEmbedding,
    AdmitInputs,
    FromEngine,
    Ready,
    RequestFailed,
    Values,
    Vector,
)

NOT_FINITE = Fault("not_finite", "the model's output is not a number")
ANSWER_TOKENS = 15
"""The longest answer by default, as in transformers' pipeline."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One forward pass: what the model gave for these rows, and the mask of what is no padding."""

    out: Any
    mask: Tensor
    rows: Sequence[Row]


class TextHead(ABC):
    """A Head over texts. What is left to each task: ``outputs`` and ``conclude``."""

    def __init__(self, encoder: Reads, about: dict[str, Any] | None = None) -> None:
        self.encoder = encoder
        self.budget = encoder.budget
        self.about = about or {}

    @abstractmethod
    def outputs(self, ran: Ran) -> Sequence[Tensor]:
        """A tensor for each row of what the model gave."""

    @abstractmethod
    def conclude(self, outputs: Sequence[Tensor], options: dict[str, Any]) -> list[Any]:
        """What a request is told, in place of the outputs of its rows."""

    def ready(self) -> Ready:
        """What was loaded."""
        encoder = self.encoder
        return Ready(
            context_length=encoder.bounds.context_length,
            vocab_size=encoder.bounds.vocab_size,
            eos_token_ids=[],
            device=str(encoder.device),
            dtype=str(encoder.dtype).removeprefix("torch."),
            max_threads=0,
            about=self.about,
        )

    @property
    def room(self) -> int | None:
        """See Head."""
        return self.encoder.room

    def fit_into(self, room: int) -> int:
        """See Head."""

        def peak_of(row: Row) -> int:
            with step_peak(self.encoder.device) as peak, torch.inference_mode():
                self.run([row])
            return peak()

        return self.encoder.fit_into(room, peak_of)

    def needs(self, rows: Sequence[Row]) -> int:
        """See Head."""
        return self.encoder.needs(rows)

    def rows(self, message: Message) -> Sequence[Row] | Fault:
        """The rows of a request, or why it can't be run."""
        if isinstance(message, AdmitEmbedding):
            return Fault("wrong_model", "this model makes no embeddings")
        return self.encoder.bounds.rows(message)

    def size(self, row: Row) -> int:
        """Of one row, in tokens."""
        return len(row.tokens)

    def cost(self, sizes: Sequence[int]) -> int:
        """Tokens that a batch is run as."""
        return self.encoder.cost(sizes)

    def run(self, rows: Sequence[Row]) -> Sequence[Any]:
        """One forward pass: outputs, or a Fault, for each row."""
        return self.encoder.side_by_side(rows, self._run)

    def _run(self, rows: Sequence[Row]) -> Sequence[Any]:
        out, mask = self.encoder.run(rows)
        outputs = [one.float().cpu() for one in self.outputs(Ran(out, mask, rows))]
        return [one if bool(torch.isfinite(one).all()) else NOT_FINITE for one in outputs]

    def answer(self, message: Message, values: Sequence[Any], size: int) -> FromEngine:
        """Values of the request's rows."""
        options = message.options if isinstance(message, AdmitInputs) else {}
        try:
            concluded = self.conclude(values, options)
        except (TypeError, ValueError, IndexError, KeyError):
            return RequestFailed(message.id, "invalid", "the options can't be used")
        return Values(message.id, concluded, size)

    def beat_with(self, beat: Callable[[], None]) -> None:
        """Call ``beat`` at each layer from now on."""
        self.encoder.beat_with(beat)


class EmbedHead(TextHead):
    """Vectors of length 1, pooled by "mean" or "cls".

    With the option ``pairs`` ([[0, 1], [0, 2]]) it gives cosines of pairs of rows instead.
    """

    def __init__(self, encoder: Reads, *, pooling: str, dimensions: int) -> None:
        super().__init__(encoder)
        self.pooling = pooling
        self.dimensions = dimensions

    def ready(self) -> Ready:
        """What was loaded."""
        return msgspec.structs.replace(super().ready(), embedding_dimensions=self.dimensions)

    def rows(self, message: Message) -> Sequence[Row] | Fault:
        """The rows of a request, or why it can't be run."""
        return self.encoder.bounds.rows(message)

    def outputs(self, ran: Ran) -> Sequence[Tensor]:
        """(texts, tokens, dims) to (texts, dims) of length 1."""
        return list(nn.functional.normalize(pooled(ran, self.pooling), dim=-1))

    def answer(self, message: Message, values: Sequence[Any], size: int) -> FromEngine:
        """A Vector for AdmitEmbedding, else as of any head."""
        if isinstance(message, AdmitEmbedding):
            return Vector(message.id, _bytes(values[0]), size)
        return super().answer(message, values, size)

    def conclude(self, outputs: Sequence[Tensor], options: dict[str, Any]) -> list[Any]:
        """Vectors as little-endian float32 bytes, or cosines."""
        pairs = options.get("pairs")
        if pairs is None:
            return [_bytes(one) for one in outputs]
        return [float(outputs[one] @ outputs[other]) for one, other in pairs]


class ScoreHead(TextHead):
    """One number for each pair of texts, from a cross-encoder of one label.

    ``activation`` is what it was trained with: "sigmoid" or "identity".
    """

    def __init__(self, encoder: Reads, *, activation: str) -> None:
        super().__init__(encoder)
        self.activation = activation

    def outputs(self, ran: Ran) -> Sequence[Tensor]:
        """(1,) of each row."""
        return list(ran.out.logits)

    def conclude(self, outputs: Sequence[Tensor], options: dict[str, Any]) -> list[Any]:
        """Scores; with ``use_activation`` false as the model gave them."""
        scores = torch.cat(list(outputs))
        if self.activation == "sigmoid" and options.get("use_activation", True):
            scores = torch.sigmoid(scores)
        return list(scores.tolist())


class ClassifyHead(TextHead):
    """A number for each label: of one that is true (softmax), or of each by itself (sigmoid)."""

    def __init__(self, encoder: Reads, *, labels: Sequence[str], several: bool) -> None:
        super().__init__(encoder, {"labels": list(labels)})
        self.several = several

    def outputs(self, ran: Ran) -> Sequence[Tensor]:
        """(labels,) of each row."""
        return list(ran.out.logits)

    def conclude(self, outputs: Sequence[Tensor], options: dict[str, Any]) -> list[Any]:
        """Probabilities; with ``use_activation`` false as the model gave them."""
        return [activated(one, several=self.several, options=options) for one in outputs]


class TagHead(TextHead):
    """The label of each token, by its place in the list of labels, and how sure it is."""

    def __init__(self, encoder: Reads, *, labels: Sequence[str]) -> None:
        super().__init__(encoder, {"labels": list(labels)})

    def outputs(self, ran: Ran) -> Sequence[Tensor]:
        """(tokens, labels) of each row."""
        return [one[: len(row.tokens)] for one, row in zip(ran.out.logits, ran.rows, strict=True)]

    def conclude(  # nothing is left to choose
        self, outputs: Sequence[Tensor], _options: dict[str, Any]
    ) -> list[Any]:
        """``[labels, scores]`` of the tokens of each row."""
        found = [torch.softmax(one, dim=-1).max(dim=-1) for one in outputs]
        return [[one.indices.tolist(), one.values.tolist()] for one in found]


class AnswerHead(TextHead):
    """The best spans of the second text as answers to the first."""

    def outputs(self, ran: Ran) -> Sequence[Tensor]:
        """(2, tokens) of each row: logits of a beginning and of an end."""
        both = torch.stack((ran.out.start_logits, ran.out.end_logits), dim=1)
        return [
            torch.cat((one[:, :1], one[:, row.second : row.end]), dim=1)
            for one, row in zip(both, ran.rows, strict=True)
        ]

    def conclude(self, outputs: Sequence[Tensor], options: dict[str, Any]) -> list[Any]:
        """``[first, last, score]`` of the ``top_k`` best spans of each row, in its second text."""
        top = int(options.get("top_k", 1))
        longest = int(options.get("max_answer_tokens", ANSWER_TOKENS))
        return [_spans(one, top, longest) for one in outputs]


def _spans(logits: Tensor, top: int, longest: int) -> list[list[float]]:
    """score = P(begins here) x P(ends there), of spans of at most ``longest`` tokens.

    The first token of a row stands for "no answer": it has its share and is none. As in Devlin et
    al., BERT (2019), section 4.3, and in transformers' pipeline.
    """
    begins, ends = torch.softmax(logits, dim=-1)[:, 1:]
    count = len(begins)
    if not count:
        return []
    width = max(1, min(longest, count))
    # Beginnings by lengths, not by all ends: those of a long text would be gigabytes.
    spans = nn.functional.pad(ends, (0, width - 1)).unfold(0, width, 1)
    scores = (begins[:, None] * spans).flatten()
    best = scores.topk(min(top, len(scores)))
    places = [divmod(place, width) for place in best.indices.tolist()]
    found = zip(places, best.values.tolist(), strict=True)
    return [[first, first + more, score] for (first, more), score in found if first + more < count]


def pooled(ran: Ran, pooling: str) -> Tensor:
    """(texts, dims): the "mean" of a text's tokens, or its first one ("cls")."""
    hidden: Tensor = ran.out.last_hidden_state.float()
    if pooling == "cls":
        return hidden[:, 0]
    weights = ran.mask.unsqueeze(-1).float()
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def activated(logits: Tensor, *, several: bool, options: dict[str, Any]) -> list[float]:
    """Logits of labels as probabilities; as they are with ``use_activation`` false."""
    if not options.get("use_activation", True):
        return list(logits.tolist())
    return list((torch.sigmoid(logits) if several else torch.softmax(logits, dim=-1)).tolist())


def _bytes(vector: Tensor) -> bytes:
    return bytes(vector.numpy().astype("<f4").tobytes())
