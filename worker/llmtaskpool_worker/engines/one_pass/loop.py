"""The one-pass loop: whenever the device is free, a batch is picked by its size and run once.

Requests that run share the engine: each step takes rows of all of them in turn, until the step is
full, and those that were served go to the end. So a request of a thousand rows holds up nobody,
and between two steps every message is heard. Nothing waits for a batch to become larger: while
the device is busy, more comes by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch

from llmtaskpool_worker.engines.loop import LoopMessage
from llmtaskpool_worker.engines.one_pass.head import Fault, Head, Message
from llmtaskpool_worker.engines.protocol import (
    Admit,
    AdmitEmbedding,
    AdmitInputs,
    AdmitSound,
    Cancel,
    Finished,
    FromEngine,
    Ready,
    RequestFailed,
    SetThreads,
    Step,
    Trim,
)
from llmtaskpool_worker.engines.resident import give_back

WINDOW = 4
"""Rows worth so many steps are looked at for those that go well together."""


@dataclass(slots=True)
class _Request:
    """One request. ``left`` are the places of rows that have not begun, the longest first."""

    message: Message
    rows: Sequence[Any]
    sizes: list[int]
    left: list[int]
    values: list[Any]
    ended: int = 0

    @property
    def id(self) -> int:
        return self.message.id


@dataclass(slots=True)
class OnePassLoop:
    """EngineLoop of one model that runs once over its input.

    At most ``threads`` requests run at once; ``max_threads`` is what may be asked for.
    """

    head: Head
    threads: int = 8
    max_threads: int = 256
    memory_budget_bytes: int | None = None
    clock: Callable[[], float] = time.perf_counter
    steps: int = 0
    _waiting: dict[int, _Request] = field(default_factory=dict)
    _running: dict[int, _Request] = field(default_factory=dict)
    """In the order of their turns."""
    _cancelled: list[Finished] = field(default_factory=list)

    def ready(self) -> Ready:
        """What was loaded."""
        return msgspec.structs.replace(
            self.head.ready(),
            max_threads=self.max_threads,
            memory_budget_bytes=self.memory_budget_bytes,
        )

    def accept(self, message: LoopMessage) -> list[FromEngine]:
        """Take a message in; takes effect with the next step."""
        match message:
            case AdmitEmbedding() | AdmitInputs():
                rows = self.head.rows(message)
                if isinstance(rows, Fault):
                    return [RequestFailed(message.id, rows.code, rows.message)]
                sizes = [self.head.size(row) for row in rows]
                left = sorted(range(len(rows)), key=lambda place: -sizes[place])
                request = _Request(message, rows, sizes, left, [None] * len(rows))
                self._waiting[message.id] = request
            case Admit(id=request_id) | AdmitSound(id=request_id):
                told = "this model runs once over its input; it can't generate"
                return [RequestFailed(request_id, "wrong_model", told)]
            case Cancel(id=request_id):
                if self._take_out(request_id) is not None:
                    self._cancelled.append(Finished(request_id, "cancelled"))
            case SetThreads(n=n):
                self.threads = max(1, min(n, self.max_threads))
            case Trim():
                give_back()
        return []

    def busy(self) -> bool:
        """Whether rows wait or a cancel has to be reported."""
        return bool(self._waiting or self._running or self._cancelled)

    def beat_with(self, beat: Callable[[], None]) -> None:
        """Call ``beat`` at each layer of each step from now on."""
        self.head.beat_with(beat)

    @torch.inference_mode()
    def step(self) -> list[FromEngine]:
        """Pick, run, answer: one forward pass."""
        began = self.clock()
        batch = self._pick()
        rows = [request.rows[place] for request, place in batch]
        values = self.head.run(rows) if rows else []
        answers = self._take_in(batch, values)
        cancelled, self._cancelled = self._cancelled, []
        self.steps += 1
        step = Step(
            number=self.steps,
            seconds=self.clock() - began,
            decode_batch=0,
            prefill_tokens=sum(request.sizes[place] for request, place in batch),
            tokens=[],
            finished=cancelled,
            ran=[request.id for request, _ in batch],
        )
        return [step, *answers]

    def _pick(self) -> list[tuple[_Request, int]]:
        """Rows for this step: the one whose turn it is, and those that go well beside it."""
        while self._waiting and len(self._running) < self.threads:
            request_id = next(iter(self._waiting))
            self._running[request_id] = self._waiting.pop(request_id)
        seen = self._in_turn()
        if not seen:
            return []
        (first, place), *others = seen
        of = first.sizes[place]
        others.sort(key=lambda one: abs(one[0].sizes[one[1]] - of))  # stable: turns stay
        batch, sizes = [(first, place)], [of]
        rows = [first.rows[place]]
        for request, place in others:
            if self.head.cost([*sizes, request.sizes[place]]) > self.head.budget:
                continue
            if self.head.room is None or self.head.needs([*rows, request.rows[place]]) <= (
                self.head.room
            ):
                batch.append((request, place))
                sizes.append(request.sizes[place])
                rows.append(request.rows[place])
        for request, place in batch:
            request.left.remove(place)
            self._running[request.id] = self._running.pop(request.id)  # its next turn is last
        return batch

    def _in_turn(self) -> list[tuple[_Request, int]]:
        """A row of each request in turn, then the next of each, worth some steps together."""
        found: list[tuple[_Request, int]] = []
        left, ahead = WINDOW * self.head.budget, 0
        while left > 0:
            before = len(found)
            for request in self._running.values():
                if left > 0 and ahead < len(request.left):
                    place = request.left[ahead]
                    found.append((request, place))
                    left -= request.sizes[place]
            if len(found) == before:
                break
            ahead += 1
        return found

    def _take_in(
        self, batch: Sequence[tuple[_Request, int]], values: Sequence[Any]
    ) -> list[FromEngine]:
        """What requests are told of these values: those whose rows have all run, or one failed."""
        told: list[FromEngine] = []
        for (request, place), value in zip(batch, values, strict=True):
            if isinstance(value, Fault):
                if self._take_out(request.id) is not None:
                    told.append(RequestFailed(request.id, value.code, value.message))
                continue
            request.values[place] = value
            request.ended += 1
            if request.ended == len(request.rows) and self._take_out(request.id) is not None:
                size = sum(request.sizes)
                told.append(self.head.answer(request.message, request.values, size))
        return told

    def _take_out(self, request_id: int) -> _Request | None:
        running = self._running.pop(request_id, None)
        return running if running is not None else self._waiting.pop(request_id, None)
