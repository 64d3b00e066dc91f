"""Building the two images with buildah.

What is built is keyed: the dependencies' layer by what the lock file says of them, the image by
that and by the sources.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pack import foundation, tools
from pack.errors import PackError
from pack.tools import ROOT

_SOURCES = ("Dockerfile", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md")
_EXTRAS = {"operator": ("operator",), "worker": ("worker", "gguf")}  # as in the Dockerfile
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


class Target(StrEnum):
    """The Dockerfile's targets."""

    OPERATOR = "operator"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Image:
    """A built image: its name, the digest of what it is made of, its id in buildah's storage."""

    name: str
    key: str
    id: str


def name_of(target: Target) -> str:
    """The name that the chart's development values and the tests use."""
    return f"localhost/llmtaskpool-{target.value}:dev"


def build(target: Target, say: Callable[[str], None], *, models: bool = False) -> Image:
    """Build a target, or find it built from the same sources. ``models``: with real weights.

    To be called while ``tools.alone`` holds.
    """
    tools.require("buildah", "skopeo")
    foundation.make(say)
    arguments = _arguments(target, models=models)
    key = _digest(repr(sorted(arguments.items())).encode())
    repository = f"localhost/llmtaskpool-{target.value}"
    keyed = f"{repository}:{key}"
    if tools.image_id(keyed) is None:
        say(f"{keyed}: building")
        _build(target, arguments | {"REVISION": _revision()}, keyed)
        tools.forget(repository, keep=keyed)
    tools.buildah("tag", keyed, name_of(target), what=f"buildah tag {name_of(target)}")
    found = tools.image_id(keyed)
    if found is None:
        raise PackError(f"{keyed} was built and is not there", "look at `buildah images`")
    return Image(name_of(target), key, found)


def _build(target: Target, arguments: dict[str, str], name: str) -> None:
    tools.buildah("rm", "--all", what="buildah rm --all")  # of builds that were killed
    command = ["bud", "--layers", "--isolation", "chroot", "--format", "docker", "--pull-never"]
    # One time for all files: the same lock file and sources give the same layers, bit by bit.
    command += ["--timestamp", "1", "--target", target.value, "--tag", name]
    if _CERTIFICATES.exists():  # the host may trust more than Debian does: a proxy, a mirror
        command += ["--volume", f"{_CERTIFICATES.parent}:{_CERTIFICATES.parent}:ro"]
    for key, value in arguments.items():
        command += ["--build-arg", f"{key}={value}"]
    tools.buildah(*command, str(ROOT), what=f"the build of {name}")


def _arguments(target: Target, *, models: bool) -> dict[str, str]:
    """Build arguments; they are all that an image depends on, but for its revision label."""
    groups = ["models"] if models and target is Target.WORKER else []
    found = {
        "BASE": foundation.BASE,
        "BUILDER": foundation.BUILDER,
        "LOCK": _digest(_locked(_EXTRAS[target], groups)),
        "SOURCES": _digest(*(path.read_bytes() for path in _source_files())),
        "VERSION": str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]),
    }
    if groups:
        found["PACKAGES"] = " ".join(f"--group {group}" for group in groups)
    if _CERTIFICATES.exists():
        found |= {"SSL_CERT_FILE": str(_CERTIFICATES), "PIP_CERT": str(_CERTIFICATES)}
    indexes = {
        "PIP_INDEX_URL": os.environ.get("PIP_INDEX_URL"),
        "UV_DEFAULT_INDEX": os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("PIP_INDEX_URL"),
    }
    return found | {name: url for name, url in indexes.items() if url}


def _locked(extras: Iterable[str], groups: Iterable[str]) -> bytes:
    """What the lock file says of these pieces: a change of any other leaves the layer as it is."""
    uv = os.environ.get("UV") or shutil.which("uv") or str(ROOT / ".tools" / "bin" / "uv")
    command = [uv, "export", "--quiet", "--project", str(ROOT), "--frozen", "--no-header"]
    command += ["--no-annotate", "--no-default-groups", "--no-emit-project"]
    command += [part for extra in extras for part in ("--extra", extra)]
    command += [part for group in groups for part in ("--group", group)]
    remedy = "run `make install`: it needs uv on PATH or in .tools, and a current uv.lock"
    return tools.run(command, "uv export", remedy=remedy).encode()


def _source_files() -> Iterable[Path]:
    yield from (ROOT / name for name in _SOURCES)
    for folder in ("client", "operator", "worker"):
        files = (path for path in (ROOT / folder).rglob("*") if path.is_file())
        yield from sorted(path for path in files if "__pycache__" not in path.parts)


def _digest(*parts: bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()[:12]


def _revision() -> str:
    done = subprocess.run(  # noqa: S603 (git, with our own arguments)
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"],  # noqa: S607 (found on PATH)
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"
