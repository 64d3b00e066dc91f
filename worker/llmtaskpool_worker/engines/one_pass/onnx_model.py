"""A model that comes as model.onnx, run by onnxruntime on the CPU.

It computes with the threads that torch has in this process, none of which wait by spinning: others
need the processors meanwhile. Libraries of operators are never loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from llmtaskpool_worker.engines.weights import ModelRefused

PROVIDERS = ["CPUExecutionProvider"]
DATATYPES: Mapping[str, str] = {
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
}
"""What Open Inference Protocol v2 calls the types that are taken."""
NUMPY: Mapping[str, str] = {"FP32": "<f4", "FP64": "<f8", "INT32": "<i4", "INT64": "<i8"}
_FATAL = 4
"""Severity: what onnxruntime logs has paths and numbers in it; its errors are told by us."""


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output: its name, its datatype and its sizes, -1 for any."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def any_rows(self) -> bool:
        """Whether it takes any number of rows."""
        return self.shape[:1] == (-1,)


class OnnxModel:
    """One loaded file. ``run`` is for any thread."""

    def __init__(self, file: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_cpu_mem_arena = False  # it would keep what the largest step has needed
        options.log_severity_level = _FATAL
        try:
            session = onnxruntime.InferenceSession(str(file), options, providers=PROVIDERS)
        except Exception as error:
            raise ModelRefused(
                f"onnxruntime {onnxruntime.__version__} can't load {file.name} "
                f"({type(error).__name__}): export it anew, with operators that this version has"
            ) from None
        self._session: Any = session
        self.inputs = tuple(_port(one, "input") for one in session.get_inputs())
        self.outputs = tuple(_port(one, "output") for one in session.get_outputs())

    def run(self, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Its outputs by name, of inputs by name. Raises what onnxruntime raises."""
        wanted = {
            port.name: np.ascontiguousarray(given[port.name], NUMPY[port.datatype])
            for port in self.inputs
        }
        found = self._session.run(None, wanted)
        return {port.name: one for port, one in zip(self.outputs, found, strict=True)}

    def names(self) -> str:
        """Its inputs and outputs, for people."""
        told = [", ".join(one.name[:64] for one in ports) for ports in (self.inputs, self.outputs)]
        return f"inputs {told[0]}, outputs {told[1]}"


def _port(one: Any, what: str) -> Port:
    datatype = DATATYPES.get(one.type)
    if datatype is None or not one.shape:
        hint = " (from scikit-learn: convert it with the option zipmap=False)"
        raise ModelRefused(
            f"its {what} {one.name[:64]} is a {one.type[:64]} of {len(one.shape or ())} "
            f"dimensions, and {', '.join(DATATYPES)} of 1 or more are taken: export it with such"
            + (hint if one.type.startswith(("seq", "map", "tensor(string)")) else "")
        )
    sizes = tuple(size if isinstance(size, int) and size > 0 else -1 for size in one.shape)
    return Port(one.name, datatype, sizes)
