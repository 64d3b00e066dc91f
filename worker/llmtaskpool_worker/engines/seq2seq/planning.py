"""What an encoder-decoder's engine plans with, measured over its own sources once it has loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llmtaskpool_worker.engines.admission import held_now, step_peak
from llmtaskpool_worker.engines.memory_plan import (
    cache_budget,
    memory_budget,
    no_room,
    step_room,
)
from llmtaskpool_worker.engines.resident import give_back, trim_heap
from llmtaskpool_worker.engines.seq2seq.loop import Reader
from llmtaskpool_worker.engines.seq2seq.running import GRANULE, granules
from llmtaskpool_worker.engines.seq2seq.slots import SlotDecoder
from llmtaskpool_worker.engines.weights import ModelRefused

DRAWN_BYTES = 4 * 4
"""Of a running sequence and a word of the vocabulary: its logit in float32, as the model gives it,
as its rules leave it, as all are drawn from, and as a probability."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes of both caches and of the whole process, and the most sequences at once."""

    cache_bytes: int
    budget_bytes: int
    max_threads: int


def planned(
    decoder: SlotDecoder,
    reader: Reader,
    vocab_size: int,
    *,
    threads: int,
    options: Mapping[str, Any],
) -> Plan:
    """Measure, and bound what the reader reads at once by what memory holds.

    ``options``: max_threads, cache_bytes, memory_bytes, memory_share. What is left for an engine
    has three parts: what a step holds and what is unpacked beside it (a quarter each, at most), and
    the caches. Raises ModelRefused where nothing fits.
    """
    trim_heap()
    held = held_now(decoder.device)
    part = max(0, step_room(options, held)) // 4
    drawn = threads * DRAWN_BYTES * vocab_size

    @torch.inference_mode()
    def peak_of(given: dict[str, Tensor], size: int) -> int:
        with step_peak(decoder.device) as peak:
            hidden = decoder.encode(given)
            decoder.reserve(1, GRANULE, hidden.shape[1], [(0, 0)])
            decoder.begin(hidden, [size], [[1]], 0)
        decoder.shrink(0, 0, 0, [])
        return peak()

    step = drawn + reader.fit_into(part - drawn, peak_of) + reader.fit_beside(part)
    held = replace(held, step=step)
    cache_bytes = cache_budget(options, held)
    own, cross = map(granules, reader.shortest)
    least = own * decoder.own.bytes_per_token + cross * decoder.cross.bytes_per_token
    if least > cache_bytes:
        raise ModelRefused(no_room(least, cache_bytes))
    most = min(int(options.get("max_threads", 256)), cache_bytes // max(1, least))
    give_back()
    return Plan(cache_bytes, memory_budget(options, held, cache_bytes), most)
