"""The base image: Debian's smallest system with Python, made by debootstrap; no registry."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from pack import tools

SUITE = "bookworm"
BASE = f"localhost/llmtaskpool-base:{SUITE}"
BUILDER = f"localhost/llmtaskpool-builder:{SUITE}"
_MIRROR = "http://deb.debian.org/debian"
_UNREAD = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "var/cache/apt",
    "var/cache/debconf",
    "var/lib/apt/lists",
    "var/log",
)
"""Nothing reads these in a container."""


def make(say: Callable[[str], None], *, again: bool = False) -> None:
    """Make the base and the builder image where they are missing, or `again`."""
    tools.require("buildah", "debootstrap", "chroot")
    if again or tools.image_id(BASE) is None:
        say(f"{BASE}: debootstrap {SUITE}, about a minute")
        with tempfile.TemporaryDirectory(dir=_scratch()) as scratch:
            _base(Path(scratch))
    if again or tools.image_id(BUILDER) is None:
        say(f"{BUILDER}: the base with python3-venv")
        _builder()


def _scratch() -> Path:
    folder = tools.cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _base(scratch: Path) -> None:
    root = scratch / "root"
    tools.run(
        ["debootstrap", "--variant=minbase", "--include=python3,ca-certificates"]
        + [SUITE, str(root), os.environ.get("LLMTASKPOOL_DEBIAN_MIRROR", _MIRROR)],
        "debootstrap",
        remedy="it needs a Debian mirror: set LLMTASKPOOL_DEBIAN_MIRROR to one that is reached",
        log=tools.cache_folder() / "debootstrap.log",
    )
    for name in _UNREAD:
        for entry in (root / name).iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for path in root.rglob("*"):  # nothing in a container of ours may gain rights
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
            path.chmod(stat.S_IMODE(mode) & ~(stat.S_ISUID | stat.S_ISGID))
    archive = scratch / "root.tar"
    tools.run(
        ["tar", "--numeric-owner", "-C", str(root), "-cf", str(archive), "."],
        "tar",
        remedy=f"free some space in {scratch}",
    )
    made = tools.buildah("from", "scratch", what="buildah from scratch").strip()
    try:
        tools.buildah("add", "--quiet", made, str(archive), "/", what="buildah add")
        tools.buildah("config", "--env", "LANG=C.UTF-8", made, what="buildah config")
        tools.buildah("commit", "--quiet", made, BASE, what=f"buildah commit {BASE}")
    finally:
        tools.buildah("rm", made, what="buildah rm")


def _builder() -> None:
    made = tools.buildah("from", "--isolation", "chroot", BASE, what=f"buildah from {BASE}").strip()
    inside = ("run", "--isolation", "chroot", made, "--")
    try:
        tools.buildah(*inside, "apt-get", "-qq", "update", what="apt-get update in the base")
        tools.buildah(
            *(*inside, "apt-get", "-qq", "install", "--yes", "--no-install-recommends"),
            "python3-venv",
            what="apt-get install python3-venv in the base",
            remedy="see whether `apt-get update` works on this machine",
        )
        tools.buildah("commit", "--quiet", made, BUILDER, what=f"buildah commit {BUILDER}")
    finally:
        tools.buildah("rm", made, what="buildah rm")
