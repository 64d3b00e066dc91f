"""A classifier that is one linear layer over a model that embeds: head.safetensors and head.json.

What SetFit and a logistic regression over embeddings come to: ``weight`` [labels, dimensions] and
``bias`` [labels]. ``head.json`` names the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llmtaskpool_worker.engines.one_pass.encoder import Reads
from llmtaskpool_worker.engines.one_pass.text_heads import ClassifyHead, Ran, pooled
from llmtaskpool_worker.engines.weights import ModelRefused

WEIGHTS, NAMES = "head.safetensors", "head.json"


class _Names(msgspec.Struct, forbid_unknown_fields=True):
    """``several``: labels that hold each by itself; ``normalize``: vectors of length 1."""

    labels: list[str]
    several: bool = False
    normalize: bool = True


class LinearHead(ClassifyHead):
    """ClassifyHead whose numbers come of a text's vector."""

    def __init__(
        self, encoder: Reads, names: _Names, *, pooling: str, weight: Tensor, bias: Tensor
    ) -> None:
        super().__init__(encoder, labels=names.labels, several=names.several)
        self.pooling, self.normalize = pooling, names.normalize
        self.weight, self.bias = weight, bias

    def outputs(self, ran: Ran) -> Sequence[Tensor]:
        """(labels,) of each row."""
        vectors = pooled(ran, self.pooling)
        if self.normalize:
            vectors = nn.functional.normalize(vectors, dim=-1)
        return list(nn.functional.linear(vectors, self.weight, self.bias))


def has_head(folder: Path, task: str) -> bool:
    """Whether a folder for ``classify`` holds an embedding model with a linear head."""
    return task == "classify" and (folder / WEIGHTS).is_file()


def load_linear_head(folder: Path, encoder: Reads, *, pooling: str, dimensions: int) -> LinearHead:
    """The head in ``folder`` over ``encoder``. Raises ModelRefused with the remedy."""
    try:
        names = msgspec.json.decode((folder / NAMES).read_bytes(), type=_Names)
    except FileNotFoundError:
        raise ModelRefused(
            f'{NAMES} is missing beside {WEIGHTS}: write {{"labels": [...]}}, one for each row of '
            "weight"
        ) from None
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise ModelRefused(f"its {NAMES} can't be used: {error}") from None
    count = len(names.labels)
    if not count or len(set(names.labels)) != count:
        raise ModelRefused(f"its {NAMES} needs labels, each of them once")
    tensors = load_file(folder / WEIGHTS)
    wanted = {"weight": (count, dimensions), "bias": (count,)}
    for name in sorted(wanted.keys() | tensors.keys()):
        shape = tuple(tensors[name].shape) if name in tensors else "missing"
        if shape != wanted.get(name):
            raise ModelRefused(
                f"tensor {name} of {WEIGHTS} is {shape}, and {count} labels over vectors of "
                f"{dimensions} ask for {wanted.get(name, 'none of that name')}: save them anew"
            )
    weight, bias = (tensors[name].float().to(encoder.device) for name in ("weight", "bias"))
    if not bool(torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise ModelRefused(f"{WEIGHTS} holds values that are no numbers: save it anew")
    return LinearHead(encoder, names, pooling=pooling, weight=weight, bias=bias)
