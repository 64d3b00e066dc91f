"""Keys and values of all running sequences, one slot each, as few large tensors."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable

import torch
from torch import Tensor

from llmtaskpool_worker.engines.batching import Change, Clear, Move
from llmtaskpool_worker.engines.memory import available_bytes
from llmtaskpool_worker.engines.prefixes import Drop, Keep, Load

FAULT_AT_ONCE = getattr(mmap, "MAP_POPULATE", 0)  # Linux only
"""For a block that is written whole now: a fault for each of its pages is most of what it costs."""


class SlotCache:
    """Per layer two tensors of shape (slots, heads, length, dim).

    Layers appear with their first use, so any head layout serves. Memory is taken as sequences
    need it and given back by ``shrink``. What is kept of sequences that have left lies beside them,
    each in one block of memory that goes back when it is dropped.
    """

    def __init__(self) -> None:
        self.slots = 0
        self.length = 0
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.kept: dict[int, tuple[Tensor, ...]] = {}

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token of one sequence takes over all layers."""
        return sum(t.shape[1] * t.shape[3] * t.element_size() for t in self._tensors())

    def reserve(self, slots: int, length: int, filled: list[int], limit_tokens: int) -> None:
        """Make room for ``slots`` sequences of ``length`` tokens.

        ``filled``: the cached tokens of each running sequence, which stay. What is too small
        doubles, so that growth copies each token a constant number of times; where doubling
        would take more than ``limit_tokens`` (slots x length) it gets what is needed and no more.
        """
        if slots <= self.slots and length <= self.length:
            return
        wide = max(slots, 2 * self.slots) if slots > self.slots else self.slots
        long = max(length, 2 * self.length) if length > self.length else self.length
        if wide * long > limit_tokens:
            wide, long = slots, length
        self._resize(wide, long, filled)

    def shrink(self, slots: int, length: int, filled: list[int]) -> None:
        """Give back what ``slots`` sequences of ``length`` tokens don't need."""
        if slots < self.slots or length < self.length:
            self._resize(min(slots, self.slots), min(length, self.length), filled)

    def _resize(self, slots: int, length: int, filled: list[int]) -> None:
        for tensors in (self.keys, self.values):
            for layer, old in tensors.items():
                new = _zeros(old, (slots, old.shape[1], length, old.shape[3]))
                for slot, tokens in enumerate(filled):
                    if tokens:  # one that has just been taken in may have no slot yet
                        new[slot, :, :tokens] = old[slot, :, :tokens]
                tensors[layer] = new
        self.slots, self.length = slots, length

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The tensors of one layer, made with the head layout of ``key`` and ``value``.

        Shapes of both: (1, heads, tokens, dim).
        """
        if index not in self.keys:
            for tensors, like in ((self.keys, key), (self.values, value)):
                shape = (self.slots, like.shape[1], self.length, like.shape[3])
                tensors[index] = _zeros(like, shape)
        return self.keys[index], self.values[index]

    def apply(self, changes: Iterable[Change]) -> None:
        """Copy sequences from slot to slot, aside and back; zero what must not be read again."""
        for change in changes:
            match change:
                case Move(source=source, target=target, length=length):
                    for tensor in self._tensors():
                        tensor[target, :, :length] = tensor[source, :, :length]
                case Clear(slot=slot, length=length):
                    for tensor in self._tensors():
                        tensor[slot, :, :length] = 0
                case Keep(slot=slot, number=number, length=length):
                    self.kept[number] = self._aside(slot, length)
                case Load(number=number, slot=slot, length=length):
                    for tensor, kept in zip(self._tensors(), self.kept[number], strict=True):
                        tensor[slot, :, :length] = kept[:, :length]
                case Drop(number=number):
                    del self.kept[number]

    def _aside(self, slot: int, length: int) -> tuple[Tensor, ...]:
        """A copy of a slot's first tokens: by tensor (heads, length, dim), in one block."""
        tensors = self._tensors()
        sizes = [t.shape[1] * length * t.shape[3] for t in tensors]
        block = _zeros(tensors[0], (sum(sizes),), FAULT_AT_ONCE)
        parts = []
        for tensor, part in zip(tensors, torch.split(block, sizes), strict=True):
            parts.append(part.view(tensor.shape[1], length, tensor.shape[3]))
            parts[-1].copy_(tensor[slot, :, :length])
        return tuple(parts)

    def _tensors(self) -> tuple[Tensor, ...]:
        return (*self.keys.values(), *self.values.values())


def _zeros(like: Tensor, shape: tuple[int, ...], flags: int = 0) -> Tensor:
    """Zeros of ``shape`` with the dtype and device of ``like``.

    Zeros and not empty: masked places are multiplied by 0, and 0 x NaN is NaN. torch writes its
    zeros, which makes every page resident; pages of an anonymous mapping are zero and take no
    memory until a token is written, and go back to the system when the tensor does.
    """
    size = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or size == 0:
        return like.new_zeros(shape)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | flags)
    return torch.frombuffer(pages, dtype=like.dtype).view(shape)


def memory_budget_tokens(bytes_per_token: int, budget_bytes: int) -> int:
    """How many cached tokens ``budget_bytes`` hold."""
    return max(1, budget_bytes // max(1, bytes_per_token))


def free_memory(device: torch.device) -> int:
    """Bytes free on the device now; on a CPU, what the container's limit leaves of them."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return available_bytes()
