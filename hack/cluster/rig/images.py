"""Images for the node: the sandbox image, made here, and archives that are loaded into it."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from rig.errors import RigError
from rig.namespaces import INSIDE

SANDBOX = "localhost/llmtaskpool-rig/pause:1"
SOCKET = INSIDE / "containerd.sock"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, (content, mode) in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), mode
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def sandbox_archive(pause: Path, target: Path) -> Path:
    """Write a docker archive of an image that holds only the pause program."""
    layer = _tar({"pause": (pause.read_bytes(), 0o755)})
    config = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [SANDBOX], "Layers": ["layer.tar"]}]
    files = {
        "config.json": json.dumps(config).encode(),
        "layer.tar": layer,
        "manifest.json": json.dumps(manifest).encode(),
    }
    target.write_bytes(_tar({name: (content, 0o644) for name, content in files.items()}))
    return target


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
