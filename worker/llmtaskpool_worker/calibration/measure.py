"""Measuring a model's curves on this machine: decode steps by batch size, prefill by length."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from llmtaskpool_worker.engines.protocol import (
    Admit,
    Engine,
    EngineDied,
    EngineEvent,
    LoadFailed,
    Ready,
    RequestFailed,
    SetThreads,
    Step,
)
from llmtaskpool_worker.scheduling.profile import CalibrationProfile

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PROMPTS = (16, 64, 256, 1024)
REPEATS = 3
STEPS = 12
CONTEXT_TOKENS = 256
SHORT_PROMPT = 8
SPARE_STEPS = 8
"""The engine begins with the first of a batch before the last has reached it."""
CACHE_GRANULE = 128
"""A cache has room for whole ones of so many tokens."""
FIRST_TOKEN_ID, TOKEN_IDS = 100, 1000
"""Ordinary ids of any vocabulary; what they mean does not matter for how long they take."""


class CalibrationFailed(Exception):
    """The model can't be measured; the message says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured; sizes that the model's memory or context does not hold are left out.

    ``context_tokens`` is how long sequences are whose steps are timed, at most half of the
    model's context: attention over what is cached is part of a step, a fifth with 16 sequences of
    200 tokens on two CPU cores.
    """

    batches: tuple[int, ...] = BATCHES
    context_tokens: int = CONTEXT_TOKENS
    prompts: tuple[int, ...] = PROMPTS
    repeats: int = REPEATS
    steps: int = STEPS


async def calibrate(
    engine: Engine,
    plan: Plan,
    *,
    clock: Callable[[], float],
    now: datetime,
    threads: int,
    seed: int = 0,
    told: Callable[[str, float], None] = lambda _what, _share: None,
) -> CalibrationProfile:
    """The model's profile; the engine is started, and the caller's to stop.

    ``threads`` are torch's, for the record. ``told`` gets what is measured and the share that is
    done. Raises CalibrationFailed.
    """
    began = clock()
    await engine.start()
    events = engine.events()
    ready = await _ready(events, told)
    start_up = clock() - began
    bench = _Bench(engine, events, random.Random(seed))  # noqa: S311  no secrets
    prompts = [p for p in plan.prompts if p + plan.steps < ready.context_length]
    batches = [b for b in plan.batches if b <= ready.max_threads]
    jobs = len(prompts) + len(batches)
    prefill: dict[int, float] = {}
    for done, tokens in enumerate(prompts):
        told(f"prefill of {tokens} tokens", done / jobs)
        times = [await bench.prefill(tokens) for _ in range(plan.repeats)]
        prefill[tokens] = median(times)
    steps: dict[int, float] = {}
    context = max(1, min(plan.context_tokens, ready.context_length // 2))
    for done, batch in enumerate(batches, len(prompts)):
        told(f"steps of {batch} sequences", done / jobs)
        sequences = together(batch, context, plan.steps, bench.chunk_tokens or 1)
        longest = max(prompt + output for prompt, output in sequences)
        held = bench.kv_tokens // (longest + CACHE_GRANULE) if bench.kv_tokens else batch
        if longest < ready.context_length and batch <= held:
            steps[batch] = await bench.step(sequences)
    if not steps:
        raise CalibrationFailed(
            f"no batch of sequences of {context} tokens fits into the model's context of "
            f"{ready.context_length} or its memory: name shorter ones (--context)"
        )
    return CalibrationProfile(
        model=engine.spec.name,
        device=ready.device,
        dtype=ready.dtype,
        threads=threads,
        created_at=now,
        step_seconds=steps,
        context_tokens=context,
        prefill_seconds=prefill,
        start_up_seconds=start_up,
        kv_tokens=bench.kv_tokens or None,
        prefill_chunk_tokens=bench.chunk_tokens or None,
    )


def together(batch: int, context: int, count: int, chunk: int) -> list[tuple[int, int]]:
    """Prompts and outputs of sequences that decode together for ``count`` steps.

    They enter one after the other, ``chunk`` prompt tokens a step, and those that are in grow
    meanwhile: so the first is given the shortest prompt, and all are ``context`` tokens long (or
    more, where that would be less than 8) when the last is in.
    """
    sequences: list[tuple[int, int]] = []
    later = 0
    for _ in range(batch):
        waits = -(-later // chunk)
        prompt = max(SHORT_PROMPT, context - waits)
        sequences.append((prompt, waits + count + SPARE_STEPS))
        later += prompt
    return sequences[::-1]


async def _ready(events: AsyncIterator[EngineEvent], told: Callable[[str, float], None]) -> Ready:
    async for event in events:
        match event:
            case Ready():
                return event
            case LoadFailed(message=message):
                raise CalibrationFailed(message)
            case EngineDied():
                raise CalibrationFailed("the engine died while it loaded the model")
            case _:
                told("loading", 0.0)
    raise CalibrationFailed("the engine ended while it loaded the model")


class _Bench:
    """Sends requests to a ready engine and reads what its steps took."""

    def __init__(
        self, engine: Engine, events: AsyncIterator[EngineEvent], chance: random.Random
    ) -> None:
        self._engine = engine
        self._events = events
        self._chance = chance
        self._next_id = 0
        self.kv_tokens = self.chunk_tokens = 0

    async def prefill(self, tokens: int) -> float:
        """Seconds of the steps that a prompt of so many tokens takes, alone."""
        self._engine.send(SetThreads(1))
        steps = await self._run([self._admit(tokens, 1)])
        return sum(step.seconds for step in steps)

    async def step(self, sequences: list[tuple[int, int]]) -> float:
        """The median of steps in which all ``sequences`` decode and nothing else happens."""
        batch = len(sequences)
        self._engine.send(SetThreads(batch))
        steps = await self._run([self._admit(prompt, output) for prompt, output in sequences])
        whole = [s.seconds for s in steps if s.decode_batch == batch and not s.prefill_tokens]
        if not whole:
            raise CalibrationFailed(f"{batch} sequences never ran together")
        return median(whole)

    def _admit(self, prompt: int, output: int) -> Admit:
        self._next_id += 1
        ids = [FIRST_TOKEN_ID + self._chance.randrange(TOKEN_IDS) for _ in range(prompt)]
        return Admit(id=self._next_id, prompt=ids, max_tokens=output, ignore_eos=True)

    async def _run(self, admits: list[Admit]) -> list[Step]:
        running = {admit.id for admit in admits}
        for admit in admits:
            self._engine.send(admit)
        steps: list[Step] = []
        while running:
            event = await anext(self._events)
            match event:
                case Step():
                    steps.append(event)
                    self.kv_tokens = max(self.kv_tokens, event.kv_tokens_total)
                    self.chunk_tokens = max(self.chunk_tokens, event.prefill_tokens)
                    running -= {end.id for end in event.finished}
                case RequestFailed(message=message):
                    raise CalibrationFailed(message)
                case EngineDied():
                    raise CalibrationFailed("the engine died: is there memory for this batch?")
                case _:
                    await asyncio.sleep(0)
        return steps
