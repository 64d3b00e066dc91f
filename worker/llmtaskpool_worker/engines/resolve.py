"""From a model's source to the checked folder that may be loaded: downloaded, converted, refused.

Only safetensors weights and ONNX graphs are ever read, and no code that a model brings is ever run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmtaskpool_worker.engines.conversion import convert_gguf
from llmtaskpool_worker.engines.hub import download
from llmtaskpool_worker.engines.image_files import not_of_timm, of_timm, takes_pictures
from llmtaskpool_worker.engines.onnx_files import not_loadable, onnx_file
from llmtaskpool_worker.engines.sources import (
    HUB,
    PIECES,
    Progress,
    SourceRefused,
    converted,
    origin,
)
from llmtaskpool_worker.engines.weight_files import unreadable

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def resolve(source: str, progress: Progress) -> Path:
    """The checked folder of ``source``, converted or downloaded first where that is needed.

    Raises:
        SourceRefused: there is no such model, or it may not or can't be loaded.
    """
    if hub := HUB.fullmatch(source):
        folder = download(hub[1], hub[2] or "main", progress)
        check_folder(folder, source, links_allowed=True)
        return folder
    path = origin(source)
    if path.suffix != ".gguf":
        check_folder(path, source)
        return path
    target = converted(path)
    if not target.is_dir() or unreadable(target):  # a disk that was full left it cut off
        convert_gguf(path, target, progress)
    check_folder(target, source)
    return target


def check_folder(folder: Path, source: str, *, links_allowed: bool = False) -> None:
    """Refuse what may not be loaded. ``links_allowed``: the hub's cache is made of links.

    Raises:
        SourceRefused: remote code, pickled or spoilt weights, files outside of the folder, or
            parts missing.
    """
    onnx = onnx_file(folder)
    is_table = (folder / "model.json").is_file()  # engines/one_pass/modules.py
    is_table = is_table or (onnx is not None and not (folder / "config.json").is_file())
    config = _json(folder, "config.json", source, needed=not is_table)
    others = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
    for name, content in (("config.json", config), *((other, None) for other in others)):
        content = content if content is not None else _json(folder, name, source, needed=False)
        if "auto_map" in content:
            raise SourceRefused(
                f"source {source!r}: {name} has auto_map, which runs code that comes with the "
                "model; use a model of an architecture that transformers itself has"
            )
    files = [file for file in folder.rglob("*") if not file.is_dir()]
    if onnx is None and not any(file.suffix == ".safetensors" for file in files):
        if any(file.suffix in _PICKLES for file in files):
            raise SourceRefused(
                f"source {source!r}: the weights are pickled, which can run any code when read; "
                "convert them to safetensors (model.save_pretrained writes it)"
            )
        raise SourceRefused(
            f"source {source!r}: no *.safetensors file in the folder, and no model.onnx"
        )
    root = folder.resolve()
    for file in files:
        if not links_allowed and not file.resolve().is_relative_to(root):
            raise SourceRefused(
                f"source {source!r}: {file.name} is a link out of the folder; copy the file there"
            )
    shards = _json(folder, "model.safetensors.index.json", source, needed=False)
    for shard in set(map(str, shards.get("weight_map", {}).values())):
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise SourceRefused(
                f"source {source!r}: the index names {shard!r}, which is not a file of the folder"
            )
    if of_timm(config) and (why := not_of_timm(config)):
        raise SourceRefused(f"source {source!r}: {why}")
    has_tokenizer = (folder / "tokenizer.json").is_file() or all(
        (folder / name).is_file() for name in PIECES
    )
    if not is_table and not takes_pictures(config) and not has_tokenizer:
        raise SourceRefused(
            f"source {source!r}: tokenizer.json is missing; save the tokenizer anew with "
            "transformers (tokenizer.save_pretrained)"
        )
    if why := unreadable(folder) or (not_loadable(onnx) if onnx is not None else None):
        raise SourceRefused(f"source {source!r}: {why}")


def _json(folder: Path, name: str, source: str, *, needed: bool = True) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        if needed:
            raise SourceRefused(f"source {source!r}: {name} is missing in the folder")
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise SourceRefused(f"source {source!r}: {name} is not a JSON object")
    return content
