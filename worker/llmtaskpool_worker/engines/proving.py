"""Whether a model computes over the slot cache what it computes by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmtaskpool_worker.engines.attention import SlotAttention, UnservableAttention
from llmtaskpool_worker.engines.batching import Batching, Sequence
from llmtaskpool_worker.engines.int8 import Int8Linear
from llmtaskpool_worker.engines.protocol import Admit
from llmtaskpool_worker.engines.weights import ModelRefused

ROOM = 128
"""Tokens that a slot gets here; the prompts are shorter."""
TOLERANCE = 1e-3
ROUNDED_TOLERANCE = 0.1
"""Of the largest logit, in float32 and in shorter numbers."""


def probe(vocab_size: int, length: int) -> list[int]:
    """Token ids for a check: the same ones for each load of a model."""
    return [1 + 7 * i % (vocab_size - 1) for i in range(length)]


def logits_of(model: nn.Module, tokens: Tensor, positions: Tensor, rows: list[int]) -> Tensor:
    """(rows, vocabulary): only of the tokens that draw."""
    keep = torch.tensor(rows, device=tokens.device, dtype=torch.long)
    out = model(input_ids=tokens, position_ids=positions, use_cache=False, logits_to_keep=keep)
    logits: Tensor = out.logits[0]
    return logits


@torch.inference_mode()
def prove(attention: SlotAttention, model: nn.Module) -> None:
    """Give the model its attention, or refuse it where its answers would differ.

    Two prompts go through both ways. It costs a moment at start and replaces a list of
    model families that is never complete; the cache also learns what a token takes.

    Raises:
        ModelRefused: it computes something else over the slot cache than over its own.
    """
    cache, device = attention.cache, next(model.parameters()).device
    vocab_size = int(model.config.get_text_config().vocab_size)  # type: ignore[union-attr,operator]  # every transformers model has one
    prompt = probe(vocab_size, 12)
    ids = torch.tensor([prompt], device=device)
    own = model(input_ids=ids, use_cache=False).logits[0, -1]
    expected = own.float()
    model.set_attn_implementation(attention.name)  # type: ignore[operator]  # a method of every transformers model
    batching = Batching(threads=2, chunk=8, budget_tokens=1 << 30, granule=ROOM)
    for number in range(2):
        batching.waiting.append(Sequence(Admit(number, prompt, 1), list(prompt)))
    logits = expected.new_zeros(expected.shape)
    for _ in range(3):
        batch = batching.schedule()
        cache.reserve(2, ROOM, batching.filled, batching.budget_tokens)
        tokens, positions = attention.lay_out(batch, batching.running, device)
        try:
            logits = logits_of(model, tokens, positions, [tokens.shape[1] - 1])[0].float()
        except (UnservableAttention, TypeError) as error:
            raise ModelRefused(f"this model can't be served: {error}") from None
        for chunk in batch.chunks:
            batching.prefilled(chunk)
    used = bool(cache.bytes_per_token)  # some families pass over the attention they are given
    cache.shrink(0, 0, [])
    rounded = own.dtype != torch.float32 or any(isinstance(m, Int8Linear) for m in model.modules())
    tolerance = ROUNDED_TOLERANCE if rounded else TOLERANCE
    scale = expected.abs().max().clamp(min=1e-6)
    if not used or not torch.allclose(logits / scale, expected / scale, atol=tolerance, rtol=0):
        raise ModelRefused(
            "this model can't be served: its attention isn't the usual one, so that its "
            "answers over the slot cache would differ; use a decoder with full or "
            "sliding-window attention"
        )
