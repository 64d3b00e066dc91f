"""ONNX models under the heads of texts and pictures: called as transformers' own are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmtaskpool_worker.engines.one_pass.encoder import STEP_TOKENS, Bounds, Fitted, Row, padded
from llmtaskpool_worker.engines.one_pass.onnx_model import OnnxModel, Port
from llmtaskpool_worker.engines.weights import ModelRefused

log = logging.getLogger("llmtaskpool.engine")

_TEXTS = ("input_ids", "attention_mask", "token_type_ids")
_OUTPUTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "embed": {"last_hidden_state": ("last_hidden_state", "token_embeddings")},
    "rerank": {"logits": ("logits",)},
    "classify": {"logits": ("logits",)},
    "tag": {"logits": ("logits",)},
    "answer": {"start_logits": ("start_logits",), "end_logits": ("end_logits",)},
    "detect": {"logits": ("logits",), "pred_boxes": ("pred_boxes",)},
}
"""By task, what a head reads, and what exporters call it."""
_SAMPLE = (5, 2)
"""Tokens of the texts that a model is tried with."""
TOLERANCE = 1e-3
"""Of the largest value: a text alone, and the same text padded."""


class OnnxEncoder(Fitted):
    """Reads (encoder.py) over an ONNX model.

    ``width``: the size of the last dimension that the task's head asks for. Raises ModelRefused.
    """

    def __init__(
        self, model: OnnxModel, task: str, bounds: Bounds, *, pad_token_id: int, width: int
    ) -> None:
        self._model, self._outputs = model, _named(model, task)
        self._pad_token_id = pad_token_id
        self._check_inputs()
        self.bounds = bounds
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.budget = STEP_TOKENS * torch.get_num_threads()
        self._beat: Callable[[], None] = lambda: None
        self.packed = not self._try_out(width)
        if self.packed:
            log.info("a text gives other numbers beside another: each runs by itself")

    def side_by_side(
        self, rows: Sequence[Row], run: Callable[[Sequence[Row]], Sequence[Any]]
    ) -> list[Any]:
        """``run`` of all rows: onnxruntime shares each operator out to the cores itself."""
        return [one for row in rows for one in run([row])] if self.packed else list(run(rows))

    def run(self, rows: Sequence[Row]) -> tuple[Any, Tensor]:
        """What the model gives for (texts, longest), and the mask of what is no padding."""
        self._beat()
        ids, mask, types = padded(rows, self._pad_token_id)
        given = dict(zip(_TEXTS, (ids, mask, types), strict=True))
        return _output(self._model.run(given), self._outputs), torch.from_numpy(mask)

    def beat_with(self, beat: Callable[[], None]) -> None:
        """Call ``beat`` at each run from now on."""
        self._beat = beat

    def _check_inputs(self) -> None:
        inputs = {one.name: one for one in self._model.inputs}
        if not {"input_ids", "attention_mask"} <= inputs.keys() <= set(_TEXTS):
            raise ModelRefused(
                f"it has {self._model.names()}, and a model of texts has the inputs input_ids and "
                "attention_mask, maybe token_type_ids: export it with those (torch.onnx.export, "
                "input_names)"
            )
        for one in inputs.values():
            if one.shape != (-1, -1):
                raise ModelRefused(
                    f"its input {one.name} has the sizes {list(one.shape)}, and texts are of any "
                    "number and length: export it with dynamic axes"
                )

    def _try_out(self, width: int) -> bool:
        """Whether a text gives the same alone and padded, beside a longer one.

        A model with numbers of 8 bits may not: it scales them by all that is in a batch. Raises
        ModelRefused where what it gives is not of the shape that the task's head reads.
        """
        vocab = self.bounds.vocab_size
        lengths = [min(size, self.bounds.context_length) for size in _SAMPLE]
        rows = [Row(np.arange(5, 5 + size, dtype=np.int64) % vocab) for size in lengths]
        try:
            both = [getattr(self.run(rows)[0], name) for name in self._outputs]
            single = [getattr(self.run(rows[1:])[0], name) for name in self._outputs]
        except Exception as error:
            raise ModelRefused(
                f"it can't run a text ({type(error).__name__}): its tokenizer, config.json and "
                "model.onnx must be of one model; export it anew"
            ) from None
        alike = True
        for name, one, alone in zip(self._outputs, both, single, strict=True):
            last = lengths[0] if name.startswith(("start", "end")) else width
            if one.shape[0] != len(rows) or one.shape[-1] != last:
                raise ModelRefused(
                    f"its output {name} is {list(one.shape)} for {len(rows)} texts, and "
                    f"config.json asks for {last} numbers: they are of different models"
                )
            if one.dim() == 3 or last == lengths[0]:
                one, alone = one[:, : lengths[1]], alone[:, : lengths[1]]
            apart = float((one[1:] - alone).abs().max())
            alike = alike and apart <= TOLERANCE * max(1.0, float(alone.abs().max()))
        return alike


class OnnxPictures:
    """Sees (images.py) over an ONNX model: pixel_values in, logits out. Raises ModelRefused."""

    shares = True

    def __init__(self, model: OnnxModel, task: str, labels: int) -> None:
        self._model, self._outputs = model, _named(model, task)
        names = [one.name for one in model.inputs]
        if len(names) != 1 and sorted(names) != ["pixel_mask", "pixel_values"]:
            raise ModelRefused(
                f"it has {model.names()}, and a model of pictures has the input pixel_values: "
                "export it with that"
            )
        (pixels,) = (one for one in model.inputs if one.name != "pixel_mask")
        if len(pixels.shape) != 4 or pixels.shape[0] not in (-1, 1):
            raise ModelRefused(
                f"its input {pixels.name} has the sizes {list(pixels.shape)}, and pictures are "
                "[any, 3, height, width]: export it with a dynamic first axis"
            )
        logits: Port = next(one for one in model.outputs if one.name == self._outputs["logits"])
        wanted = labels + (task == "detect")  # one more stands for no object
        if logits.shape[-1] not in (-1, wanted):
            raise ModelRefused(
                f"its output {logits.name} has {logits.shape[-1]} numbers, and config.json asks "
                f"for {wanted}: they are of different models"
            )
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self._pixels, self._any = pixels.name, pixels.any_rows
        self._beat: Callable[[], None] = lambda: None

    def __call__(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Any:
        """Outputs for (pictures, channels, height, width), one by one where the file asks so."""
        given = {self._pixels: pixel_values.numpy()}
        if pixel_mask is not None:
            given["pixel_mask"] = pixel_mask.numpy()
        size = len(pixel_values) if self._any else 1
        parts = []
        for begin in range(0, len(pixel_values), size):
            self._beat()
            parts.append(
                self._model.run({name: one[begin : begin + size] for name, one in given.items()})
            )
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return _output(found, self._outputs)

    def beat_with(self, beat: Callable[[], None]) -> None:
        """Call ``beat`` at each run from now on."""
        self._beat = beat


def load_texts(file: Path, config: Any, task: str, bounds: Bounds) -> OnnxEncoder:
    """What runs the ONNX model of a folder with this ``config`` for texts. Raises ModelRefused."""
    width = {"embed": int(config.hidden_size), "answer": 0}.get(task, int(config.num_labels))
    padding = int(config.pad_token_id or 0)
    return OnnxEncoder(OnnxModel(file), task, bounds, pad_token_id=padding, width=width)


def load_pictures(file: Path, config: Any, task: str) -> OnnxPictures:
    """What runs the ONNX model of a folder with this ``config`` for pictures. As load_texts."""
    return OnnxPictures(OnnxModel(file), task, int(config.num_labels))


def _named(model: OnnxModel, task: str) -> dict[str, str]:
    """What a head reads, and the model's name for it. Raises ModelRefused."""
    there = [one.name for one in model.outputs]
    found = {}
    for wanted, names in _OUTPUTS[task].items():
        name = next((one for one in names if one in there), None)
        if name is None and len(there) == len(_OUTPUTS[task]) == 1:
            name = there[0]
        if name is None:
            raise ModelRefused(
                f"it has {model.names()}, and task={task} needs the output {names[0]}: export it "
                "with that (output_names), or name another task"
            )
        found[wanted] = name
    return found


def _output(found: Mapping[str, Any], names: Mapping[str, str]) -> Any:
    """As transformers' outputs: tensors by attribute."""
    return SimpleNamespace(**{one: torch.from_numpy(found[name]) for one, name in names.items()})
