"""Which sequences run in the next step, and which of their tokens. Pure: no torch.

Sequences that decode come first and those that still prefill after them; a sequence's slot is
its place in that order. So the KV cache of all decoding sequences is one contiguous block, and
the decode attention of a step is one call.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from llmtaskpool_worker.engines.prefixes import Drop, Keep, Load, Prefixes
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
    reused: int | None = None
    """Prompt tokens that were kept from others when it first began; None: it has not begun."""


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
    """One step: slots 0 to ``decode`` - 1 decode a token each, ``chunks`` prefill.

    ``drops`` make room before the cache grows for it, ``loads`` come after that.
    """

    decode: int
    chunks: tuple[Chunk, ...]
    drops: tuple[Drop, ...] = ()
    loads: tuple[Load, ...] = ()

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


Change = Move | Clear | Keep | Load | Drop


class Batching:
    """Waiting and running sequences of one engine.

    ``budget_tokens`` bounds slots x longest sequence, the size of the cache, and what is kept of
    ``prefixes`` beside it (None: nothing is kept). ``threads`` is N: it may change at any time and
    stops nobody who runs.
    """

    def __init__(
        self,
        *,
        threads: int,
        chunk: int,
        budget_tokens: int,
        granule: int,
        prefixes: Prefixes | None = None,
    ) -> None:
        self.threads = threads
        self.chunk = chunk
        self.budget_tokens = budget_tokens
        self.granule = granule
        self.prefixes = prefixes
        self.reserved = 0
        """Slots x length that the cache has now; it may be more than is needed."""
        self.cramped = False
        """Whether that left no room for what was to be kept."""
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
        drops: list[Drop] = []
        loads: list[Load] = []
        while self.waiting and len(self.running) < self.threads and self._fits():
            if not self._admit(drops, loads):
                break
        room, chunks = self.chunk, []
        for slot in range(self.decoding, len(self.running)):
            sequence = self.running[slot]
            length = min(room, len(sequence.tokens) - sequence.filled)
            if length <= 0:
                break
            end = sequence.filled + length
            chunks.append(Chunk(slot, sequence.filled, length, end == len(sequence.tokens)))
            room -= length
        return Batch(self.decoding, tuple(chunks), tuple(drops), tuple(loads))

    def _admit(self, drops: list[Drop], loads: list[Load]) -> bool:
        """Let the first that waits run, from what is kept of its beginning; False: not now."""
        sequence, found = self.waiting[0], None
        if self.prefixes is not None:
            room = self.budget_tokens - (len(self.running) + 1) * self.length_needed(sequence)
            used = {load.number for load in loads}  # by others, in this very step
            if used and self.prefixes.size(used) > room:
                return False
            found = self.prefixes.find(sequence.tokens)
            if found is not None and self.prefixes.size(used | {found.number}) > room:
                found = None
            drops += self.prefixes.shrink(room, used if found is None else used | {found.number})
        if found is not None:
            loads.append(replace(found, slot=len(self.running)))
            sequence.filled = found.length
        if sequence.reused is None:
            sequence.reused = sequence.filled
        self.running.append(self.waiting.popleft())
        return True

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

    def remove(self, slot: int) -> list[Change]:
        """Take the sequence in ``slot`` out and close the gap: at most two cache moves.

        What is cached of it is kept aside where there is room.
        """
        changes: list[Change] = [*self._kept(slot), *self._left(slot)]
        if slot < self.decoding:
            self.decoding -= 1
            changes += self._fill(slot, self.decoding)
            slot = self.decoding
        changes += self._fill(slot, len(self.running) - 1)
        self.running.pop()
        return changes

    def _kept(self, slot: int) -> list[Keep | Drop]:
        sequence = self.running[slot]
        if self.prefixes is None or not sequence.finite:
            return []
        room = self.budget_tokens - max(self.reserved, len(self.running) * self.length_needed())
        self.cramped = self.cramped or room < self.prefixes.tokens + sequence.filled
        return self.prefixes.keep(slot, sequence.tokens[: sequence.filled], room)

    def spare(self) -> int:
        """Cached tokens for which room is reserved and not needed, where it is wanted for others.

        Less than half of it is nothing to bother about.
        """
        needed = len(self.running) * self.length_needed()
        unused = self.reserved - needed
        return unused if self.cramped and 2 * needed <= self.reserved else 0

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

    def overflow(self) -> list[Change]:
        """Send the newest sequences back to wait until the others fit into the budget.

        They keep what they have drawn and prefill it again later, as vLLM's recomputation does.
        What is kept of those that have ended goes first.
        """
        changes: list[Change] = []
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
        if self.prefixes is not None and self.running:
            room = self.budget_tokens - len(self.running) * self.length_needed()
            changes += self.prefixes.shrink(room)
        return changes

    def park(self, request_id: int) -> list[Change] | None:
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
        """Let a parked sequence wait again.

        It prefills what it has drawn as it does its prompt, but for what is still kept of it.
        """
        sequence = self.parked.pop(request_id, None)
        if sequence is not None:
            self.waiting.append(sequence)

    def find(self, request_id: int) -> int | None:
        """The slot in which a request runs."""
        for slot, sequence in enumerate(self.running):
            if sequence.request.id == request_id:
                return slot
        return None
