"""A decoder from its folder, in the numbers and the form in which it computes fastest here.

``auto`` on a CPU: weights packed in bfloat16 where the processor multiplies it itself and the model
is proven to stay the same, else in float32. The measure is what the change costs in perplexity: the
Kullback-Leibler divergence of the next token's distribution from that of the plain float32 model,

    KL(p || q) = sum p (log p - log q) in nats, the mean over the positions of a probe,

and exp(KL) is by how much the perplexity of text that the float32 model writes would grow. Its
bound is 0.005: half a percent. ``dtype=float32`` answers as transformers does, token for token.
Small models stay in float32: they save little, and the likeliest words of a small model are often
closer than bfloat16 can tell (of the 135 M of SmolLM2, 0.08 nats at the word that decides whether
the capital of France is Paris).

``dtype=int8``, which is asked for, holds the weights in 8 bits (int8.py) and computes all else in
float32. It is measured in the same way: beyond its bound the model is refused.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from llmtaskpool_worker.disclosure import where_raised
from llmtaskpool_worker.engines import int8
from llmtaskpool_worker.engines.admission import (
    AUTO,
    DTYPES,
    INT8,
    dtype_of,
    fits,
    refuse_what_never_fits,
)
from llmtaskpool_worker.engines.attention import SlotAttention, unservable
from llmtaskpool_worker.engines.embedding_table import map_tied_embeddings
from llmtaskpool_worker.engines.fused import fuse
from llmtaskpool_worker.engines.linear import (
    LEAST_SHARE,
    give_embeddings_in,
    native_bfloat16,
    pack_linears,
    to_int8,
)
from llmtaskpool_worker.engines.memory import measured_peak
from llmtaskpool_worker.engines.proving import probe, prove
from llmtaskpool_worker.engines.slot_cache import SlotCache
from llmtaskpool_worker.engines.weight_files import numbers_in
from llmtaskpool_worker.engines.weights import (
    ModelRefused,
    check_numbers,
    check_task,
    load_weights,
)

log = logging.getLogger("llmtaskpool.engine")

DEFAULT_CONTEXT = 2048
"""For models whose configuration names no longest position."""
PROBE_TOKENS = 48
MOST_DIVERGENCE = 0.005
"""Nats: the perplexity grows by at most 0.5 %."""
INT8_DIVERGENCE = 0.05
"""Nats, of a model in 8 bits. The 135 M of SmolLM2 are at a third of it."""
SMALL_NUMBERS = 500_000_000
"""A model of fewer is small."""
LOADING_BYTES = 8
"""For each number of a model that is read in float32 and held in 8 bits: joined weights (fused.py)
lie beside those that they are of until all are packed."""
FUSED_TOLERANCE = 1e-4
"""Of the largest logit, in float32."""
ROUNDED_DIVERGENCE = 0.02
"""Nats, in shorter numbers: two ways of rounding are twice as far from each other as from float32,
and single logits of a real model by 7 % of the largest."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """A model on its device, ready to compute; ``dtype`` is that of its hidden states, ``weights``
    what its weights are held in.

    ``token_bytes``: what a step holds for each of its tokens, for a moment.
    """

    model: nn.Module
    dtype: torch.dtype
    weights: str
    vocab_size: int
    eos_token_ids: list[int]
    context_length: int
    token_bytes: int


def load_decoder(folder: Path, device: str, dtype: str, memory_bytes: int | None = None) -> Decoder:
    """The model in ``folder``. ``dtype``: one of DTYPES or INT8; ``memory_bytes``: of its engine.

    Raises:
        ModelRefused: it isn't a decoder that the slot cache can serve, its weights aren't whole,
            there is no such dtype here, or its weights never fit.
    """
    on_cpu = torch.device(device).type == "cpu"
    dtype_of(dtype, AUTO, (*DTYPES, INT8))
    if dtype == INT8:
        _check_int8(device)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if why := unservable(config.get_text_config()):
        raise ModelRefused(f"this model can't be served: {why}")
    check_task(config, folder, "generate")
    making = _Making(folder, config, device)
    usual = "bfloat16" if not on_cpu or _may_be_short(folder) else "float32"
    most = {"memory_bytes": memory_bytes}
    read = _read_for_int8(config, folder, most) if dtype == INT8 else dtype_of(dtype, usual)
    why_so = f", in which they are read to be held in {INT8}" if dtype == INT8 else ""
    refuse_what_never_fits(folder, device, read, most, why_so)
    if dtype == INT8:
        model, used = making.in_int8(getattr(torch, read)), torch.float32
    elif dtype == AUTO and on_cpu:
        model, used = making.best_on_cpu()
    else:
        used = getattr(torch, dtype_of(dtype, "bfloat16"))
        model = making.fused(used)
        if on_cpu:
            making.pack(model, used)
    ends: Any = model.generation_config
    eos = ends.eos_token_id if ends else None
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None) or DEFAULT_CONTEXT
    return Decoder(
        model=model,
        dtype=used,
        weights=INT8 if dtype == INT8 else str(used).removeprefix("torch."),
        vocab_size=int(text.vocab_size),
        eos_token_ids=eos if isinstance(eos, list) else [eos] if eos is not None else [],
        context_length=int(longest),
        token_bytes=making.step_bytes // PROBE_TOKENS,
    )


def _check_int8(device: str) -> None:
    if torch.device(device).type != "cpu":
        raise ModelRefused(
            f"dtype={INT8} is for CPUs, and device is {device}: leave dtype out for bfloat16, or "
            "say device=cpu"
        )
    if not int8.usable():
        raise ModelRefused(f"dtype={INT8} asks for a processor with AVX2: use float32 or bfloat16")


def _read_for_int8(config: Any, folder: Path, options: Mapping[str, Any]) -> str:
    """In what weights are read that are held in 8 bits then.

    Where the processor must do bfloat16 in software a probe of a model of billions takes minutes.
    """
    stored = getattr(config.get_text_config(), "dtype", None)
    whole = not native_bfloat16() and fits(folder, LOADING_BYTES, options)
    return "float32" if whole or stored != torch.bfloat16 else "bfloat16"


def _may_be_short(folder: Path) -> bool:
    """Whether bfloat16 is worth a proof, on a CPU."""
    return native_bfloat16() and numbers_in(folder) >= SMALL_NUMBERS


class _Making:
    """Loads the model, again where what was made of it can't be used."""

    def __init__(self, folder: Path, config: Any, device: str) -> None:
        self._folder, self._config, self._device = folder, config, device
        self._fuses = True
        self._checked = False
        self.step_bytes = 0
        """The most that the process held beyond what it had before, over the probe's tokens."""

    def _logits(self, model: nn.Module) -> Tensor:
        with measured_peak() as peak:
            made = logits(model)
        self.step_bytes = max(self.step_bytes, peak())
        return made

    def best_on_cpu(self) -> tuple[nn.Module, torch.dtype]:
        """Packed in bfloat16 where that may be, else in float32."""
        model = self.fused(torch.float32)
        if _may_be_short(self._folder):
            expected = self._logits(model)
            _prove_exactly(model)
            if self.pack(model, torch.bfloat16):
                apart = divergence(expected, self._logits(model))
                if apart <= MOST_DIVERGENCE:
                    log.info("weights in bfloat16: divergence %.4f nats", apart)
                    return model, torch.bfloat16
                log.warning(
                    "weights stay in float32: bfloat16 would change what the model says "
                    "(divergence %.4f nats, bound %.3f)",
                    apart,
                    MOST_DIVERGENCE,
                )
                del model
                gc.collect()
                model = self.fused(torch.float32)
        self.pack(model, torch.float32)
        return model, torch.float32

    def in_int8(self, read: torch.dtype) -> nn.Module:
        """With weights in 8 bits, read as ``read``; hidden states are float32."""
        model = self.fused(read)
        expected = self._logits(model)
        _prove_exactly(model)
        share = to_int8(model)
        if share < LEAST_SHARE:
            raise ModelRefused(
                f"dtype={INT8} holds linear layers in 8 bits, and they have {share:.0%} of this "
                "model's numbers; use bfloat16 or float32"
            )
        map_tied_embeddings(model, self._folder)
        give_embeddings_in(model, torch.float32)
        apart = divergence(expected, self._logits(model))
        if not apart <= INT8_DIVERGENCE:
            raise ModelRefused(
                f"dtype={INT8} would change what this model says (divergence {apart:.3f} nats, "
                f"bound {INT8_DIVERGENCE}); use bfloat16 or float32"
            )
        log.info("weights in 8 bits: divergence %.4f nats", apart)
        return model

    def fused(self, dtype: torch.dtype) -> nn.Module:
        """The model with fused modules, proven against the plain one; plain where they differ."""
        model = self._load(dtype)
        if not self._fuses:
            return model
        expected = None if self._checked else self._logits(model)
        try:
            count = fuse(model)
            why = None
            if count and expected is not None:
                why = _apart(expected, self._logits(model), exact=dtype == torch.float32)
        except Exception as error:  # whatever a family does with its modules, the plain ones serve
            why = where_raised(error)
        self._checked = True
        if why is None:
            return model
        log.warning("modules stay as they are: fused ones would compute something else (%s)", why)
        self._fuses = False
        del model
        gc.collect()
        return self._load(dtype)

    def pack(self, model: nn.Module, dtype: torch.dtype) -> bool:
        """Pack the weights, and leave a tied table of embeddings in its file."""
        if not pack_linears(model, dtype):
            return False
        mapped = map_tied_embeddings(model, self._folder)
        table = model.get_input_embeddings().weight  # type: ignore[operator]  # a method of every transformers model
        if table.dtype != dtype:
            if mapped:
                give_embeddings_in(model, dtype)
            else:
                table.data = table.data.to(dtype)
        return True

    def _load(self, dtype: torch.dtype) -> nn.Module:
        model: nn.Module = load_weights(
            AutoModelForCausalLM,
            self._folder,
            self._config,
            dtype=dtype,
            attn_implementation="eager",  # what every family has; replaced once it is proven
        )
        model.to(self._device).eval().requires_grad_(requires_grad=False)
        check_numbers(model)
        return model


def _prove_exactly(model: nn.Module) -> None:
    """Before its numbers are made shorter: then a small difference can't be told from rounding."""
    prove(SlotAttention(SlotCache()), model)
    model.set_attn_implementation("eager")  # type: ignore[operator]  # a method of every transformers model


@torch.inference_mode()
def logits(model: nn.Module) -> Tensor:
    """(PROBE_TOKENS, vocabulary) in float32: what a model makes of the probe by itself."""
    device = next(model.parameters()).device
    vocab_size = int(model.config.get_text_config().vocab_size)  # type: ignore[union-attr,operator]  # every transformers model has one
    ids = torch.tensor([probe(vocab_size, PROBE_TOKENS)], device=device)
    made: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return made.float()


def divergence(expected: Tensor, found: Tensor) -> float:
    """Mean KL(expected || found) of rows of logits, in nats; NaN where either is no number."""
    p, q = torch.log_softmax(expected, dim=-1), torch.log_softmax(found, dim=-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def _apart(expected: Tensor, found: Tensor, *, exact: bool) -> str | None:
    """By how much logits differ, in words; None where they are the same but for rounding."""
    if not exact:
        nats = divergence(expected, found)
        return None if nats <= ROUNDED_DIVERGENCE else f"divergence {nats:.3f} nats"
    scale = expected.abs().max().clamp(min=1e-6)
    apart = float((found - expected).abs().max() / scale)
    return None if apart <= FUSED_TOLERANCE else f"by {apart:.1e} of the largest logit"
