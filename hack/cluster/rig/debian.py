"""The CNI plugins and libseccomp from Debian's packages.

Packages are downloaded by apt (which checks their signatures) and unpacked into the cache, never
installed: that needs no root, starts no service and leaves the system as it was.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from rig.errors import RigError

CNI = "containernetworking-plugins"
SECCOMP = "libseccomp-dev"


def unpacked(package: str, cache: Path) -> Path:
    """The folder a Debian package was unpacked to; it is downloaded at the first call."""
    folder = cache / "debian" / package
    if not folder.exists():
        _download(package, folder)
    return folder


def _download(package: str, folder: Path) -> None:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise RigError(
                f"{tool} is not here, so {package} can't be taken from Debian's packages",
                "use Debian or Ubuntu, or put the CNI plugins in /opt/cni/bin",
            )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        done = _apt_get("download", package, folder=Path(scratch))
        if done.returncode != 0 and os.geteuid() == 0:  # perhaps only its lists are missing or old
            _apt_get("update")
            done = _apt_get("download", package, folder=Path(scratch))
        archives = sorted(Path(scratch).glob("*.deb"))
        if done.returncode != 0 or not archives:
            raise RigError(
                f"apt-get download {package} failed: {done.stderr.strip()[-300:]}",
                "run `apt-get update` as root once, then try again",
            )
        tree = Path(scratch) / "tree"
        subprocess.run(["dpkg-deb", "-x", str(archives[0]), str(tree)], check=True)  # noqa: S603, S607 (found on PATH above)
        tree.rename(folder)


def _apt_get(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 (apt-get with our own arguments)
        ["apt-get", *arguments],  # noqa: S607 (found on PATH by the caller)
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def require_nft() -> None:
    """Have `nft` on PATH, which kube-proxy calls: as root it is installed, else a RigError."""
    if shutil.which("nft"):
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        _apt_get("update")
        _apt_get("install", "--yes", "--no-install-recommends", "nftables")
    if shutil.which("nft") is None:
        raise RigError("nft is not here", "run `apt-get install nftables` as root")


def cni_plugins(cache: Path) -> Path:
    """The folder of CNI plugins: /opt/cni/bin when it has `bridge`, else Debian's."""
    local = Path("/opt/cni/bin")
    return local if (local / "bridge").exists() else unpacked(CNI, cache) / "usr/lib/cni"


def seccomp_flags(cache: Path) -> dict[str, str]:
    """Environment that lets cgo find libseccomp's header and static library without pkg-config."""
    tree = unpacked(SECCOMP, cache)
    library = next(tree.glob("usr/lib/*/libseccomp.a")).parent
    return {
        "CGO_CFLAGS": f"-O2 -I{tree / 'usr/include'}",
        "CGO_LDFLAGS": f"-L{library} -lseccomp",
        "PKG_CONFIG": shutil.which("true") or "/bin/true",
    }
