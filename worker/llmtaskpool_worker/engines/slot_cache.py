"""Keys and values of all running sequences, one slot each, as few large tensors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from llmtaskpool_worker.engines.batching import Move


class SlotCache:
    """Per layer two tensors of shape (slots, heads, length, dim).

    Layers appear with their first use, so any head layout serves. Memory is taken as sequences
    need it and given back by ``shrink``.
    """

    def __init__(self) -> None:
        self.slots = 0
        self.length = 0
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token of one sequence takes over all layers."""
        return sum(
            t.shape[1] * t.shape[3] * t.element_size()
            for t in (*self.keys.values(), *self.values.values())
        )

    def reserve(self, slots: int, length: int) -> None:
        """Make room for ``slots`` sequences of ``length`` tokens; what is cached stays."""
        if slots > self.slots or length > self.length:
            self._resize(max(slots, self.slots), max(length, self.length))

    def shrink(self, slots: int, length: int) -> None:
        """Give back what ``slots`` sequences of ``length`` tokens don't need."""
        if slots < self.slots or length < self.length:
            self._resize(min(slots, self.slots), min(length, self.length))

    def _resize(self, slots: int, length: int) -> None:
        keep_slots, keep = min(slots, self.slots), min(length, self.length)
        for tensors in (self.keys, self.values):
            for layer, old in tensors.items():
                # Zeros and not empty: masked places are multiplied by 0, and 0 x NaN is NaN.
                # On CPU fresh zero pages cost no memory until they are written.
                new = old.new_zeros((slots, old.shape[1], length, old.shape[3]))
                new[:keep_slots, :, :keep] = old[:keep_slots, :, :keep]
                tensors[layer] = new
        self.slots, self.length = slots, length

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The tensors of one layer, made with the head layout of ``key`` and ``value``.

        Shapes of both: (1, heads, tokens, dim).
        """
        if index not in self.keys:
            for tensors, like in ((self.keys, key), (self.values, value)):
                tensors[index] = like.new_zeros(
                    (self.slots, like.shape[1], self.length, like.shape[3])
                )
        return self.keys[index], self.values[index]

    def clear(self, slot: int) -> None:
        """Zero one slot, because it may hold NaN: the next sequence there masks what it doesn't
        own with a weight of 0, and 0 x NaN is NaN."""
        for tensor in (*self.keys.values(), *self.values.values()):
            tensor[slot].zero_()

    def move(self, moves: Iterable[Move]) -> None:
        """Copy sequences from slot to slot."""
        for move in moves:
            for tensor in (*self.keys.values(), *self.values.values()):
                tensor[move.target, :, : move.length] = tensor[move.source, :, : move.length]


def memory_budget_tokens(bytes_per_token: int, budget_bytes: int) -> int:
    """How many cached tokens ``budget_bytes`` hold."""
    return max(1, budget_bytes // max(1, bytes_per_token))


def free_memory(device: torch.device) -> int:
    """Bytes free on the device now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    with Path("/proc/meminfo").open() as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 1 << 31
