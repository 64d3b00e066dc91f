"""Building the pinned binaries once, and finding them afterwards."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rig import debian, toolchain
from rig.errors import RigError
from rig.pins import Binary

BUILD_COMMAND = "uv run --no-sync python hack/cluster build"


def cache_folder() -> Path:
    """`$LLMTASKPOOL_RIG_CACHE`, else `~/.cache/llmtaskpool/rig`."""
    named = os.environ.get("LLMTASKPOOL_RIG_CACHE")
    return Path(named).resolve() if named else Path.home() / ".cache" / "llmtaskpool" / "rig"


def path_of(binary: Binary, cache: Path) -> Path:
    """Where a built binary lies, or will lie."""
    return cache / "bin" / binary.module.key / binary.name


def missing(binaries: Iterable[Binary], cache: Path) -> list[Binary]:
    """Those that are not built yet, in order."""
    return [binary for binary in binaries if not path_of(binary, cache).exists()]


def require(binaries: Iterable[Binary], cache: Path, command: str = BUILD_COMMAND) -> None:
    """Raise a RigError that names what is not built and the command that builds it."""
    absent = missing(binaries, cache)
    if absent:
        names = ", ".join(binary.name for binary in absent)
        raise RigError(f"not built yet: {names}", f"run `{command}`")


def build(binaries: Iterable[Binary], cache: Path, say: Callable[[str], None]) -> None:
    """Build what is missing, one binary at a time, saying a line about each.

    Two builds at once wait for each other, so the second finds everything done.
    """
    wanted = list(binaries)
    if not missing(wanted, cache):
        return
    go = toolchain.find_go(cache)
    with _only_one(cache, say):
        absent = missing(wanted, cache)
        for number, binary in enumerate(absent, start=1):
            label = f"[{number}/{len(absent)}] {binary.name} {binary.module.version}"
            say(f"{label}: building")
            began = time.monotonic()
            _build_one(binary, go, cache)
            size = path_of(binary, cache).stat().st_size / 1e6
            say(f"{label}: {time.monotonic() - began:.1f} s, {size:.0f} MB")


def fetch_packages(cache: Path) -> None:
    """Get what a node needs of Debian, so that `up` needs no network."""
    debian.cni_plugins(cache)
    debian.require_nft()


@contextmanager
def _only_one(cache: Path, say: Callable[[str], None]) -> Iterator[None]:
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "build.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build is running: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build_one(binary: Binary, go: Path, cache: Path) -> None:
    target = path_of(binary, cache)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    module = binary.module
    arguments = ["-trimpath", "-ldflags", module.ldflags, "-o", str(unfinished)]
    arguments += ["-tags", module.tags] if module.tags else []
    # The lowest priority: a build of minutes must not be felt by whoever works meanwhile.
    done = subprocess.run(  # noqa: S603 (go, with our own arguments)
        ["nice", "-n", "19", str(go), "build", *arguments, binary.package],  # noqa: S607 (coreutils)
        cwd=module.folder,
        env=_environment(binary, go, cache),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        unfinished.unlink(missing_ok=True)
        raise RigError(
            f"go build {binary.package} failed:\n{done.stderr.strip()[-2000:]}",
            "a 'missing go.sum entry' or 'not found' means the module proxy is out of reach; "
            "'no space left' needs about 8 GB for Go's build cache",
        )
    unfinished.rename(target)


def _environment(binary: Binary, go: Path, cache: Path) -> dict[str, str]:
    env = os.environ | {
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "GOFLAGS": "-mod=readonly -buildvcs=false",
    }
    env["PATH"] = f"{go.parent}{os.pathsep}{env.get('PATH', '')}"
    if not binary.module.cgo:
        return env | {"CGO_ENABLED": "0"}
    if shutil.which("gcc") is None:
        raise RigError(
            f"gcc is not here, and {binary.name} needs a C compiler",
            "run `apt-get install gcc libc6-dev` as root",
        )
    return env | {"CGO_ENABLED": "1"} | debian.seccomp_flags(cache)
