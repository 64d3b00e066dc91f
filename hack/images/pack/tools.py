"""buildah and debootstrap, and where images are kept."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pack.errors import PackError

ROOT = Path(__file__).parents[3]
_PACKAGES = {
    "buildah": "buildah",
    "skopeo": "skopeo",
    "debootstrap": "debootstrap",
    "chroot": "coreutils",
}


def cache_folder() -> Path:
    """`$LLMTASKPOOL_IMAGES_CACHE`, else `~/.cache/llmtaskpool/images`."""
    named = os.environ.get("LLMTASKPOOL_IMAGES_CACHE")
    return Path(named).resolve() if named else Path.home() / ".cache" / "llmtaskpool" / "images"


def require(*tools: str) -> None:
    """Raise a PackError with the command that installs what is missing."""
    absent = [_PACKAGES[tool] for tool in tools if shutil.which(tool) is None]
    if absent:
        raise PackError(
            f"not on PATH: {', '.join(absent)}",
            f"run `apt-get install --no-install-recommends {' '.join(absent)}` as root "
            "(Debian or Ubuntu)",
        )
    if os.geteuid() != 0:
        raise PackError(
            "images are built as root (chroot and overlay mounts)",
            "run this with sudo, or use `docker build --target operator .`",
        )


def run(command: Sequence[str], what: str, *, remedy: str, log: Path | None = None) -> str:
    """Run a command at the lowest priority; its standard output. Raises PackError."""
    done = subprocess.run(  # noqa: S603 (our own command lines)
        ["nice", "-n", "19", *command],  # noqa: S607 (coreutils)
        capture_output=True,
        text=True,
        check=False,
    )
    if log is not None:
        log.write_text(done.stdout + done.stderr)
    if done.returncode != 0:
        where = f" (all of it: {log})" if log else ""
        raise PackError(f"{what} failed{where}:\n{done.stderr.strip()[-2000:]}", remedy)
    return done.stdout


def buildah(*arguments: str, what: str, remedy: str = "see the message above") -> str:
    """Run buildah over a storage of our own: what else is built on this machine stays untouched."""
    return run([*_buildah(), *arguments], what, remedy=remedy)


def storage() -> tuple[Path, Path]:
    """The folders of that storage: images, and what lives as long as a build."""
    folder = cache_folder() / "storage"
    return folder / "root", folder / "run"


def _buildah() -> list[str]:
    root, run_root = storage()
    return ["buildah", "--storage-driver=overlay", f"--root={root}", f"--runroot={run_root}"]


@contextmanager
def alone(say: Callable[[str], None]) -> Iterator[None]:
    """Hold the cache: two builds at once wait for each other, and the second finds all done."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build is running: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def image_id(name: str) -> str | None:
    """The image's id, or None when there is none of this name."""
    done = subprocess.run(  # noqa: S603 (buildah, with our own arguments)
        [*_buildah(), "images", "--quiet", "--no-trunc", name],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None if done.returncode == 0 else None


def forget(repository: str, *, keep: str) -> None:
    """Delete the repository's images but ``keep``, and layers that no image uses any more."""
    listed = buildah("images", "--format", "{{.Name}}:{{.Tag}}", what="buildah images")
    old = [n for n in listed.split() if n.startswith(f"{repository}:") and n != keep]
    if old:
        buildah("rmi", *old, what=f"buildah rmi {' '.join(old)}")
    buildah("rmi", "--prune", "--force", what="buildah rmi --prune")
