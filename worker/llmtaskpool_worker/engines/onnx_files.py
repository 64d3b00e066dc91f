"""ONNX models as files: which folder is served by one, and what of it may not be loaded. No torch.

An ONNX file is a graph of operators and numbers. Two parts of the format reach beyond the file:
operators of a library that somebody would have to load, which is code, and numbers in other files
(https://onnx.ai/onnx/repo-docs/ExternalData.html). The first are refused; the second are read from
the model's own folder alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmtaskpool_worker.engines.sources import ONNX_PLACES
from llmtaskpool_worker.engines.weight_files import is_pointer

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Whose operators onnxruntime itself has."""
HEAD = "head.safetensors"
"""Beside a model that embeds (one_pass/linear_head.py): no weights of the model."""
MISSING = (
    "it is an ONNX model, and {name} is not installed: pip install llmtaskpool[onnx], or on a "
    "cluster an image of the worker with it (docs/images.md)"
)


def onnx_file(folder: Path) -> Path | None:
    """The ONNX model of ``folder``; None where it is served by safetensors, which come first."""
    if any(file.name != HEAD for file in folder.glob("*.safetensors")):
        return None
    return next((folder / place for place in ONNX_PLACES if (folder / place).is_file()), None)


def not_loadable(file: Path) -> str | None:
    """Why an ONNX model may or can not be loaded, with the remedy; None when it can."""
    for name in ("onnxruntime", "onnx"):
        if find_spec(name) is None:
            return MISSING.format(name=name)
    if is_pointer(file):
        return f"{file.name} is a pointer of git-lfs and not the model: run git lfs pull"
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model(file, load_external_data=False)
    except DecodeError:
        return (
            f"{file.name} is cut off, spoilt or larger than the 2 GiB that the format can hold: "
            "copy it again, or save its numbers beside it (save_as_external_data)"
        )
    own = {function.domain for function in model.functions}
    for node in _nodes(model):
        if node.domain not in DOMAINS and node.domain not in own:
            return (
                f"its operator {node.op_type[:64]} is of {node.domain[:64]}, a library, and code "
                "beside a model is never loaded: export it with onnx's own operators"
            )
    return next((why for one in _tensors(model) if (why := _outside(one, file.parent))), None)


def bytes_of(file: Path) -> int:
    """Of an ONNX model that may be loaded, and of the files that its numbers are in."""
    import onnx

    model = onnx.load_model(file, load_external_data=False)
    told = (entry for tensor in _tensors(model) for entry in tensor.external_data)
    others: set[str] = {str(entry.value) for entry in told if entry.key == "location"}
    return file.stat().st_size + sum((file.parent / name).stat().st_size for name in others)


def _graphs(model: Any) -> Iterator[Any]:
    """The graph, those of its branches and loops, and its functions, each of which has nodes."""
    left = [model.graph, *model.functions]
    while left:
        graph = left.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                left += [attribute.g] if attribute.HasField("g") else []
                left += attribute.graphs


def _nodes(model: Any) -> Iterator[Any]:
    for graph in _graphs(model):
        yield from graph.node


def _tensors(model: Any) -> Iterator[Any]:
    for graph in _graphs(model):
        yield from getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield from (sparse.values, sparse.indices)


def _outside(tensor: Any, folder: Path) -> str | None:
    """Why the numbers of a tensor can't be read, which may be in another file."""
    if tensor.data_location != tensor.EXTERNAL:
        return None
    told = {entry.key: entry.value for entry in tensor.external_data}
    name = told.get("location", "")
    if not name or name != Path(name).name or not (folder / name).is_file():
        return (
            f"it reads {name[:64]!r}, which is no file beside it: copy that file there, or save "
            "the model as one file (onnx.save)"
        )
    size = (folder / name).stat().st_size
    numbers = [told.get(key, usual) for key, usual in (("offset", "0"), ("length", "0"))]
    if (
        any(not one.isdecimal() or len(one) > 18 for one in numbers)
        or sum(map(int, numbers)) > size
    ):
        return f"{name[:64]} is cut off or spoilt: copy it again"
    return None
