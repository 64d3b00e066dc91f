"""The head of models of tables: rows of many requests in one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from llmtaskpool_worker.engines.admission import on_cpu, refuse_what_never_fits, step_peak
from llmtaskpool_worker.engines.memory_plan import no_step
from llmtaskpool_worker.engines.one_pass import modules
from llmtaskpool_worker.engines.one_pass.head import ANSWER_BYTES, Fault, Message
from llmtaskpool_worker.engines.one_pass.loop import OnePassLoop
from llmtaskpool_worker.engines.one_pass.planning import planned
from llmtaskpool_worker.engines.onnx_files import onnx_file
from llmtaskpool_worker.engines.protocol import AdmitInputs, FromEngine, Ready, Values
from llmtaskpool_worker.engines.weights import ModelRefused, check_numbers

STEP_ROWS = 4096
_NUMPY = {"FP32": "<f4", "FP64": "<f8", "INT32": "<i4", "INT64": "<i8"}
_TYPES = {"FP32": torch.float32, "INT64": torch.int64}


@dataclass(frozen=True, slots=True)
class Rows:
    """The tensors of one request by name, each (rows, width)."""

    given: Mapping[str, Tensor]
    count: int


class TableHead:
    """A Head over a module of modules.py. A request is one row of the loop, whatever it holds."""

    def __init__(self, table: modules.Table) -> None:
        self.table = table.eval()
        self.budget = STEP_ROWS
        self.room: int | None = None
        self.row_bytes = 0
        self._beat: Callable[[], None] = lambda: None

    def fit_into(self, room: int) -> int:
        """See Head. Whatever a request holds, so many rows are run at once."""
        given = {
            name: torch.zeros((STEP_ROWS, max(1, width)), dtype=_TYPES[datatype])
            for name, (width, datatype) in self.table.columns.items()
        }
        with step_peak(torch.device("cpu")) as peak, torch.inference_mode():
            self.table(given)
        self.row_bytes = max(4 * self.table.outputs, -(-peak() // STEP_ROWS))
        if self.row_bytes > room:
            raise ModelRefused(no_step(self.row_bytes, room))
        self.budget = min(STEP_ROWS, room // self.row_bytes)
        return self.budget * self.row_bytes

    def needs(self, rows: Sequence[Rows]) -> int:
        """See Head."""
        return self.row_bytes * min(self.budget, sum(row.count for row in rows))

    def ready(self) -> Ready:
        """What was loaded; ``about`` has the inputs and outputs as Open Inference Protocol does."""
        inputs = [
            {"name": name, "datatype": datatype, "shape": [-1, width]}
            for name, (width, datatype) in self.table.columns.items()
        ]
        outputs = [{"name": "output", "datatype": "FP32", "shape": [-1, self.table.outputs]}]
        about = {"platform": "llmtaskpool", "inputs": inputs, "outputs": outputs}
        device = str(next(self.table.parameters()).device)
        return Ready(0, 0, [], device, "float32", 0, about=about)

    def rows(self, message: Message) -> Sequence[Rows] | Fault:
        """The request's tensors, or why they can't be run."""
        if not isinstance(message, AdmitInputs) or not message.tensors:
            return Fault("wrong_model", "this model takes tensors of a table")
        given: dict[str, Tensor] = {}
        for tensor in message.tensors:
            if tensor.name not in self.table.columns or tensor.datatype not in _NUMPY:
                return Fault("invalid", f"input {tensor.name[:64]} is none of this model's")
            width, datatype = self.table.columns[tensor.name]
            shape = tensor.shape
            size = np.dtype(_NUMPY[tensor.datatype]).itemsize
            fits = len(shape) == 2 and min(shape) >= 1 and width in (-1, shape[1])
            if not fits or shape[0] * shape[1] * size != len(tensor.data):
                return Fault("invalid", f"input {tensor.name} has not the shape that it should")
            numbers = np.frombuffer(tensor.data, _NUMPY[tensor.datatype]).reshape(shape).copy()
            given[tensor.name] = torch.from_numpy(numbers).to(_TYPES[datatype])
        if missing := sorted(set(self.table.columns) - set(given)):
            return Fault("invalid", f"input {missing[0]} is missing")
        counts = {one.shape[0] for one in given.values()}
        if len(counts) != 1:
            return Fault("invalid", "the inputs have different numbers of rows")
        most = ANSWER_BYTES // (4 * self.table.outputs)
        if max(counts) > most:
            return Fault(
                "too_large",
                f"inputs[0].shape: {max(counts)} rows, and {most} are answered at once: send them "
                "in several requests",
            )
        items = getattr(self.table, "items", None)
        if items is not None and int(given["ids"].max()) >= items:
            return Fault("invalid", f"an id is not below {items}")
        return [Rows(given, counts.pop())]

    def size(self, row: Rows) -> int:
        """Rows of the table."""
        return row.count

    def cost(self, sizes: Sequence[int]) -> int:
        """Rows of the table."""
        return sum(sizes)

    def run(self, rows: Sequence[Rows]) -> Sequence[Any]:
        """One pass over the tables of several requests, one below the other."""
        self._beat()
        names = self.table.columns
        if any(len({row.given[name].shape[1] for row in rows}) > 1 for name in names):
            # Lists of ids of several lengths: not filled up, as one of them may be very long.
            found = [self._passed(row.given, row.count) for row in rows]
        else:
            given = {name: torch.cat([row.given[name] for row in rows]) for name in names}
            counts = [row.count for row in rows]
            found = list(torch.split(self._passed(given, sum(counts)), counts))
        wrong = Fault("not_finite", "the model's output is not a number")
        return [one if bool(torch.isfinite(one).all()) else wrong for one in found]

    def _passed(self, given: Mapping[str, Tensor], count: int) -> Tensor:
        """(rows, outputs), in as many passes as the budget asks for."""
        parts = []
        for begin in range(0, count, self.budget):
            end = begin + self.budget
            parts.append(self.table({name: one[begin:end] for name, one in given.items()}))
            self._beat()
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def answer(self, message: Message, values: Sequence[Any], size: int) -> FromEngine:
        """The output as a tensor."""
        (found,) = values
        data = found.numpy().astype("<f4").tobytes()
        told = {"name": "output", "datatype": "FP32", "shape": list(found.shape), "data": data}
        return Values(message.id, [told], size)

    def beat_with(self, beat: Callable[[], None]) -> None:
        """Call ``beat`` at each pass from now on."""
        self._beat = beat


def load_table(
    folder: Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int,
    options: dict[str, Any],
) -> OnePassLoop:
    """The loop over an ONNX model, or over the module that ``model.json`` names, on the CPU.

    Raises ModelRefused.
    """
    if (onnx := onnx_file(folder)) is not None:
        from llmtaskpool_worker.engines.one_pass.onnx_tensors import load_onnx_tensors

        on_cpu(device, dtype)
        return load_onnx_tensors(onnx, threads=threads, options=options)
    if not (folder / "model.json").is_file():
        raise ModelRefused(
            "it has neither model.json nor model.onnx, which say what it takes and gives: add "
            "one, or name another task"
        )
    try:
        spec = modules.read_spec((folder / "model.json").read_bytes())
        table = modules.build(spec)
    except (msgspec.ValidationError, msgspec.DecodeError, ValueError) as error:
        raise ModelRefused(f"its model.json can't be used: {error}") from None
    refuse_what_never_fits(folder, "cpu", "float32", options)
    tensors = {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
    wanted = {name: tuple(tensor.shape) for name, tensor in table.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ModelRefused(
                f"tensor {name} is {found.get(name, 'missing')} in its files, and model.json asks "
                f"for {wanted.get(name, 'none of that name')}: save them anew"
            )
    table.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    check_numbers(table)
    table.requires_grad_(requires_grad=False)
    return planned(TableHead(table), torch.device("cpu"), threads=threads, options=options)
