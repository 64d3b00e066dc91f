"""Continuous batching over an encoder-decoder: read once, then write a token a step.

A step first reads for those that begin (their sources worth a budget, so that nobody's next token
waits long), and then every running sequence gets one token. Who ends leaves its slot to the next
at once. What a source is (token ids, sound) is a Reader's matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from llmtaskpool_worker.engines.loop import LoopMessage
from llmtaskpool_worker.engines.protocol import (
    Admit,
    AdmitEmbedding,
    AdmitInputs,
    AdmitSound,
    Beat,
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
from llmtaskpool_worker.engines.seq2seq.running import Room, Writers, Writing
from llmtaskpool_worker.engines.seq2seq.slots import SlotDecoder

Fault = tuple[str, str]
"""A code for programs, a sentence for people."""
NO_CACHE = (
    "the text and what max_tokens lets it be answered are more than the cache ever holds: send it "
    "in parts, or ask for fewer tokens; or raise cache_bytes or memory_bytes of the model"
)


PeakOf = Callable[[dict[str, Tensor], int], int]
"""Bytes that a step held over one source, of what the encoder takes and its size."""


class Reader(Protocol):
    """What a kind of model reads, and what it asks of what is written."""

    about: dict[str, Any]
    budget: int
    """The most that one step reads, in what sources are sized by; one source may be more."""
    context_length: int
    """Of a source."""
    most: int
    """Tokens that the decoder may come to, its prefix among them."""

    def taken(self, message: Admit | AdmitSound) -> Writing | Fault:
        """A request as a sequence, or why it can't be run."""

    def sample(self) -> tuple[dict[str, Tensor], list[int]]:
        """What the encoder takes for one source or two, and their sizes: to try the decoder with.

        One stands for two.
        """

    @property
    def shortest(self) -> tuple[int, int]:
        """Tokens that the least sequence takes in the decoder's own cache and in the other."""

    def fit_into(self, room: int, peak_of: PeakOf) -> int:
        """Read at once from now on only what fits into ``room`` bytes of a step.

        Returns how many of them a step may come to. Raises ModelRefused where nothing fits.
        """

    def fit_beside(self, room: int) -> int:
        """What is unpacked beside the steps has ``room`` bytes; returns how much of it is used.

        Raises ModelRefused where that holds nothing.
        """

    def prepared(self, writing: Writing, *, wait: bool) -> bool | Fault:
        """Whether its source can be read now; with ``wait`` it may take a moment until it can."""

    def given(self, sequences: Sequence[Writing]) -> dict[str, Tensor]:
        """What the encoder takes for these, one row each."""

    def ruled(self, writing: Writing, logits: Tensor) -> Tensor:
        """(vocabulary,) of the next token as the model's own rules leave it."""

    def drawn(self, writing: Writing, token: int) -> bool:
        """A token was drawn, which is no end; whether it is told to the client."""

    def ended(self, writing: Writing) -> bool:
        """Its text ended: whether so does the request. Else its next part's prefix is set."""

    def conclusion(self, writing: Writing) -> FromEngine | None:
        """What is told at its end, in place of Finished."""

    def put_aside(self, writing: Writing) -> None:
        """The request is parked: what can be had anew is given back."""

    def forget(self, writing: Writing) -> None:
        """The request has left."""


class SequenceLoop:
    """EngineLoop of one encoder-decoder. ``threads`` is N; ``cache_bytes`` bounds the caches."""

    def __init__(
        self,
        decoder: SlotDecoder,
        reader: Reader,
        *,
        eos: frozenset[int],
        vocab_size: int,
        threads: int,
        max_threads: int,
        cache_bytes: int,
        memory_budget_bytes: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self.decoder, self.reader, self.eos = decoder, reader, eos
        self.vocab_size = vocab_size
        self.sampler = Sampler(decoder.device, eos)
        room = Room(cache_bytes, decoder.own.bytes_per_token, decoder.cross.bytes_per_token)
        self.memory_budget_bytes = memory_budget_bytes
        self.max_threads = max_threads
        self.writers = Writers(min(threads, max_threads), room)
        self.clock, self.cpu_clock = clock, cpu_clock
        self.steps = 0
        self._preparing: list[Writing] = []
        """Their sources can't be read yet."""
        self._ended: list[Finished] = []
        self._told: list[FromEngine] = []
        self._beat: Callable[[], None] = lambda: None

    def ready(self) -> Ready:
        """What was loaded."""
        decoder = self.decoder
        return Ready(
            context_length=self.reader.context_length,
            vocab_size=self.vocab_size,
            eos_token_ids=sorted(self.eos),
            device=str(decoder.device),
            dtype=str(decoder.dtype).removeprefix("torch."),
            max_threads=self.max_threads,
            cpu_threads=torch.get_num_threads() if decoder.device.type == "cpu" else 1,
            memory_budget_bytes=self.memory_budget_bytes,
            about=self.reader.about,
        )

    @torch.inference_mode()
    def accept(self, message: LoopMessage) -> list[FromEngine]:
        """Take a message in; takes effect with the next step."""
        match message:
            case Admit() | AdmitSound():
                taken = self.reader.taken(message)
                if not isinstance(taken, Writing):
                    return [RequestFailed(message.id, *taken)]
                if not self.writers.ever_fits(taken):
                    self.reader.forget(taken)
                    return [RequestFailed(message.id, "context_length_exceeded", NO_CACHE)]
                self._preparing.append(taken)
                self._prepare()
            case Cancel(id=request_id):
                self._cancel(request_id)
            case Park(id=request_id):
                self._park(request_id)
            case Resume(id=request_id):
                parked = self.writers.parked.pop(request_id, None)
                if parked is not None:
                    self._preparing.append(parked)
                    self._prepare()
            case SetThreads(n=n):
                self.writers.threads = max(1, min(n, self.max_threads))
            case Trim():
                self._trim()
            case AdmitEmbedding(id=request_id) | AdmitInputs(id=request_id):
                told = "this model writes; it can't embed or classify"
                return [RequestFailed(request_id, "wrong_model", told)]
        return []

    def busy(self) -> bool:
        """Whether something runs, waits or has to be reported."""
        writers = self.writers
        waiting = writers.running or writers.waiting or self._preparing
        return bool(waiting or self._ended or self._told)

    def beat_with(self, beat: Callable[[], None]) -> None:
        """Call ``beat`` at each layer of each step from now on."""
        self._beat = beat
        encoder = getattr(self.decoder.encoder, "layers", None)
        encoder = self.decoder.encoder.block if encoder is None else encoder
        for layer in (*encoder, *self.decoder.layers):
            layer.register_forward_pre_hook(lambda *_: beat())

    @torch.inference_mode()
    def step(self) -> list[FromEngine]:
        """Read for those that begin, draw for all that run, tell."""
        began = self.clock(), self.cpu_clock()
        writers = self.writers
        going = list(writers.running)
        self._prepare(wait=not (going or writers.waiting or self._ended))
        begun = writers.admitted(self.reader.budget)
        if begun:
            self.decoder.reserve(len(writers.running), *writers.needed(), writers.filled())
        logits = []
        if going:
            tokens = [one.tokens[-1] for one in going]
            places = [len(one.tokens) - 1 for one in going]
            logits.append(self.decoder.go_on(tokens, places, [one.size for one in going]))
        if begun:
            hidden = self.decoder.encode(self.reader.given(begun))
            sizes, prefixes = [one.size for one in begun], [one.tokens for one in begun]
            logits.append(self.decoder.begin(hidden, sizes, prefixes, len(going)))
        for one in writers.running:
            one.filled = len(one.tokens)
        told = self._draw(torch.cat(logits)) if logits else []
        if not (logits or self._ended):  # it waited for a file to be decoded
            waited, self._told = self._told, []
            return [Beat(), *waited]
        self.steps += 1
        finished, self._ended = self._ended, []
        told_beside, self._told = self._told, []
        step = Step(
            number=self.steps,
            seconds=self.clock() - began[0],
            decode_batch=len(going),
            prefill_tokens=sum(one.size for one in begun),
            tokens=told,
            finished=finished,
            kv_tokens_used=sum(own + cross for own, cross in writers.filled()),
            kv_tokens_total=writers.room.tokens,
            cpu_seconds=self.cpu_clock() - began[1],
        )
        return [step, *told_beside]

    def _prepare(self, *, wait: bool = False) -> None:
        """Let those wait for a slot whose sources can be read now; what can't be read fails."""
        for one in list(self._preparing):
            ready = self.reader.prepared(one, wait=wait)
            wait = False
            if isinstance(ready, tuple):
                self._told.append(RequestFailed(one.request.id, *ready))
                self.reader.forget(one)
            elif ready:
                self.writers.waiting.append(one)
            else:
                continue
            self._preparing.remove(one)

    def _draw(self, logits: Tensor) -> list[Token]:
        """Draw for all that run; who ended leaves."""
        running = list(self.writers.running)
        rows = [self.reader.ruled(one, row) for one, row in zip(running, logits, strict=True)]
        told: list[Token] = []
        for one, drawn in zip(
            running, self.sampler.draw(torch.stack(rows), [*running]), strict=True
        ):
            one.finite = drawn.fault is not NOT_FINITE
            told += self._take_in(one, drawn)
        return told

    def _take_in(self, one: Writing, drawn: Drawn) -> list[Token]:
        request = one.request
        if drawn.token is None:
            self._told.append(RequestFailed(request.id, *(drawn.fault or NOT_FINITE)))
            self._leave(one)
            return []
        one.logprob += drawn.logprob or 0.0
        told: list[Token] = []
        own_end = drawn.token in self.eos and not request.ignore_eos
        ends = own_end or drawn.token in request.stop_token_ids
        if not ends:
            one.tokens.append(drawn.token)
            one.drawn += 1
            if request.presence_penalty or request.frequency_penalty:
                one.counts[drawn.token] = one.counts.get(drawn.token, 0) + 1
            if self.reader.drawn(one, drawn.token):
                told.append(Token(request.id, drawn.token, drawn.logprob, list(drawn.top)))
        long = one.drawn >= request.max_tokens or len(one.tokens) >= one.most
        if not ends and not long:
            return told
        if self.reader.ended(one):
            self._conclude(one, "stop" if ends else "length")
        else:
            self._vacate(one)
            self.writers.waiting.appendleft(one)
        return told

    def _conclude(self, one: Writing, reason: str) -> None:
        conclusion = self.reader.conclusion(one)
        if conclusion is None:
            self._ended.append(Finished(one.request.id, reason))
        else:
            self._told.append(conclusion)
        self._leave(one)

    def _cancel(self, request_id: int) -> None:
        parked = self.writers.parked.pop(request_id, None)
        if parked is not None:
            self._forget(parked)
            return
        waiting = self._take_waiting(request_id)
        if waiting is not None:
            self._forget(waiting)
        elif (slot := self.writers.find(request_id)) is not None:
            self._leave(self.writers.running[slot])
        else:
            return
        self._ended.append(Finished(request_id, "cancelled"))

    def _park(self, request_id: int) -> None:
        """What it has drawn and its generator stay; it reads its source anew later."""
        one = self._take_waiting(request_id)
        if one is None:
            slot = self.writers.find(request_id)
            if slot is None:
                return
            one = self.writers.running[slot]
            self._vacate(one)
        self.reader.put_aside(one)
        self.writers.parked[request_id] = one
        self._ended.append(Finished(request_id, "parked"))

    def _take_waiting(self, request_id: int) -> Writing | None:
        for one in self._preparing:
            if one.request.id == request_id:
                self._preparing.remove(one)
                return one
        return self.writers.take_waiting(request_id)

    def _leave(self, one: Writing) -> None:
        self._vacate(one)
        self._forget(one)

    def _forget(self, one: Writing) -> None:
        self.sampler.forget(one.request.id)
        self.reader.forget(one)

    def _vacate(self, one: Writing) -> None:
        """Its slot is the next one's."""
        slot = self.writers.running.index(one)
        if one.filled and not one.finite:
            self.decoder.clear(slot, one.filled, one.size)
        one.filled, one.finite = 0, False
        source = self.writers.leave(slot)
        if source is not None:
            moved = self.writers.running[slot]
            self.decoder.move(source, slot, moved.filled, moved.size)

    def _trim(self) -> None:
        running = len(self.writers.running)
        own, cross = self.writers.needed() if running else (0, 0)
        self.decoder.shrink(running, own, cross, self.writers.filled())
        if self.decoder.device.type == "cuda":
            torch.cuda.empty_cache()
        give_back()
