"""kind's node image, made here: Debian with systemd, the rig's binaries, kind's own files.

A file that `docker import` takes. It is keyed by everything that goes into it, and made once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from rig import debian, pins, toolchain
from rig.build import build, fetch_packages, path_of, require
from rig.errors import RigError

from kindrig import control_images

BUILD = "uv run --no-sync python hack/kind image"
BINARIES = (*pins.CONTROL_PLANE, *pins.NODE, *pins.OPTIONAL)
REPOSITORY = "localhost/llmtaskpool-kind-node"
CHANGES = (
    "ENV container=docker",
    'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]',
)
"""How it is started, and how systemd is told that it is in a container."""

_SUITE = "bookworm"
_MIRROR = "http://deb.debian.org/debian"
_PACKAGES = ("systemd", "systemd-sysv", "iptables", "iproute2", "mount", "procps")
_PLACES = {
    "usr/bin": ("kubelet", "kubeadm", "kubectl"),
    "usr/local/bin": ("containerd", "containerd-shim-runc-v2", "ctr"),
    "usr/local/sbin": ("runc",),
}
_UNREAD = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt")
_PLUGINS = ("bridge", "host-local", "loopback", "portmap")
_UNITS = ("containerd.service", "kubelet.service", "undo-mount-hacks.service", "images.service")
_LOADER = """\
[Unit]
Description=The control plane's images
Requires=containerd.service
After=containerd.service
Before=kubelet.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/bin/ctr --namespace k8s.io images import /kind/images.tar

[Install]
WantedBy=multi-user.target
"""
# systemd may not lower a score where the machine keeps CAP_SYS_RESOURCE back.
_NO_SCORE = "[Service]\nOOMScoreAdjust=0\n"


def key() -> str:
    """Changes with every program, package and line that goes into the image."""
    parts = sorted({binary.module.key for binary in BINARIES}) + [_SUITE, *_PACKAGES]
    total = hashlib.sha256(json.dumps(parts).encode())
    for source in (Path(__file__), Path(control_images.__file__)):
        total.update(source.read_bytes())
    return total.hexdigest()[:12]


def name() -> str:
    """The image's name in Docker."""
    return f"{REPOSITORY}:{key()}"


def file_of(cache: Path) -> Path:
    """Where the image lies, or will lie."""
    return cache / "kind" / f"node-{key()}.tar"


def prepare(cache: Path, say: Callable[[str], None]) -> Path:
    """Build what goes in and make the image; what is there already is not made again."""
    build(BINARIES, cache, say)
    fetch_packages(cache)
    return make(cache, say)


def make(cache: Path, say: Callable[[str], None]) -> Path:
    """Make the image unless it is there; as root. Returns its file."""
    target = file_of(cache)
    if target.exists():
        return target
    require(BINARIES, cache, BUILD)
    _require_tools()
    target.parent.mkdir(parents=True, exist_ok=True)
    packages = _packages(cache, say)
    say(f"{name()}: kind's files, the control plane's images")
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        root = Path(scratch) / "root"
        root.mkdir()
        _run("tar", "-C", str(root), "-xf", str(packages))
        _add_kind(root, kind_sources(cache))
        _add_programs(root, cache)
        sandbox = control_images.write(cache, root / "kind" / "images.tar")
        _configure(root, sandbox, cache)
        made = Path(scratch) / "node.tar"
        _run("tar", "--numeric-owner", "-C", str(root), "-cf", str(made), ".")
        for old in target.parent.glob("node-*.tar"):
            old.unlink()
        made.rename(target)
    return target


def kind_sources(cache: Path) -> Path:
    """The folder of kind's module, from Go's module cache: the base image's files are in it."""
    go = toolchain.find_go(cache)
    done = subprocess.run(  # noqa: S603 (go, with our own arguments)
        [str(go), "mod", "download", "-json", f"{pins.KIND.requirement}@{pins.KIND.version}"],
        cwd=pins.KIND.folder,
        env=os.environ | {"GOTOOLCHAIN": "local", "GOWORK": "off"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RigError(
            f"kind's sources are not to be had: {(done.stdout + done.stderr).strip()[-300:]}",
            "see whether the Go module proxy is reached",
        )
    return Path(json.loads(done.stdout)["Dir"])


def _require_tools() -> None:
    for tool in ("debootstrap", "tar", "chroot"):
        if shutil.which(tool) is None:
            raise RigError(f"{tool} is not here", f"run `apt-get install {tool}` as root")
    if os.geteuid() != 0:
        raise RigError("a node image is made as root (debootstrap, chroot)", "run it with sudo")


def _packages(cache: Path, say: Callable[[str], None]) -> Path:
    """Debian with the packages of a node, as a tar file: made once for all of kind's versions."""
    digest = hashlib.sha256(json.dumps([_SUITE, *_PACKAGES, *_UNREAD]).encode()).hexdigest()[:12]
    target = cache / "kind" / f"packages-{digest}.tar"
    if target.exists():
        return target
    say(f"debootstrap {_SUITE} with systemd: about 2 minutes")
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        root = Path(scratch) / "root"
        mirror = os.environ.get("LLMTASKPOOL_DEBIAN_MIRROR", _MIRROR)
        _run(
            *("debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}"),
            *(_SUITE, str(root), mirror),
            remedy="it needs a Debian mirror: set LLMTASKPOOL_DEBIAN_MIRROR to one that is reached",
        )
        for unread in _UNREAD:
            for entry in (root / unread).iterdir():
                folder = entry.is_dir() and not entry.is_symlink()
                shutil.rmtree(entry) if folder else entry.unlink()
        made = Path(scratch) / "packages.tar"
        _run("tar", "--numeric-owner", "-C", str(root), "-cf", str(made), ".")
        made.rename(target)
    return target


def _run(*command: str, remedy: str = "see the message above, and free space") -> None:
    done = subprocess.run(  # noqa: S603 (our own command lines)
        ["nice", "-n", "19", *command],  # noqa: S607 (coreutils)
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stdout[-1000:] + done.stderr[-1000:]).strip()
        raise RigError(f"{command[0]} failed:\n{said}", remedy)


def _add_kind(root: Path, sources: Path) -> None:
    """kind's entrypoint, units and configuration, as its own base image has them."""
    files = sources / "images" / "base" / "files"
    for path in sorted(files.rglob("*")):
        if path.is_file():
            inside = path.relative_to(files)
            target = root / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            target.chmod(0o755 if "bin" in inside.parts else 0o644)


def _add_programs(root: Path, cache: Path) -> None:
    built = {binary.name: path_of(binary, cache) for binary in BINARIES}
    plugins = debian.cni_plugins(cache)
    wanted = [(folder, built[name]) for folder, names in _PLACES.items() for name in names]
    wanted += [("opt/cni/bin", plugins / name) for name in _PLUGINS]
    for folder, source in wanted:
        (root / folder).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, root / folder / source.name)
        (root / folder / source.name).chmod(0o755)


def _configure(root: Path, sandbox: str, cache: Path) -> None:
    (root / "kind" / "version").write_text(pins.KUBERNETES.version)
    for folder in ("etc/kubernetes/manifests", "etc/cni/net.d", "kind/manifests"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    config = root / "etc/containerd/config.toml"
    config.write_text(containerd_config(config.read_text(), sandbox))
    (root / "etc/containerd/cri-base.json").write_text(json.dumps(_runtime_spec(cache)))
    units = root / "etc/systemd/system"
    (units / "images.service").write_text(_LOADER)
    (units / "containerd.service.d").mkdir()
    (units / "containerd.service.d" / "score.conf").write_text(_NO_SCORE)
    _only_these_units(root, _UNITS)
    with (root / "etc/systemd/journald.conf").open("a") as journal:
        journal.write("ReadKMsg=no\n")  # the machine's log is not the node's


def containerd_config(text: str, sandbox: str) -> str:
    """kind's own, for a machine that lowers no scores, and with a sandbox that is there."""
    text = _replaced(text, "restrict_oom_score_adj = false", "restrict_oom_score_adj = true")
    return _replaced(text, '"registry.k8s.io/pause:3.10"', f'"{sandbox}"')


def _replaced(text: str, old: str, new: str) -> str:
    if old not in text:
        raise RigError(
            f"kind {pins.KIND.version}'s containerd configuration has no `{old}`",
            "look at images/base/files in its module, and adapt hack/kind/kindrig/node_image.py",
        )
    return text.replace(old, new)


def _runtime_spec(cache: Path) -> dict[str, object]:
    """What containers start from: containerd's defaults without limits of processes and files."""
    ctr = next(path_of(binary, cache) for binary in pins.NODE if binary.name == "ctr")
    done = subprocess.run([str(ctr), "oci", "spec"], capture_output=True, text=True, check=True)  # noqa: S603 (ctr)
    spec: dict[str, object] = json.loads(done.stdout)
    process = spec["process"]
    if isinstance(process, dict):
        process.pop("rlimits", None)
    return spec


def _only_these_units(root: Path, units: Iterable[str]) -> None:
    """What a machine starts (consoles, logins, devices, timers) a node must not."""
    pulled = [
        *(root / "etc/systemd/system").glob("*.wants/*"),
        *(root / "lib/systemd/system").glob("multi-user.target.wants/*"),
        *(root / "lib/systemd/system").glob("local-fs.target.wants/*"),
        *(root / "lib/systemd/system").glob("basic.target.wants/*"),
        *(root / "lib/systemd/system").glob("sockets.target.wants/*udev*"),
        *(root / "lib/systemd/system").glob("sockets.target.wants/*initctl*"),
        *(root / "lib/systemd/system").glob("sysinit.target.wants/systemd-tmpfiles-setup.service"),
    ]
    for link in pulled:
        link.unlink()
    _run("chroot", str(root), "systemctl", "enable", *units)
    # It registers programs with the kernel, which all containers share.
    _run("chroot", str(root), "systemctl", "mask", "systemd-binfmt.service")
    _run("chroot", str(root), "systemctl", "set-default", "multi-user.target")
