"""Which sequences run in the next step, and which of their tokens. Pure: no torch.

Sequences that decode come first and those that still prefill after them; a sequence's slot is
its place in that order. So the KV cache of all decoding sequences is one contiguous block, and
the decode attention of a step is one call.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from llmtaskpool_worker.engines.protocol import Admit


@dataclass(slots=True, eq=False)
class Sequence:
    """One request while it runs. ``filled`` counts the tokens whose keys are in the cache."""

    request: Admit
    tokens: list[int]
    filled: int = 0
    drawn: int = 0
    finite: bool = False
    """Whether its last draw was from numbers: then so are its cached keys and values."""
    counts: dict[int, int] = field(default_factory=dict)
    """How often each token was drawn: what the penalties look at."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next ``length`` prompt tokens of the sequence in ``slot``."""

    slot: int
    start: int
    length: int
    last: bool
    """Whether the prompt ends here, so that the first token can be drawn."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: slots 0 to ``decode`` - 1 decode a token each, ``chunks`` prefill."""

    decode: int
    chunks: tuple[Chunk, ...]

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens in this step."""
        return sum(chunk.length for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class Move:
    """Copy the first ``length`` cached tokens of slot ``source`` to slot ``target``."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True)
class Clear:
    """Zero the first ``length`` cached tokens of a slot that a sequence left unchecked.

    Its keys and values may hold NaN. The next sequence there masks them with a weight of 0, and
    0 x NaN is NaN.
    """

    slot: int
    length: int


class Batching:
    """Waiting and running sequences of one engine.

    ``budget_tokens`` bounds slots x longest sequence, the size of the cache. ``threads`` is N:
    it may change at any time and stops nobody who runs.
    """

    def __init__(self, *, threads: int, chunk: int, budget_tokens: int, granule: int) -> None:
        self.threads = threads
        self.chunk = chunk
        self.budget_tokens = budget_tokens
        self.granule = granule
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.parked: dict[int, Sequence] = {}
        self.decoding = 0

    @property
    def filled(self) -> list[int]:
        """Cached tokens of each running sequence, by slot."""
        return [sequence.filled for sequence in self.running]

    def length_needed(self, extra: Sequence | None = None) -> int:
        """Cache length, in granules, that the running sequences (and ``extra``) need next."""
        longest = max((len(s.tokens) for s in self.running), default=0)
        longest = max(longest, len(extra.tokens) if extra else 0)
        return -(-(longest + 1) // self.granule) * self.granule

    def schedule(self) -> Batch:
        """Admit what fits, then give every decoding sequence a token and prefill the rest."""
        while self.waiting and len(self.running) < self.threads and self._fits():
            self.running.append(self.waiting.popleft())
        room, chunks = self.chunk, []
        for slot in range(self.decoding, len(self.running)):
            sequence = self.running[slot]
            length = min(room, len(sequence.tokens) - sequence.filled)
            if length <= 0:
                break
            end = sequence.filled + length
            chunks.append(Chunk(slot, sequence.filled, length, end == len(sequence.tokens)))
            room -= length
        return Batch(self.decoding, tuple(chunks))

    def _fits(self) -> bool:
        slots = len(self.running) + 1
        return slots == 1 or slots * self.length_needed(self.waiting[0]) <= self.budget_tokens

    def prefilled(self, chunk: Chunk) -> None:
        """Note what a chunk brought into the cache; its sequence decodes once it was the last.

        Chunks are taken in slot order, so a sequence that ends its prompt is always the first
        of those that prefill.
        """
        self.running[chunk.slot].filled = chunk.start + chunk.length
        if chunk.last:
            self.decoding += 1

    def remove(self, slot: int) -> list[Move | Clear]:
        """Take the sequence in ``slot`` out and close the gap: at most two cache moves."""
        changes = self._left(slot)
        if slot < self.decoding:
            self.decoding -= 1
            changes += self._fill(slot, self.decoding)
            slot = self.decoding
        changes += self._fill(slot, len(self.running) - 1)
        self.running.pop()
        return changes

    def _fill(self, slot: int, source: int) -> list[Move | Clear]:
        if slot == source:
            return []
        left = self._left(source)
        self.running[slot] = self.running[source]
        return [Move(source, slot, self.running[slot].filled), *left]

    def _left(self, slot: int) -> list[Move | Clear]:
        """What has to be zeroed when the sequence in ``slot`` leaves it."""
        sequence = self.running[slot]
        unchecked = sequence.filled and not sequence.finite
        return [Clear(slot, sequence.filled)] if unchecked else []

    def overflow(self) -> list[Move | Clear]:
        """Send the newest sequences back to wait until the others fit into the budget.

        They keep what they have drawn and prefill it again later, as vLLM's recomputation does.
        """
        changes: list[Move | Clear] = []
        while (
            len(self.running) > 1 and len(self.running) * self.length_needed() > self.budget_tokens
        ):
            slot = len(self.running) - 1
            sequence = self.running[slot]
            if slot < self.decoding:
                self.decoding -= 1
            changes += self._left(slot)
            self.running.pop()
            sequence.filled, sequence.finite = 0, False
            self.waiting.appendleft(sequence)
        return changes

    def park(self, request_id: int) -> list[Move | Clear] | None:
        """Put a sequence aside with what it has drawn; None when it doesn't run or wait."""
        for sequence in self.waiting:
            if sequence.request.id == request_id:
                self.waiting.remove(sequence)
                self.parked[request_id] = sequence
                return []
        slot = self.find(request_id)
        if slot is None:
            return None
        sequence = self.running[slot]
        changes = self.remove(slot)
        sequence.filled, sequence.finite = 0, False
        self.parked[request_id] = sequence
        return changes

    def resume(self, request_id: int) -> None:
        """Let a parked sequence wait again: it prefills what it has drawn as it does its prompt."""
        sequence = self.parked.pop(request_id, None)
        if sequence is not None:
            self.waiting.append(sequence)

    def find(self, request_id: int) -> int | None:
        """The slot in which a request runs."""
        for slot, sequence in enumerate(self.running):
            if sequence.request.id == request_id:
                return slot
        return None
