"""Images for the node: the sandbox image, made here, and archives that are loaded into it."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rig.errors import RigError
from rig.namespaces import INSIDE

SANDBOX = "localhost/llmtaskpool-rig/pause:1"
SOCKET = INSIDE / "containerd.sock"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def _tar(files: Mapping[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, (content, mode) in files.items():
            _add(archive, name.lstrip("/"), content, mode)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    archive.addfile(info, io.BytesIO(content))


@dataclass(frozen=True, slots=True)
class Scratch:
    """An image of a few files and nothing below them. `files`: paths inside -> files here."""

    name: str
    files: Mapping[str, Path]
    entrypoint: tuple[str, ...]
    user: str = "0"


def sandbox_archive(pause: Path, target: Path) -> Path:
    """Write a docker archive of an image that holds only the pause program."""
    image = Scratch(SANDBOX, {"/pause": pause}, ("/pause",), "65535:65535")
    write_archive([image], target)
    return target


def write_archive(images: Sequence[Scratch], target: Path) -> None:
    """Write images as one docker archive."""
    manifest = []
    with tarfile.open(target, mode="w") as archive:
        for number, image in enumerate(images):
            layer = _tar({p: (f.read_bytes(), 0o755) for p, f in image.files.items()})
            config = {
                "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
                "os": "linux",
                "config": {
                    "Entrypoint": list(image.entrypoint),
                    "User": image.user,
                    "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                },
                "rootfs": {
                    "type": "layers",
                    "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"],
                },
            }
            _add(archive, f"{number}.json", json.dumps(config).encode(), 0o644)
            _add(archive, f"{number}.tar", layer, 0o644)
            manifest.append(
                {"Config": f"{number}.json", "RepoTags": [image.name], "Layers": [f"{number}.tar"]}
            )
        _add(archive, "manifest.json", json.dumps(manifest).encode(), 0o644)


def load(archive: Path, ctr: Path, enter: Sequence[str]) -> list[str]:
    """Import a docker or OCI archive into the node; returns the images' names."""
    try:
        source = archive.open("rb")
    except OSError as error:
        raise RigError(f"{archive}: {error.strerror}", "name a file of `docker save`") from error
    with source:  # as standard input: the node does not see every folder of this machine
        return load_from(source, str(archive), ctr, enter)


def load_from(source: IO[bytes], label: str, ctr: Path, enter: Sequence[str]) -> list[str]:
    """Import what is read from a file or pipe. An OCI archive may lack blobs the node has."""
    done = subprocess.run(  # noqa: S603 (ctr, built from pinned sources)
        [*_ctr(ctr, enter), "images", "import", "-"],
        stdin=source,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RigError(
            f"{label} could not be loaded: {done.stderr.strip()[-300:]}",
            "it must be a docker or OCI archive (`docker save`, `buildah push X oci-archive:F`)",
        )
    return [line.split()[0] for line in done.stdout.splitlines() if line.rstrip().endswith("saved")]


def blobs(ctr: Path, enter: Sequence[str]) -> frozenset[str]:
    """Digests of what the node's content store has."""
    done = subprocess.run(  # noqa: S603 (ctr, built from pinned sources)
        [*_ctr(ctr, enter), "content", "ls", "--quiet"], capture_output=True, text=True, check=False
    )
    return frozenset(done.stdout.split()) if done.returncode == 0 else frozenset()


def _ctr(ctr: Path, enter: Sequence[str]) -> list[str]:
    return [*enter, str(ctr), "--address", str(SOCKET), "--namespace", "k8s.io"]
