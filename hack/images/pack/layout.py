"""Built images as one OCI layout: layers lie there uncompressed and once, for all images.

An archive made of it may leave out the blobs that its reader has. So the gigabytes of torch are
written once and loaded into a node once, whatever changes above them.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pack import tools
from pack.build import Image

_VERSION = b'{"imageLayoutVersion":"1.0.0"}'
_REFERENCE = "org.opencontainers.image.ref.name"
_CONTAINERD = "io.containerd.image.name"


def folder() -> Path:
    """Where the layout is."""
    return tools.cache_folder() / "oci"


def keep(image: Image) -> None:
    """Put an image in; layers that are there already are not written again."""
    root, run_root = tools.storage()
    tools.run(
        ["skopeo", "copy", "--quiet", "--dest-oci-accept-uncompressed-layers"]
        + [f"containers-storage:[overlay@{root}+{run_root}]{image.name}"]
        + [f"oci:{folder()}:{image.name}"],
        f"skopeo copy {image.name}",
        remedy=f"an image with torch needs 7 GB in {folder()}",
    )
    tidy()


def tidy() -> None:
    """Delete the blobs of images that others have replaced: an entry that lost its name is one."""
    with _lock() as lock, suppress(BlockingIOError):  # somebody reads: another build tidies up
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        index = _index()
        named = [one for one in index["manifests"] if one.get("annotations", {}).get(_REFERENCE)]
        if len(named) < len(index["manifests"]):
            (folder() / "index.json").write_text(json.dumps(index | {"manifests": named}))
        used = {digest for entry in named for digest in _digests(entry)}
        for blob in (folder() / "blobs" / "sha256").iterdir():
            if f"sha256:{blob.name}" not in used:
                blob.unlink()


@contextmanager
def reading() -> Iterator[None]:
    """Within, no blob is deleted; others may build and read meanwhile."""
    with _lock() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def size(name: str) -> int:
    """Bytes of the image's blobs."""
    return sum(_blob(digest).stat().st_size for digest in _digests(_entry(name)))


def write_archive(name: str, out: IO[bytes], *, without: frozenset[str] = frozenset()) -> int:
    """Write the image as an OCI archive, but for the blobs in ``without``; bytes of blobs."""
    entry = _entry(name)
    entry["annotations"][_CONTAINERD] = name
    index = {"schemaVersion": 2, "manifests": [entry]}
    written = 0
    with tarfile.open(fileobj=out, mode="w|") as archive:
        _add(archive, "oci-layout", _VERSION)
        _add(archive, "index.json", json.dumps(index).encode())
        for digest in _digests(entry):
            # Manifest and configuration are small, and without them nothing is understood.
            if digest in without and _blob(digest).stat().st_size > 1_000_000:
                continue
            archive.add(_blob(digest), f"blobs/sha256/{digest.removeprefix('sha256:')}")
            written += _blob(digest).stat().st_size
    return written


@contextmanager
def piped(name: str, without: frozenset[str]) -> Iterator[IO[bytes]]:
    """The archive as a pipe, to be read to its end within the block."""
    ends = os.pipe()

    def write() -> None:
        with suppress(BrokenPipeError), os.fdopen(ends[1], "wb") as out:
            write_archive(name, out, without=without)

    writer = threading.Thread(target=write)
    with os.fdopen(ends[0], "rb") as source:
        writer.start()
        yield source
    writer.join()


def digest_of(name: str) -> str:
    """The digest of the image's manifest."""
    return str(_entry(name)["digest"])


def _lock() -> IO[str]:
    return (tools.cache_folder() / "oci.lock").open("w")


def _index() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder() / "index.json").read_text())
    return found


def _entry(name: str) -> dict[str, Any]:
    for entry in _index()["manifests"]:
        if entry.get("annotations", {}).get(_REFERENCE) == name:
            return dict(entry)
    raise KeyError(name)


def _digests(entry: dict[str, Any]) -> list[str]:
    """The blobs of an image: its manifest, its configuration, its layers."""
    manifest = json.loads(_blob(entry["digest"]).read_text())
    layers = [layer["digest"] for layer in manifest["layers"]]
    return [entry["digest"], manifest["config"]["digest"], *dict.fromkeys(layers)]


def _blob(digest: str) -> Path:
    return folder() / "blobs" / "sha256" / digest.removeprefix("sha256:")


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    archive.addfile(info, io.BytesIO(content))
