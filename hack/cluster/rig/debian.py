"""etcd, the CNI plugins and libseccomp from Debian's packages.

Packages are downloaded by apt (which checks their signatures) and unpacked into the cache, never
installed: that needs no root, starts no service and leaves the system as it was.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from rig.errors import RigError

ETCD = "etcd-server"
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
                "use Debian or Ubuntu, or put etcd and the CNI plugins on PATH and in /opt/cni/bin",
            )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        done = subprocess.run(  # noqa: S603 (apt-get with a package name of ours)
            ["apt-get", "download", package],  # noqa: S607 (found on PATH above)
            cwd=scratch,
            capture_output=True,
            text=True,
            check=False,
        )
        archives = sorted(Path(scratch).glob("*.deb"))
        if done.returncode != 0 or not archives:
            raise RigError(
                f"apt-get download {package} failed: {done.stderr.strip()[-300:]}",
                "run `apt-get update` as root once, then try again",
            )
        tree = Path(scratch) / "tree"
        subprocess.run(["dpkg-deb", "-x", str(archives[0]), str(tree)], check=True)  # noqa: S603, S607 (as above)
        tree.rename(folder)


def etcd(cache: Path) -> Path:
    """The etcd program: the one on PATH, else Debian's."""
    on_path = shutil.which("etcd")
    return Path(on_path) if on_path else unpacked(ETCD, cache) / "usr/bin/etcd"


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
