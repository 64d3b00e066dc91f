"""Continuous batching over one Hugging Face decoder: schedule, run, postprocess."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from llmtaskpool_worker.engines.attention import SlotAttention, UnservableAttention, unservable
from llmtaskpool_worker.engines.batching import Batch, Batching, Sequence
from llmtaskpool_worker.engines.embedding_table import map_tied_embeddings
from llmtaskpool_worker.engines.grammars import Grammars
from llmtaskpool_worker.engines.linear import pack_linears
from llmtaskpool_worker.engines.loop import LoopMessage
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
from llmtaskpool_worker.engines.resident import give_back
from llmtaskpool_worker.engines.sampling import NOT_FINITE, Drawn, Sampler
from llmtaskpool_worker.engines.slot_cache import SlotCache, free_memory, memory_budget_tokens
from llmtaskpool_worker.engines.weights import (
    ModelRefused,
    check_numbers,
    check_task,
    load_weights,
)

CACHE_GRANULE = 128
PREFILL_CHUNK, PREFILL_CHUNK_CUDA = 128, 1024
"""Prompt tokens per step: large enough for efficient products on a CPU, or to be worth a step's
kernel launches on a GPU; small enough that a long prompt delays the tokens of those who decode by a
fraction of a second."""
DEFAULT_CONTEXT = 2048
"""For models whose configuration names no longest position."""
CACHE_SHARE = 0.5
"""Of the memory that is free after loading, what the cache may grow to."""


class GenerationLoop:
    """EngineLoop of one decoder. ``model`` is on its device, in its dtype, in eval mode.

    ``threads`` is N, the sequences that run at once; ``cache_bytes`` bounds the slot cache.
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
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.process_time,
        grammars: Grammars | None = None,
    ) -> None:
        self.model = model
        self.eos = frozenset(eos_token_ids)
        self.context_length = context_length
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.vocab_size = int(model.config.get_text_config().vocab_size)  # type: ignore[union-attr,operator]  # every transformers model has one
        self.cache = SlotCache()
        self.attention = SlotAttention(self.cache)
        self.sampler = Sampler(self.device, self.eos, grammars)
        self.clock, self.cpu_clock = clock, cpu_clock
        self.steps = 0
        self._cancelled: list[Finished] = []
        self._check_attention()
        budget = cache_bytes or int(free_memory(self.device) * CACHE_SHARE)
        budget_tokens = memory_budget_tokens(self.cache.bytes_per_token, budget)
        self.max_threads = max(1, min(max_threads, budget_tokens // CACHE_GRANULE))
        self.batching = Batching(
            threads=min(threads, self.max_threads),
            chunk=prefill_chunk,
            budget_tokens=budget_tokens,
            granule=CACHE_GRANULE,
        )

    def ready(self) -> Ready:
        """What was loaded."""
        return Ready(
            context_length=self.context_length,
            vocab_size=self.vocab_size,
            eos_token_ids=sorted(self.eos),
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
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
        batch = self.batching.schedule()
        sequences = self._drawing(batch)
        drawn = self._run(batch, sequences)
        return self._postprocess(batch, sequences, drawn, began)

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
        running = self.batching.running
        self.cache.reserve(
            len(running),
            self.batching.length_needed(),
            self.batching.filled,
            self.batching.budget_tokens,
        )
        tokens, positions = self.attention.lay_out(batch, running, self.device)
        rows = list(range(batch.decode))
        end = batch.decode
        for chunk in batch.chunks:
            end += chunk.length
            if chunk.last:
                rows.append(end - 1)
        logits = self._logits(tokens, positions, rows)
        return self.sampler.draw(logits, sequences) if sequences else []

    def _logits(self, tokens: Tensor, positions: Tensor, rows: list[int]) -> Tensor:
        """(rows, vocabulary): only of the tokens that draw."""
        keep = torch.tensor(rows, device=self.device, dtype=torch.long)
        out = self.model(
            input_ids=tokens, position_ids=positions, use_cache=False, logits_to_keep=keep
        )
        logits: Tensor = out.logits[0]
        return logits

    def _postprocess(
        self,
        batch: Batch,
        sequences: list[Sequence],
        drawn: list[Drawn],
        began: tuple[float, float],
    ) -> list[FromEngine]:
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
            kv_tokens_used=sum(s.filled for s in running),
            kv_tokens_total=self.batching.budget_tokens,
            cpu_seconds=self.cpu_clock() - began[1],
        )
        return [step, *failed]

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
        filled = self.batching.filled
        self.cache.shrink(len(filled), self.batching.length_needed() if filled else 0, filled)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        give_back()

    @torch.inference_mode()
    def _check_attention(self) -> None:
        """Refuse a model that computes something else over the slot cache than over its own.

        Two prompts go through both ways. It costs a moment at start and replaces a list of
        model families that is never complete; it also learns what a cached token takes.
        """
        prompt = [1 + 7 * i % (self.vocab_size - 1) for i in range(12)]
        ids = torch.tensor([prompt], device=self.device)
        expected = self.model(input_ids=ids, use_cache=False).logits[0, -1].float()
        self.model.set_attn_implementation(self.attention.name)  # type: ignore[operator]  # a method of every transformers model
        batching = Batching(threads=2, chunk=8, budget_tokens=1 << 30, granule=CACHE_GRANULE)
        for number in range(2):
            batching.waiting.append(Sequence(Admit(number, prompt, 1), list(prompt)))
        logits = expected.new_zeros(expected.shape)
        for _ in range(3):
            batch = batching.schedule()
            self.cache.reserve(2, CACHE_GRANULE, batching.filled, batching.budget_tokens)
            tokens, positions = self.attention.lay_out(batch, batching.running, self.device)
            try:
                logits = self._logits(tokens, positions, [tokens.shape[1] - 1])[0].float()
            except (UnservableAttention, TypeError) as error:
                raise ModelRefused(f"this model can't be served: {error}") from None
            for chunk in batch.chunks:
                batching.prefilled(chunk)
        self.cache.shrink(0, 0, [])
        tolerance = 1e-3 if self.dtype == torch.float32 else 0.1
        scale = expected.abs().max().clamp(min=1e-6)
        if not torch.allclose(logits / scale, expected / scale, atol=tolerance, rtol=0):
            raise ModelRefused(
                "this model can't be served: its attention isn't the usual one, so that its "
                "answers over the slot cache would differ; use a decoder with full or "
                "sliding-window attention"
            )


def load_generation(
    folder: Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int = 8,
    options: dict[str, Any] | None = None,
) -> GenerationLoop:
    """The loop over the model in ``folder`` (Hugging Face layout, safetensors).

    ``device`` defaults to cuda where there is one; ``dtype`` to bfloat16 there and float32 on a
    CPU. ``options``: max_threads, prefill_chunk, cache_bytes, context_length.

    Raises:
        ModelRefused: the model isn't a decoder that the slot cache can serve, or its weights
            aren't whole.
    """
    options = options or {}
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.startswith("cuda")
    dtype = dtype or ("bfloat16" if on_gpu else "float32")
    chunk = PREFILL_CHUNK_CUDA if on_gpu else PREFILL_CHUNK
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if why := unservable(config.get_text_config()):
        raise ModelRefused(f"this model can't be served: {why}")
    check_task(config, folder, "generate")
    model = load_weights(
        AutoModelForCausalLM,
        folder,
        config,
        dtype=getattr(torch, dtype),
        attn_implementation="eager",  # what every family has; replaced after the check below
    )
    model.to(device).eval().requires_grad_(requires_grad=False)
    check_numbers(model)
    if pack_linears(model):
        map_tied_embeddings(model, folder)
    eos = model.generation_config.eos_token_id if model.generation_config else None
    eos_ids = eos if isinstance(eos, list) else [eos] if eos is not None else []
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None) or DEFAULT_CONTEXT
    context = min(int(longest), int(options.get("context_length", longest)))
    give_back()
    return GenerationLoop(
        model,
        eos_token_ids=eos_ids,
        context_length=context,
        threads=threads,
        max_threads=int(options.get("max_threads", 256)),
        prefill_chunk=int(options.get("prefill_chunk", chunk)),
        cache_bytes=options.get("cache_bytes"),
        grammars=Grammars(folder, int(text.vocab_size), eos_ids),
    )
