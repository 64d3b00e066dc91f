"""Continuous batching over one Hugging Face decoder: schedule, run, postprocess."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmtaskpool_worker.engines.admission import AUTO
from llmtaskpool_worker.engines.attention import SlotAttention
from llmtaskpool_worker.engines.batching import Batch, Batching, Sequence
from llmtaskpool_worker.engines.decoder import load_decoder
from llmtaskpool_worker.engines.grammars import Grammars
from llmtaskpool_worker.engines.loop import LoopMessage
from llmtaskpool_worker.engines.memory import own_bytes
from llmtaskpool_worker.engines.memory_plan import (
    CACHE_SHARE,
    Held,
    cache_budget,
    held_context,
    memory_budget,
    no_room,
)
from llmtaskpool_worker.engines.prefixes import Prefixes
from llmtaskpool_worker.engines.protocol import (
    Admit,
    Cancel,
    Finished,
    FromEngine,
    Park,
    Ready,
    RequestFailed,
    Resume,
    SetThreads,
    Step,
    Token,
    Trim,
)
from llmtaskpool_worker.engines.proving import logits_of, prove
from llmtaskpool_worker.engines.resident import give_back
from llmtaskpool_worker.engines.sampling import NOT_FINITE, Drawn, Sampler
from llmtaskpool_worker.engines.slot_cache import SlotCache, free_memory, memory_budget_tokens
from llmtaskpool_worker.engines.weights import ModelRefused as ModelRefused

log = logging.getLogger("llmtaskpool.engine")

CACHE_GRANULE = 128
PREFILL_CHUNK, PREFILL_CHUNK_CUDA = 128, 1024
"""Prompt tokens per step: large enough for efficient products on a CPU, or to be worth a step's
kernel launches on a GPU; small enough that a long prompt delays the tokens of those who decode by a
fraction of a second."""


KEPT_AT_REST = 0.125
"""Of the budget, what stays kept of ended sequences while nobody asks for anything."""


class GenerationLoop:
    """EngineLoop of one decoder. ``model`` is on its device, in its dtype, in eval mode.

    ``dtype``: of what it computes with, where its first weights have another; ``weights``: what
    they are held in, where that is shorter. ``threads`` is N, the sequences that run at once;
    ``cache_bytes`` bounds the slot cache and what is kept of sequences that have ended
    (``prefix_cache``) for who begins alike.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        eos_token_ids: list[int],
        context_length: int,
        threads: int,
        max_threads: int = 256,
        prefill_chunk: int = PREFILL_CHUNK,
        cache_bytes: int | None = None,
        prefix_cache: bool = True,
        dtype: torch.dtype | None = None,
        weights: str | None = None,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.process_time,
        grammars: Grammars | None = None,
    ) -> None:
        self.model = model
        self.eos = frozenset(eos_token_ids)
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, dtype or parameter.dtype
        self.weights = weights or str(self.dtype).removeprefix("torch.")
        self.vocab_size = int(model.config.get_text_config().vocab_size)  # type: ignore[union-attr,operator]  # every transformers model has one
        self.cache = SlotCache()
        self.attention = SlotAttention(self.cache)
        self.sampler = Sampler(self.device, self.eos, grammars)
        self.clock, self.cpu_clock = clock, cpu_clock
        self.memory_budget_bytes: int | None = None
        self.steps = 0
        self._cancelled: list[Finished] = []
        prove(self.attention, model)
        per_token = self.cache.bytes_per_token
        if cache_bytes is None:
            cache_bytes = int(free_memory(self.device) * CACHE_SHARE)
        budget_tokens = memory_budget_tokens(per_token, cache_bytes)
        if budget_tokens < CACHE_GRANULE:
            raise ModelRefused(no_room(CACHE_GRANULE * per_token, cache_bytes))
        self.context_length = held_context(context_length, budget_tokens, CACHE_GRANULE)
        self.cache_bytes = budget_tokens * per_token
        self.max_threads = max(1, min(max_threads, budget_tokens // CACHE_GRANULE))
        self.batching = Batching(
            threads=min(threads, self.max_threads),
            chunk=prefill_chunk,
            budget_tokens=budget_tokens,
            granule=CACHE_GRANULE,
            prefixes=Prefixes() if prefix_cache else None,
        )

    def ready(self) -> Ready:
        """What was loaded."""
        return Ready(
            memory_budget_bytes=self.memory_budget_bytes,
            context_length=self.context_length,
            vocab_size=self.vocab_size,
            eos_token_ids=sorted(self.eos),
            device=str(self.device),
            dtype=self.weights,
            max_threads=self.max_threads,
            cpu_threads=torch.get_num_threads() if self.device.type == "cpu" else 1,
        )

    @torch.inference_mode()
    def accept(self, message: LoopMessage) -> list[FromEngine]:
        """Take a message in; takes effect with the next step."""
        match message:
            case Admit():
                return self._admit(message)
            case Cancel(id=request_id):
                self._cancel(request_id)
            case Park(id=request_id):
                self._park(request_id)
            case Resume(id=request_id):
                self.batching.resume(request_id)
            case SetThreads(n=n):
                self.batching.threads = max(1, min(n, self.max_threads))
            case Trim():
                self._trim()
            case _:
                return [
                    RequestFailed(message.id, "wrong_model", "this model generates; it can't embed")
                ]
        return []

    def busy(self) -> bool:
        """Whether something runs, waits or has to be reported."""
        return bool(self.batching.running or self.batching.waiting or self._cancelled)

    def beat_with(self, beat: Callable[[], None]) -> None:
        """Call ``beat`` at each layer of each step from now on."""
        self.attention.beat = beat

    @torch.inference_mode()
    def step(self) -> list[FromEngine]:
        """Schedule, run, postprocess."""
        began = self.clock(), self.cpu_clock()
        self.cache.apply(self.batching.overflow())
        if self.batching.spare():
            self._shrink()
        cached = self.batching.filled
        batch = self.batching.schedule()
        self._make_room(batch, cached)
        sequences = self._drawing(batch)
        drawn = self._run(batch, sequences)
        return self._postprocess(batch, sequences, drawn, began)

    def _make_room(self, batch: Batch, cached: list[int]) -> None:
        """``cached``: tokens of each slot before this step's loads."""
        batching = self.batching
        self.cache.apply(batch.drops)
        if batch.decode or batch.chunks:
            kept = batching.prefixes.tokens if batching.prefixes is not None else 0
            limit = batching.budget_tokens - kept
            self.cache.reserve(len(batching.running), batching.length_needed(), cached, limit)
            batching.reserved = self.cache.slots * self.cache.length
        self.cache.apply(batch.loads)

    def _drawing(self, batch: Batch) -> list[Sequence]:
        """The sequences that draw a token in this step, in the order of their logits."""
        running = self.batching.running
        return [
            *running[: batch.decode],
            *(running[chunk.slot] for chunk in batch.chunks if chunk.last),
        ]

    def _run(self, batch: Batch, sequences: list[Sequence]) -> list[Drawn]:
        if not batch.decode and not batch.chunks:
            return []
        tokens, positions = self.attention.lay_out(batch, self.batching.running, self.device)
        rows = list(range(batch.decode))
        end = batch.decode
        for chunk in batch.chunks:
            end += chunk.length
            if chunk.last:
                rows.append(end - 1)
        logits = logits_of(self.model, tokens, positions, rows)
        return self.sampler.draw(logits, sequences) if sequences else []

    def _postprocess(
        self,
        batch: Batch,
        sequences: list[Sequence],
        drawn: list[Drawn],
        began: tuple[float, float],
    ) -> list[FromEngine]:
        reused = self._reused(batch)
        for sequence in self.batching.running[: batch.decode]:
            sequence.filled += 1
        for chunk in batch.chunks:
            self.batching.prefilled(chunk)
        tokens: list[Token] = []
        finished, self._cancelled = self._cancelled, []
        failed: list[FromEngine] = []
        for sequence, draw in zip(sequences, drawn, strict=True):
            request = sequence.request
            # A row whose logits are numbers has numbers in the cache, whatever its draw came to.
            sequence.finite = draw.fault is not NOT_FINITE
            if draw.token is None:
                failed.append(RequestFailed(request.id, *(draw.fault or NOT_FINITE)))
                self._release(sequence)
                continue
            own_end = draw.token in self.eos and (draw.ends or not request.ignore_eos)
            if own_end or draw.token in request.stop_token_ids:
                reason = "stop"
            else:
                sequence.tokens.append(draw.token)
                sequence.drawn += 1
                if request.presence_penalty or request.frequency_penalty:
                    sequence.counts[draw.token] = sequence.counts.get(draw.token, 0) + 1
                tokens.append(Token(request.id, draw.token, draw.logprob, list(draw.top)))
                reason = "length" if self._at_length(sequence) else ""
                reason = "stop" if draw.ends else reason
            if reason:
                finished.append(Finished(request.id, reason))
                self._release(sequence)
        self.steps += 1
        running = self.batching.running
        step = Step(
            number=self.steps,
            seconds=self.clock() - began[0],
            decode_batch=batch.decode,
            prefill_tokens=batch.prefill_tokens,
            tokens=tokens,
            finished=finished,
            parked=len(self.batching.parked),
            reused=reused,
            kv_tokens_used=sum(s.filled for s in running),
            kv_tokens_total=self.batching.budget_tokens,
            cpu_seconds=self.cpu_clock() - began[1],
        )
        return [step, *failed]

    def _reused(self, batch: Batch) -> list[tuple[int, int]]:
        """Who began now with what was kept of others; one that only goes on is not told again."""
        began = [self.batching.running[load.slot] for load in batch.loads]
        return [(s.request.id, s.reused) for s in began if s.reused and not s.drawn]

    def _at_length(self, sequence: Sequence) -> bool:
        return (
            sequence.drawn >= sequence.request.max_tokens
            or len(sequence.tokens) >= self.context_length
        )

    def _admit(self, request: Admit) -> list[FromEngine]:
        if fault := self._fault(request):
            return [RequestFailed(request.id, *fault)]
        self.batching.waiting.append(Sequence(request, list(request.prompt)))
        return []

    def _fault(self, request: Admit) -> tuple[str, str] | None:
        """Code and message of what makes a request impossible; None when nothing does."""
        if not request.prompt:
            return "empty_prompt", "the prompt has no tokens"
        if len(request.prompt) >= self.context_length:
            return "context_length_exceeded", (
                f"the prompt has {len(request.prompt)} tokens and the model's context is "
                f"{self.context_length}; shorten the prompt"
            )
        if request.max_tokens < 1:
            return "invalid_max_tokens", "max_tokens is below 1"
        if not 0 <= min(request.prompt) <= max(request.prompt) < self.vocab_size:
            return "token_out_of_range", f"a token id is not in 0 to {self.vocab_size - 1}"
        named = [*request.stop_token_ids, *(token for token, _ in request.logit_bias)]
        if named and not 0 <= min(named) <= max(named) < self.vocab_size:
            return "token_out_of_range", f"a token id is not in 0 to {self.vocab_size - 1}"
        return None

    def _park(self, request_id: int) -> None:
        """Its sampler's generator stays: the next draw is the one that would have come."""
        changes = self.batching.park(request_id)
        if changes is not None:
            self.cache.apply(changes)
            self._cancelled.append(Finished(request_id, "parked"))

    def _cancel(self, request_id: int) -> None:
        if self.batching.parked.pop(request_id, None) is not None:
            self.sampler.forget(request_id)
            return
        for sequence in self.batching.waiting:
            if sequence.request.id == request_id:
                self.batching.waiting.remove(sequence)
                self._cancelled.append(Finished(request_id, "cancelled"))
                return
        slot = self.batching.find(request_id)
        if slot is not None:
            self._cancelled.append(Finished(request_id, "cancelled"))
            self._release(self.batching.running[slot])

    def _release(self, sequence: Sequence) -> None:
        slot = self.batching.find(sequence.request.id)
        if slot is not None:
            self.cache.apply(self.batching.remove(slot))
        self.sampler.forget(sequence.request.id)

    def _trim(self) -> None:
        self._shrink()
        if self.batching.prefixes is not None:
            at_rest = int(self.batching.budget_tokens * KEPT_AT_REST)
            self.cache.apply(self.batching.prefixes.shrink(at_rest))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        give_back()

    def _shrink(self) -> None:
        """Give back what the running sequences don't need of their slots."""
        batching, filled = self.batching, self.batching.filled
        self.cache.shrink(len(filled), batching.length_needed() if filled else 0, filled)
        batching.reserved, batching.cramped = self.cache.slots * self.cache.length, False


def load_generation(
    folder: Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int = 8,
    options: dict[str, Any] | None = None,
) -> GenerationLoop:
    """The loop over the model in ``folder`` (Hugging Face layout, safetensors).

    ``device`` defaults to cuda where there is one; ``dtype`` to what decoder.py chooses for it.
    ``options``: max_threads, prefill_chunk, cache_bytes, prefix_cache, context_length,
    memory_bytes, memory_share.

    Raises:
        ModelRefused: the model isn't a decoder that the slot cache can serve, or its weights
            aren't whole, or there is never memory enough for it.
    """
    options = options or {}
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.startswith("cuda")
    chunk = int(options.get("prefill_chunk", PREFILL_CHUNK_CUDA if on_gpu else PREFILL_CHUNK))
    decoder = load_decoder(folder, device, dtype or AUTO, options.get("memory_bytes"))
    context = min(decoder.context_length, int(options.get("context_length", 1 << 31)))
    give_back()
    step = decoder.token_bytes * (chunk + threads)
    held = Held(own_bytes() or 0, free_memory(torch.device(device)), step, on_gpu)
    loop = GenerationLoop(
        decoder.model,
        dtype=decoder.dtype,
        weights=decoder.weights,
        eos_token_ids=decoder.eos_token_ids,
        context_length=context,
        threads=threads,
        max_threads=int(options.get("max_threads", 256)),
        prefill_chunk=chunk,
        cache_bytes=cache_budget(options, held),
        prefix_cache=bool(options.get("prefix_cache", True)),
        grammars=Grammars(folder, decoder.vocab_size, decoder.eos_token_ids),
    )
    if loop.context_length < context:
        log.warning("memory holds %d of %d tokens of context", loop.context_length, context)
    loop.memory_budget_bytes = memory_budget(options, held, loop.cache_bytes)
    return loop
