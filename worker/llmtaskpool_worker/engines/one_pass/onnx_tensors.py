"""The head of ONNX models whose clients send tensors: what goes in and comes out is the file's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llmtaskpool_worker.engines.admission import refuse_file_that_never_fits, step_peak
from llmtaskpool_worker.engines.memory_plan import no_step
from llmtaskpool_worker.engines.one_pass.head import ANSWER_BYTES, Fault, Message
from llmtaskpool_worker.engines.one_pass.loop import OnePassLoop
from llmtaskpool_worker.engines.one_pass.onnx_model import NUMPY, OnnxModel, Port
from llmtaskpool_worker.engines.one_pass.planning import planned
from llmtaskpool_worker.engines.protocol import (
    AdmitInputs,
    FromEngine,
    Ready,
    RequestFailed,
    Tensor,
    Values,
)
from llmtaskpool_worker.engines.weights import ModelRefused

log = logging.getLogger("llmtaskpool.engine")

STEP_NUMBERS = 1_000_000
"""Of inputs that one step takes: a handful of pictures, or 30,000 rows of a table."""
TOLERANCE = 1e-4
"""Of the largest value: a row alone, and the same row beside another."""
SAMPLE_SIZE = 2
"""Of a dimension that may be any, where the model is tried."""
REQUEST_NUMBERS = 16 << 20
"""Of inputs that a request has at most: a message to the engine holds 64 MiB."""
SEEN_BYTES, MORE_ROWS = 4 << 20, 8
"""What a run has to hold for its size to be told from chance; by how much it grows until it does.
"""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Given:
    """The tensors of one request by name."""

    arrays: Arrays

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """Of each but for its rows: what must be alike to run together."""
        return tuple(one.shape[1:] for one in self.arrays.values())

    @property
    def rows(self) -> int:
        """Of the first tensor."""
        return int(next(iter(self.arrays.values())).shape[0])


class OnnxTensorHead:
    """A Head over an OnnxModel. A request is one row of the loop, whatever it holds.

    Requests share a run where the model takes any number of rows and treats each by itself, which
    is found out at load.
    """

    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self.budget = STEP_NUMBERS
        self.together = _rows_are_alone(model)
        if not self.together:
            log.info("rows of this model depend on each other: each request runs by itself")
        self._beat: Callable[[], None] = lambda: None
        self.room: int | None = None  # a step of its budget holds no more
        self.number_bytes, self.most_numbers = 1, REQUEST_NUMBERS

    def fit_into(self, room: int) -> int:
        """See Head. A run is taken to hold so many bytes for each number of its inputs."""
        self.number_bytes, least = self._measured()
        most = room // self.number_bytes
        if most < least:
            raise ModelRefused(no_step(least * self.number_bytes, room))
        if most < REQUEST_NUMBERS:
            log.warning("memory holds %d numbers of inputs", most)
        self.most_numbers = min(REQUEST_NUMBERS, most)
        self.budget = min(STEP_NUMBERS, most)
        return self.most_numbers * self.number_bytes

    def needs(self, rows: Sequence[Given]) -> int:
        """See Head."""
        return self.number_bytes * sum(map(self.size, rows))

    def _measured(self) -> tuple[int, int]:
        """Bytes that a run holds for each number of its inputs, and numbers of the smallest."""
        rows, least = 1, 0
        while True:
            given = _sample(self.model, rows)
            numbers = sum(one.size for one in given.values())
            least = least or numbers
            try:
                if rows == 1:
                    self.model.run(given)  # what only the first run takes is none of it
                with step_peak(torch.device("cpu")) as peak, torch.inference_mode():
                    self.model.run(given)
                held = peak()
            except Exception:
                # It can't be tried, as where a dimension of any size isn't really of any.
                return max(1, self.number_bytes), least
            self.number_bytes = max(1, -(-held // numbers))
            grows = all(port.any_rows for port in self.model.inputs)
            if held >= SEEN_BYTES or not grows or numbers * MORE_ROWS > STEP_NUMBERS:
                return self.number_bytes, least
            rows *= MORE_ROWS

    def ready(self) -> Ready:
        """What was loaded; ``about`` has the inputs and outputs as Open Inference Protocol does."""
        inputs, outputs = (
            [{"name": p.name, "datatype": p.datatype, "shape": list(p.shape)} for p in ports]
            for ports in (self.model.inputs, self.model.outputs)
        )
        about = {"platform": "onnxruntime_onnx", "inputs": inputs, "outputs": outputs}
        return Ready(0, 0, [], "cpu", "float32", 0, about=about)

    def rows(self, message: Message) -> Sequence[Given] | Fault:
        """The request's tensors, or why they can't be run."""
        if not isinstance(message, AdmitInputs) or not message.tensors:
            return Fault("wrong_model", "this model takes tensors")
        ports = {port.name: port for port in self.model.inputs}
        arrays: dict[str, NDArray[Any]] = {}
        for tensor in message.tensors:
            if tensor.name not in ports or tensor.datatype not in NUMPY:
                return Fault("invalid", f"input {tensor.name[:64]} is none of this model's")
            found = _array(tensor, ports[tensor.name])
            if found is None:
                return Fault("invalid", f"input {tensor.name} has not the shape that it should")
            arrays[tensor.name] = found
        if missing := sorted(ports.keys() - arrays.keys()):
            return Fault("invalid", f"input {missing[0]} is missing")
        counts = {arrays[port.name].shape[0] for port in self.model.inputs if port.any_rows}
        if len(counts) > 1:
            return Fault("invalid", "the inputs have different numbers of rows")
        given = Given({name: arrays[name] for name in ports})
        if self.size(given) > self.most_numbers:
            return Fault(
                "too_large",
                f"inputs: {self.size(given)} numbers, and memory holds {self.most_numbers} here: "
                "send them in several requests",
            )
        return [given]

    def size(self, row: Given) -> int:
        """Numbers of its inputs."""
        return sum(one.size for one in row.arrays.values())

    def cost(self, sizes: Sequence[int]) -> int:
        """Numbers."""
        return sum(sizes)

    def run(self, rows: Sequence[Given]) -> Sequence[Any]:
        """Outputs by name, or a Fault, for each request: those that may run together do."""
        alike: dict[Any, list[int]] = {}
        for place, row in enumerate(rows):
            alike.setdefault(row.sizes if self.together else place, []).append(place)
        found: list[Any] = [None] * len(rows)
        for places in alike.values():
            self._beat()
            for place, one in zip(places, self._run([rows[n] for n in places]), strict=True):
                found[place] = one
        return found

    def _run(self, rows: Sequence[Given]) -> list[Any]:
        arrays = rows[0].arrays
        if len(rows) > 1:
            arrays = {name: np.concatenate([row.arrays[name] for row in rows]) for name in arrays}
        try:
            outputs = self.model.run(arrays)
        except Exception:
            # Numbers that the model can't take, such as an id that it doesn't have. Whose they are
            # is found out one by one.
            if len(rows) > 1:
                return [one for row in rows for one in self._run([row])]
            return [Fault("invalid", "the model can't take these numbers: is an id out of range?")]
        if len(rows) == 1:
            return [_finite(outputs)]
        ends = np.cumsum([row.rows for row in rows])[:-1]
        parts = {name: np.split(one, ends) for name, one in outputs.items()}
        return [
            _finite({name: part[place] for name, part in parts.items()})
            for place in range(len(rows))
        ]

    def answer(self, message: Message, values: Sequence[Any], size: int) -> FromEngine:
        """The outputs as tensors; what was read is told in rows."""
        (found,) = values
        size_bytes = sum(one.nbytes for one in found.values())
        if size_bytes > ANSWER_BYTES:
            return RequestFailed(
                message.id,
                "too_large",
                f"outputs: {size_bytes} bytes, and {ANSWER_BYTES} are answered at once: send the "
                "inputs in several requests",
            )
        told = []
        for port in self.model.outputs:
            one = found[port.name]
            data = one.astype(NUMPY[port.datatype]).tobytes()
            shape = list(one.shape)
            told.append(
                {"name": port.name, "datatype": port.datatype, "shape": shape} | {"data": data}
            )
        first = message.tensors[0].shape[0] if isinstance(message, AdmitInputs) else size
        return Values(message.id, told, first)

    def beat_with(self, beat: Callable[[], None]) -> None:
        """Call ``beat`` at each run from now on."""
        self._beat = beat


def load_onnx_tensors(file: Path, *, threads: int, options: dict[str, Any]) -> OnePassLoop:
    """The loop over the ONNX model in ``file``. Raises ModelRefused."""
    refuse_file_that_never_fits(file, options)
    head = OnnxTensorHead(OnnxModel(file))
    return planned(head, torch.device("cpu"), threads=threads, options=options)


def _array(tensor: Tensor, port: Port) -> NDArray[Any] | None:
    """The numbers of a tensor in the port's type; None where they don't fit."""
    shape = tensor.shape
    fits = len(shape) == len(port.shape) and all(
        size >= 1 and wanted in (-1, size) for size, wanted in zip(shape, port.shape, strict=False)
    )
    if not fits or prod(shape) * np.dtype(NUMPY[tensor.datatype]).itemsize != len(tensor.data):
        return None
    given = np.frombuffer(tensor.data, NUMPY[tensor.datatype]).reshape(shape)
    return given.astype(NUMPY[port.datatype], copy=False)


def _finite(outputs: Arrays) -> Arrays | Fault:
    if all(bool(np.isfinite(one).all()) for one in outputs.values()):
        return outputs
    return Fault("not_finite", "the model's output is not a number")


def _sample(model: OnnxModel, rows: int) -> Arrays:
    """Inputs of so many rows, where there may be any number."""
    draw = np.random.default_rng(0)

    def made(port: Port) -> NDArray[Any]:
        shape = [SAMPLE_SIZE if size < 0 else size for size in port.shape]
        if port.any_rows:
            shape[0] = rows
        if port.datatype.startswith("INT"):
            return draw.integers(0, 2, shape).astype(NUMPY[port.datatype])
        return draw.normal(size=shape).astype(NUMPY[port.datatype])

    return {port.name: made(port) for port in model.inputs}


def _rows_are_alone(model: OnnxModel) -> bool:
    """Whether each row gives the same alone and beside another; not where it can't be tried."""
    if not all(port.any_rows for port in (*model.inputs, *model.outputs)):
        return False
    given = _sample(model, SAMPLE_SIZE)
    try:
        both = model.run(given)
        single = [
            model.run({name: one[place : place + 1] for name, one in given.items()})
            for place in range(SAMPLE_SIZE)
        ]
    except Exception:
        return False
    return all(
        _equal(both[port.name], [one[port.name] for one in single]) for port in model.outputs
    )


def _equal(both: NDArray[Any], single: Sequence[NDArray[Any]]) -> bool:
    if both.shape[:1] != (SAMPLE_SIZE,) or any(one.shape[:1] != (1,) for one in single):
        return False
    apart = np.concatenate(single)
    if apart.shape != both.shape:
        return False
    largest = max(1.0, float(np.abs(both).max(initial=0.0)))
    return bool((np.abs(apart - both) <= TOLERANCE * largest).all())
