"""Drawing the next tokens from logits, for all rows of a step at once where that can be.

The greedy path is one argmax. Rows that ask for more are treated by the definitions that
transformers and OpenAI document: penalties on raw logits, then temperature, then top_k, top_p and
min_p cut the distribution, then one draw with the request's own generator. So a seed gives the
same tokens whatever else is in the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llmtaskpool_worker.engines.batching import Sequence
from llmtaskpool_worker.engines.protocol import Admit


@dataclass(frozen=True, slots=True)
class Drawn:
    """One drawn token; ``token`` None means that the logits were not finite numbers."""

    token: int | None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Draws tokens; keeps one generator for each running request that needs one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._generators: dict[int, torch.Generator] = {}

    def forget(self, request_id: int) -> None:
        """The request has ended."""
        self._generators.pop(request_id, None)

    def draw(self, logits: Tensor, sequences: list[Sequence]) -> list[Drawn]:
        """One token per row of ``logits`` (rows, vocabulary), each by its sequence's request."""
        best, greedy = logits.max(dim=-1)
        # One transfer for the step. A NaN anywhere in a row is its maximum.
        pairs = torch.stack((best.double(), greedy.double())).tolist()
        drawn = [
            Drawn(int(token)) if math.isfinite(value) else Drawn(None)
            for value, token in zip(*pairs, strict=True)
        ]
        for row, sequence in enumerate(sequences):
            if drawn[row].token is not None and _special(sequence.request):
                drawn[row] = self._draw_one(logits[row].float(), sequence)
        return drawn

    def _draw_one(self, logits: Tensor, sequence: Sequence) -> Drawn:
        request = sequence.request
        logits = _penalized(logits, sequence)
        if request.temperature > 0:
            probabilities = _distribution(logits, request)
            token = int(
                torch.multinomial(probabilities, 1, generator=self._generator(request)).item()
            )
        else:
            token = int(logits.argmax().item())
        if request.logprobs is None:
            return Drawn(token)
        logprobs = torch.log_softmax(logits, dim=-1)
        values, ids = logprobs.topk(min(request.logprobs, logprobs.numel()))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return Drawn(token, float(logprobs[token].item()), top)

    def _generator(self, request: Admit) -> torch.Generator:
        generator = self._generators.get(request.id)
        if generator is None:
            generator = torch.Generator(self.device)
            if request.seed is None:
                generator.seed()
            else:
                generator.manual_seed(request.seed)
            self._generators[request.id] = generator
        return generator


def _special(request: Admit) -> bool:
    return bool(
        request.temperature > 0
        or request.logprobs is not None
        or request.presence_penalty
        or request.frequency_penalty
    )


def _penalized(logits: Tensor, sequence: Sequence) -> Tensor:
    """logit − presence · [drawn before] − frequency · (times drawn), as OpenAI documents."""
    request = sequence.request
    if not (request.presence_penalty or request.frequency_penalty) or not sequence.counts:
        return logits
    ids = torch.tensor(list(sequence.counts), device=logits.device)
    counts = torch.tensor(list(sequence.counts.values()), device=logits.device, dtype=logits.dtype)
    logits = logits.clone()
    logits[ids] -= request.presence_penalty + request.frequency_penalty * counts
    return logits


def _distribution(logits: Tensor, request: Admit) -> Tensor:
    """Probabilities over the vocabulary after temperature, top_k, top_p and min_p."""
    logits = logits / request.temperature
    if 0 < request.top_k < logits.numel():
        kept = logits.topk(request.top_k)
        logits = torch.full_like(logits, -math.inf).scatter_(0, kept.indices, kept.values)
    probabilities = torch.softmax(logits, dim=-1)
    if request.top_p < 1:
        ordered, ids = probabilities.sort(descending=True)
        # A token stays when those before it hold less than top_p: the first always stays.
        before = ordered.cumsum(0) - ordered
        ordered = ordered.where(before < request.top_p * ordered.sum(), ordered.new_zeros(()))
        probabilities = torch.zeros_like(probabilities).scatter_(0, ids, ordered)
    if request.min_p > 0:
        probabilities = probabilities.where(
            probabilities >= request.min_p * probabilities.max(), probabilities.new_zeros(())
        )
    return probabilities
