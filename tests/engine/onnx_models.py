"""Small ONNX models, made by hand: what an exporter would write, without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

HIDDEN = 12
VOCABULARY = 300
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Ends = Sequence[tuple[str, int, list[Any]]]
"""Inputs or outputs: a name, a type, sizes (a text for any)."""


def model(
    nodes: Sequence[Any],
    inputs: Ends,
    outputs: Ends,
    numbers: Mapping[str, NDArray[Any]] | None = None,
    **more: Any,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "made by hand",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(*one) for one in outputs],
        [numpy_helper.from_array(one, name) for name, one in (numbers or {}).items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("elsewhere", 1)]
    return helper.make_model(graph, ir_version=9, opset_imports=opsets, **more)


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def plain(file: Path, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What onnxruntime gives when nothing of ours is around it."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(given)), strict=True))


def weights(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def scorer() -> onnx.ModelProto:
    """Two inputs of a table, one of them ids; a score and a place as outputs."""
    nodes = [
        node("Gather", "items ids", "vectors"),
        node("ReduceSum", "vectors axis", "summed", keepdims=0),
        node("MatMul", "x matrix", "hidden"),
        node("Tanh", "hidden", "bent"),
        node("Mul", "bent summed", "both"),
        node("Softmax", "both", "scores", axis=-1),
        node("ArgMax", "scores", "place", axis=1, keepdims=0),
    ]
    numbers = {"items": weights(9, 4, seed=1), "matrix": weights(3, 4, seed=2)}
    numbers["axis"] = np.array([1])
    inputs = [("x", FLOAT, ["rows", 3]), ("ids", INT64, ["rows", "any"])]
    outputs = [("scores", FLOAT, ["rows", 4]), ("place", INT64, ["rows"])]
    return model(nodes, inputs, outputs, numbers)


def ranking() -> onnx.ModelProto:
    """Rows that depend on each other: their shares of one whole."""
    ends = ("x", FLOAT, ["rows", 2]), ("share", FLOAT, ["rows", 2])
    return model([node("Softmax", "x", "share", axis=0)], ends[:1], ends[1:])


def reader(task: str, labels: int = 2, *, sizes: Sequence[Any] = ("texts", "tokens")) -> Any:
    """Texts: a token's vector, with the mean of its text's, so that the mask matters."""
    nodes = [
        node("Gather", "words input_ids", "word"),
        node("Gather", "types token_type_ids", "type"),
        node("Add", "word type", "both"),
        node("Cast", "attention_mask", "shown", to=FLOAT),
        node("Unsqueeze", "shown last", "weight"),
        node("Mul", "both weight", "kept"),
        node("ReduceSum", "kept middle", "total", keepdims=1),
        node("ReduceSum", "weight middle", "count", keepdims=1),
        node("Div", "total count", "mean"),
        node("Add", "both mean", "mixed"),
        node("Tanh", "mixed", "last_hidden_state"),
    ]
    hidden = ("last_hidden_state", FLOAT, ["texts", "tokens", HIDDEN])
    match task:
        case "embed":
            outputs: list[Any] = [hidden]
        case "tag":
            nodes.append(node("MatMul", "last_hidden_state out", "logits"))
            outputs = [("logits", FLOAT, ["texts", "tokens", labels])]
        case "answer":
            nodes.append(node("MatMul", "last_hidden_state out", "ends"))
            nodes.append(node("Split", "ends", "one two", axis=2, num_outputs=2))
            nodes.append(node("Squeeze", "one last", "start_logits"))
            nodes.append(node("Squeeze", "two last", "end_logits"))
            outputs = [(f"{n}_logits", FLOAT, ["texts", "tokens"]) for n in ("start", "end")]
        case _:
            nodes.append(node("MatMul", "mean out", "wide"))
            nodes.append(node("Squeeze", "wide middle", "logits"))
            outputs = [("logits", FLOAT, ["texts", labels])]
    numbers = {"words": weights(VOCABULARY, HIDDEN), "types": weights(2, HIDDEN, seed=1)}
    numbers["out"] = weights(HIDDEN, labels, seed=2)
    axes = {"last": np.array([2]), "middle": np.array([1])}
    names = ("input_ids", "attention_mask", "token_type_ids")
    return model(nodes, [(n, INT64, list(sizes)) for n in names], outputs, numbers | axes)


def classifier_of_pictures(labels: int, *, rows: Any = "pictures") -> onnx.ModelProto:
    nodes = [
        node("Conv", "pixel_values kernel", "seen", strides=[2, 2]),
        node("Relu", "seen", "bent"),
        node("GlobalAveragePool", "bent", "pooled"),
        node("Flatten", "pooled", "flat"),
        node("MatMul", "flat out", "logits"),
    ]
    numbers = {"kernel": weights(6, 3, 5, 5), "out": 3 * weights(6, labels, seed=1)}
    inputs = [("pixel_values", FLOAT, [rows, 3, "height", "width"])]
    return model(nodes, inputs, [("logits", FLOAT, [rows, labels])], numbers)
