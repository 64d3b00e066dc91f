"""The images of kubeadm's static pods and of kube-proxy: a program each, and nothing else.

kubeadm names images and tags; they are made here under those names, so nothing is pulled.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from rig import images, pins
from rig.build import path_of
from rig.errors import RigError
from rig.images import Scratch

_PATH = "/usr/local/bin"


def write(cache: Path, target: Path) -> str:
    """Write them all as one docker archive; returns the name of the sandbox's image."""
    names = {_last(name): name for name in _named_by_kubeadm(cache)}
    made = []
    for program in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd"):
        files = {f"{_PATH}/{program}": _program(program, cache)}
        made.append(Scratch(names[program], files, (program,)))
    # It writes rules through `nft`, which comes with its libraries.
    files = {f"{_PATH}/kube-proxy": _program("kube-proxy", cache)} | _nft()
    made.append(Scratch(names["kube-proxy"], files, ("kube-proxy",)))
    made.append(Scratch(names["pause"], {"/pause": _program("pause", cache)}, ("/pause",), "65535"))
    images.write_archive(made, target)
    return names["pause"]


def _last(name: str) -> str:
    """registry.k8s.io/coredns/coredns:v1 -> coredns."""
    return name.rsplit("/", 1)[-1].split(":")[0]


def _named_by_kubeadm(cache: Path) -> list[str]:
    version = pins.KUBERNETES.version
    done = subprocess.run(  # noqa: S603 (kubeadm, built from pinned sources)
        [_program("kubeadm", cache), "config", "images", "list", "--kubernetes-version", version],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RigError(f"kubeadm names no images: {done.stderr.strip()[-300:]}", "build it again")
    return done.stdout.split()


def _program(name: str, cache: Path) -> Path:
    known = (*pins.ALL, *pins.OPTIONAL)
    return next(path_of(binary, cache) for binary in known if binary.name == name)


def _nft() -> dict[str, Path]:
    """This machine's `nft` with every library that it loads, by their paths."""
    nft = shutil.which("nft")
    if nft is None:
        raise RigError("nft is not here", "run `apt-get install nftables` as root")
    listed = subprocess.run(["ldd", nft], capture_output=True, text=True, check=False)  # noqa: S603, S607 (libc's)
    found = re.findall(r"(/\S+) \(0x", listed.stdout)
    if listed.returncode != 0 or not found:
        raise RigError(f"ldd {nft} shows no libraries", "install the distribution's nftables")
    return {"/usr/sbin/nft": Path(nft)} | {path: Path(path) for path in found}
