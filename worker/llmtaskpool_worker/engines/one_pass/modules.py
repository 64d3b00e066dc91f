"""Models of tables: registered modules that a ``model.json`` names, with weights in safetensors.

Nothing that a folder brings is run: a module is one of these, its weights are numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Literal

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

Activation = Literal["relu", "tanh", "gelu"]
Output = Literal["identity", "sigmoid", "softmax"]
Sizes = list[int]
LARGEST = 1_000_000_000
"""Numbers of a module, at most."""


class _Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    activation: Activation = "relu"
    output: Output = "identity"


class Mlp(_Spec, frozen=True, kw_only=True, tag_field="module", tag="mlp"):
    """Linear layers of ``sizes``: features, hidden ones, outputs; input "x".

    Features become ``(x - mean) / scale`` first, where those are given.
    """

    sizes: Sizes
    mean: list[float] = []
    scale: list[float] = []


class TwoTower(_Spec, frozen=True, kw_only=True, tag_field="module", tag="two-tower"):
    """The inner product of what two towers make of "first" and "second" (a user and an item).

    ``normalize``: of vectors of length 1, that is their cosine.
    """

    first: Sizes
    second: Sizes
    normalize: bool = False


class EmbeddingBag(_Spec, frozen=True, kw_only=True, tag_field="module", tag="embedding-bag"):
    """Linear layers over the mean or sum of the vectors of "ids"; an id below 0 is none."""

    items: int
    sizes: Sizes
    mode: Literal["mean", "sum"] = "mean"


Spec = Mlp | TwoTower | EmbeddingBag
read_spec: Callable[[bytes], Spec] = msgspec.json.Decoder(Spec).decode


class Table(nn.Module, ABC):
    """A module over named inputs. ``columns``: the width of each, -1 for any, and its type."""

    columns: Mapping[str, tuple[int, str]]
    outputs: int

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.activation, self.output = spec.activation, spec.output

    @abstractmethod
    def numbers(self, given: Mapping[str, Tensor]) -> Tensor:
        """(rows, outputs) of its inputs, before the output's function."""

    def forward(self, given: Mapping[str, Tensor]) -> Tensor:
        """(rows, outputs) of (rows, width) of each input."""
        found = self.numbers(given)
        if self.output == "sigmoid":
            return torch.sigmoid(found)
        return torch.softmax(found, dim=-1) if self.output == "softmax" else found


class _Layers(nn.Module):
    """Linear layers with an activation between two of them."""

    def __init__(self, sizes: Sequence[int], activation: Activation) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        self.between = _ACTIVATIONS[activation]

    def forward(self, rows: Tensor) -> Tensor:
        for place, layer in enumerate(self.layers):
            rows = layer(rows if place == 0 else self.between(rows))
        return rows


class _MlpTable(Table):
    mean: Tensor
    scale: Tensor

    def __init__(self, spec: Mlp) -> None:
        super().__init__(spec)
        features = spec.sizes[0]
        self.columns = {"x": (features, "FP32")}
        self.outputs = spec.sizes[-1]
        self.tower = _Layers(spec.sizes, spec.activation)
        for name, values, usual in (("mean", spec.mean, 0.0), ("scale", spec.scale, 1.0)):
            if values and len(values) != features:
                raise ValueError(f"{name} has {len(values)} numbers for {features} features")
            numbers = torch.tensor(values or [usual] * features)
            self.register_buffer(name, numbers, persistent=False)
        if 0.0 in spec.scale:
            raise ValueError("scale has a 0: nothing can be divided by it")

    def numbers(self, given: Mapping[str, Tensor]) -> Tensor:
        found: Tensor = self.tower((given["x"] - self.mean) / self.scale)
        return found


class _TwoTowerTable(Table):
    def __init__(self, spec: TwoTower) -> None:
        super().__init__(spec)
        if spec.first[-1] != spec.second[-1]:
            raise ValueError(f"first ends in {spec.first[-1]} and second in {spec.second[-1]}")
        self.columns = {"first": (spec.first[0], "FP32"), "second": (spec.second[0], "FP32")}
        self.outputs = 1
        self.normalize = spec.normalize
        self.first = _Layers(spec.first, spec.activation)
        self.second = _Layers(spec.second, spec.activation)

    def numbers(self, given: Mapping[str, Tensor]) -> Tensor:
        first, second = self.first(given["first"]), self.second(given["second"])
        if self.normalize:
            first, second = functional.normalize(first), functional.normalize(second)
        product: Tensor = (first * second).sum(dim=-1, keepdim=True)
        return product


class _EmbeddingBagTable(Table):
    def __init__(self, spec: EmbeddingBag) -> None:
        super().__init__(spec)
        self.columns = {"ids": (-1, "INT64")}
        self.outputs = spec.sizes[-1]
        self.items, self.mode = spec.items, spec.mode
        self.table = nn.Embedding(spec.items, spec.sizes[0])
        self.tower = _Layers(spec.sizes, spec.activation)

    def numbers(self, given: Mapping[str, Tensor]) -> Tensor:
        ids = given["ids"]
        there = ids >= 0
        ends = there.sum(dim=1).cumsum(dim=0)
        begins = torch.cat((ends.new_zeros(1), ends[:-1]))
        total = functional.embedding_bag(ids[there], self.table.weight, begins, mode=self.mode)
        found: Tensor = self.tower(total)
        return found


_ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
}


def build(spec: Spec) -> Table:
    """The module of a ``model.json``. Raises ValueError naming what can't be."""
    towers = [spec.first, spec.second] if isinstance(spec, TwoTower) else [spec.sizes]
    for sizes in towers:
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError("sizes are at least two whole numbers from 1")
        if sum(a * b for a, b in pairwise(sizes)) > LARGEST:
            raise ValueError(f"sizes make more than {LARGEST} numbers")
    if isinstance(spec, Mlp):
        return _MlpTable(spec)
    if isinstance(spec, TwoTower):
        return _TwoTowerTable(spec)
    if not 1 <= spec.items * spec.sizes[0] <= LARGEST:
        raise ValueError(f"items and sizes make no table of 1 to {LARGEST} numbers")
    return _EmbeddingBagTable(spec)
