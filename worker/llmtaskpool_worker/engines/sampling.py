"""Drawing the next tokens from logits, for all rows of a step at once where that can be.

The greedy path is one argmax. Rows that ask for more are treated by the definitions that
transformers and OpenAI document: bias and penalties on raw logits, then what must not come is
barred (a grammar's mask, ends before min_tokens), then temperature, then top_k, top_p and min_p cut
the distribution, then one draw with the request's own generator. So a seed gives the same tokens
whatever else is in the batch.

Every number that a client may send is sampled safely: the best logit is taken off before anything
is divided, so that nothing grows beyond float32, and the likeliest token passes every cut. A row
that can't be drawn all the same fails its own request.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from llmtaskpool_worker.disclosure import where_raised
from llmtaskpool_worker.engines.batching import Sequence
from llmtaskpool_worker.engines.grammars import GrammarFailed, Grammars
from llmtaskpool_worker.engines.protocol import Admit

log = logging.getLogger("llmtaskpool.engine")

COLDEST = 1e-30
"""A temperature below counts as this one. It only keeps the division a number of float32: the gap
between two logits that differ at all is divided to more than the range of the exponential."""
LEAST_LOGPROB = -9999.0
"""What stands for minus infinity, which JSON hasn't; OpenAI's documented number for it."""

NOT_FINITE = ("not_finite", "the model's output is not a number")
NOT_DRAWN = (
    "sampling_failed",
    "a token can't be drawn with these sampling fields; send the request without them",
)


NO_GRAMMARS = (
    "unsupported_value",
    "this model's tokenizer can't follow a grammar; send the request without response_format",
)


@dataclass(frozen=True, slots=True)
class Drawn:
    """One drawn token; or ``fault``: the code and the sentence why there is none.

    ``ends``: the answer is whole with it.
    """

    token: int | None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    fault: tuple[str, str] | None = None
    ends: bool = False


class Sampler:
    """Draws tokens; keeps one generator for each running request that needs one.

    ``eos``: the model's own tokens that end an answer. ``grammars``: None where its tokenizer has
    none to offer.
    """

    def __init__(
        self,
        device: torch.device,
        eos: frozenset[int] = frozenset(),
        grammars: Grammars | None = None,
    ) -> None:
        self.device = device
        self._eos, self._grammars = eos, grammars
        self._generators: dict[int, torch.Generator] = {}

    def forget(self, request_id: int) -> None:
        """The request has ended."""
        self._generators.pop(request_id, None)
        if self._grammars is not None:
            self._grammars.forget(request_id)

    def draw(self, logits: Tensor, sequences: list[Sequence]) -> list[Drawn]:
        """One token per row of ``logits`` (rows, vocabulary), each by its sequence's request."""
        drawn = [
            Drawn(int(token)) if math.isfinite(value) else Drawn(None, fault=NOT_FINITE)
            for value, token in zip(*_likeliest(logits), strict=True)
        ]
        for row, sequence in enumerate(sequences):
            if drawn[row].token is not None and _special(sequence.request):
                drawn[row] = self._draw_or_fault(logits[row], sequence)
        return drawn

    def _draw_or_fault(self, logits: Tensor, sequence: Sequence) -> Drawn:
        """One row's fault is its own request's; a device that fails is everybody's."""
        try:
            return self._draw_one(logits.float(), sequence)
        except torch.AcceleratorError:
            raise
        except GrammarFailed as failed:
            said = f"the answer can't follow its grammar any further ({failed}); send a simpler one"
            return Drawn(None, fault=("grammar_failed", said))
        except Exception as error:
            # What it says may hold anything: its class and place must do.
            log.error("a row can't be drawn: %s", where_raised(error))  # noqa: TRY400
            return Drawn(None, fault=NOT_DRAWN)

    def _draw_one(self, logits: Tensor, sequence: Sequence) -> Drawn:
        request = sequence.request
        grammars = self._grammars if request.grammar is not None else None
        logits = _penalized(logits, sequence)
        if request.grammar is not None:
            if grammars is None:
                return Drawn(None, fault=NO_GRAMMARS)
            logits = grammars.mask(request.id, request.grammar, logits)
        logits = self._without_early_end(logits, sequence)
        if request.temperature > 0:
            probabilities = _distribution(logits, request)
            token = int(
                torch.multinomial(probabilities, 1, generator=self._generator(request)).item()
            )
        else:
            token = int(logits.argmax().item())
        ends = grammars is not None and grammars.drawn(request.id, token)
        if request.logprobs is None:
            return Drawn(token, ends=ends)
        logprobs = torch.log_softmax(logits, dim=-1).clamp_(min=LEAST_LOGPROB)
        values, ids = logprobs.topk(min(request.logprobs, logprobs.numel()))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return Drawn(token, float(logprobs[token].item()), top, ends=ends)

    def _without_early_end(self, logits: Tensor, sequence: Sequence) -> Tensor:
        """Without an end before min_tokens, where something else may come."""
        request = sequence.request
        ends = self._eos.union(request.stop_token_ids)
        if sequence.drawn < request.min_tokens and ends:
            without = logits.index_fill(0, _ids(ends, logits), -math.inf)
            if bool(torch.isfinite(without).any()):  # else the grammar has nothing but an end
                return without
        return logits

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


def _likeliest(logits: Tensor) -> list[list[float]]:
    """The largest logit of each row, and its tokens. A NaN anywhere in a row is its maximum."""
    if logits.device.type == "cpu":
        rows = logits.float().numpy()  # torch looks at one number after another: ten times slower
        tokens = rows.argmax(axis=-1)
        return [rows[range(len(rows)), tokens].tolist(), tokens.tolist()]
    best, greedy = logits.max(dim=-1)
    one_transfer = torch.stack((best.double(), greedy.double()))
    return one_transfer.tolist()


def _special(request: Admit) -> bool:
    return bool(
        request.temperature > 0
        or request.logprobs is not None
        or request.presence_penalty
        or request.frequency_penalty
        or request.repetition_penalty != 1
        or request.logit_bias
        or request.min_tokens
        or request.grammar is not None
    )


def _penalized(logits: Tensor, sequence: Sequence) -> Tensor:
    """logit + bias − presence · [drawn before] − frequency · (times drawn), as OpenAI documents.

    And repetition, as transformers does: of tokens in prompt or answer a logit above 0 is divided
    by it, another multiplied.
    """
    request = sequence.request
    if request.logit_bias:
        logits = logits.clone()
        values = torch.tensor([bias for _, bias in request.logit_bias], device=logits.device)
        logits[_ids([token for token, _ in request.logit_bias], logits)] += values
    if request.repetition_penalty != 1:
        seen = _ids(set(sequence.tokens), logits)
        old = logits[seen]
        penalty = request.repetition_penalty
        most = torch.finfo(logits.dtype).max
        new = torch.where(old > 0, old / penalty, old * penalty).clamp_(-most, most)
        # What can't come stays so; all else stays a number.
        logits = logits.index_copy(0, seen, torch.where(torch.isfinite(old), new, old))
    if not (request.presence_penalty or request.frequency_penalty) or not sequence.counts:
        return logits
    ids = torch.tensor(list(sequence.counts), device=logits.device)
    counts = torch.tensor(list(sequence.counts.values()), device=logits.device, dtype=logits.dtype)
    logits = logits.clone()
    logits[ids] -= request.presence_penalty + request.frequency_penalty * counts
    return logits


def _ids(tokens: Iterable[int], logits: Tensor) -> Tensor:
    return torch.tensor(list(tokens), device=logits.device, dtype=torch.long)


def _distribution(logits: Tensor, request: Admit) -> Tensor:
    """Probabilities over the vocabulary after temperature, top_k, top_p and min_p.

    ``logits`` are float32, the best of them finite. The likeliest token is never cut.
    """
    logits = (logits - logits.max()).div_(max(request.temperature, COLDEST))
    if 0 < request.top_k < logits.numel():
        kept = logits.topk(request.top_k)
        logits = torch.full_like(logits, -math.inf).scatter_(0, kept.indices, kept.values)
    probabilities = torch.softmax(logits, dim=-1)
    if request.top_p < 1:
        ordered, ids = probabilities.sort(descending=True)
        # A token stays when those before it hold less than top_p: the first always stays, even
        # where top_p is so small that it is 0 in float32.
        before = ordered.cumsum(0) - ordered
        stays = before < request.top_p * ordered.sum()
        stays[0] = True
        ordered = ordered.where(stays, ordered.new_zeros(()))
        probabilities = torch.zeros_like(probabilities).scatter_(0, ids, ordered)
    if request.min_p > 0:
        best = probabilities.max()
        stays = probabilities >= torch.minimum(request.min_p * best, best)
        probabilities = probabilities.where(stays, probabilities.new_zeros(()))
    return probabilities
