"""A kind cluster: brought up, given images, taken down without a trace."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import yaml
from rig import network, pins, state, teardown
from rig.build import BUILD_COMMAND, cache_folder, path_of, require
from rig.errors import RigError
from rig.network import Network
from rig.processes import Processes

from kindrig import docker as dockers
from kindrig import node_image
from kindrig.docker import Docker

LAYOUT = Path(__file__).parents[3] / "tests" / "e2e" / "kind.yaml"
READY_WITHIN = 180
BUILD_KIND = f"{BUILD_COMMAND} --only kind"
_RECORD = "kind.json"
_CNI = "/etc/cni/net.d/10-bridge.conflist"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that is up. Pods' and Services' addresses answer from this machine too."""

    name: str
    kubeconfig: str
    node_image: str
    own_docker: bool


def kind_program(cache: Path) -> Path | None:
    """kind from PATH, else the one built from pinned sources; None when there is neither."""
    built = path_of(pins.KIND_BINARY, cache)
    if on_path := shutil.which("kind"):
        return Path(on_path)
    return built if built.exists() else None


def why_not() -> str | None:
    """Why kind can't be used in a Docker that runs here already; None when it can."""
    if silence := dockers.silence():
        return silence
    if kind_program(cache_folder()) is None:
        return f"kind is neither on PATH nor built (`{BUILD_KIND}`)"
    return None


def needs_own_image() -> bool:
    """Whether a node image has to be made here for certain: no Docker that could pull one."""
    return dockers.of_this_machine() is None


@contextlib.contextmanager
def cluster(folder: Path, say: Callable[[str], None]) -> Iterator[Cluster]:
    """A cluster for as long as the block lasts; it also ends with the thread that made it."""
    made = up(folder, say, die_with_parent=True)
    try:
        yield made
    finally:
        down(folder)


def up(folder: Path, say: Callable[[str], None], *, die_with_parent: bool = False) -> Cluster:
    """Bring a cluster up; raises RigError, and then leaves nothing."""
    cache = cache_folder()
    docker = dockers.of_this_machine()
    if docker is None:
        dockers.require_own()
        require(node_image.BINARIES, cache, node_image.BUILD)
    if kind_program(cache) is None:
        raise RigError("kind is neither on PATH nor built", f"run `{BUILD_KIND}`")
    folder = state.claim(folder, "kind")
    held = Processes(folder, die_with_parent=die_with_parent)
    try:
        return _up(folder, cache, docker, held, say)
    except BaseException as error:
        _take_back(folder, error)
        raise


def _take_back(folder: Path, error: BaseException) -> None:
    try:
        down(folder)
    except RigError as second:
        raise RigError(
            f"{error}\nand what was there of the cluster could not be removed: {second.problem}",
            f"run `down --state {folder}`",
        ) from error


def _up(
    folder: Path, cache: Path, docker: Docker | None, held: Processes, say: Callable[[str], None]
) -> Cluster:
    if docker is None:
        say("no Docker runs here: starting one for this cluster alone")
        docker, net = dockers.start(folder, cache, held)
    else:
        net = _free_network()
    state.write(folder, state.Record("kind", slot=net.slot if docker.own else None))
    name = _name(folder)
    image = _image(docker, cache, say)
    kubeconfig = folder / "kubeconfig"
    made = Cluster(name, str(kubeconfig), image, docker.own)
    (folder / _RECORD).write_text(json.dumps(asdict(made) | {"enter": docker.enter}))
    config = folder / "kind.yaml"
    config.write_text(yaml.safe_dump(_config(folder, docker, net, image)))
    say(f"kind create cluster, {image}")
    docker.ask(
        *(str(kind_program(cache)), "create", "cluster", "--name", name, "--image", image),
        *("--kubeconfig", str(kubeconfig), "--config", str(config)),
        *("--wait", f"{READY_WITHIN}s"),
        remedy="the lines above are kind's",
    )
    if os.geteuid() == 0:
        address = _node_address(docker, name)
        for target in (net.services, net.pods):
            docker.ask("ip", "route", "replace", target, "via", address)
    else:
        say("not root: pods and Services are not reached from this machine, only the API server")
    return made


def _free_network() -> Network:
    network.require_tools()
    for found in network.free():
        return found
    raise RigError("no addresses are free for a cluster", "take one down, or see `ip route`")


def _name(folder: Path) -> str:
    return f"llmtaskpool-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"


def _image(docker: Docker, cache: Path, say: Callable[[str], None]) -> str:
    """kind's published node image where it can be pulled, else ours."""
    if not docker.own:
        published = _published(cache)
        if docker.run("docker", "image", "inspect", published).returncode == 0:
            return published
        say(f"docker pull {published}")
        if docker.run("docker", "pull", "--quiet", published).returncode == 0:
            return published
        say("no registry is reached: a node image made here")
    image = node_image.name()
    if docker.run("docker", "image", "inspect", image).returncode != 0:
        archive = node_image.prepare(cache, say)
        changes = [part for change in node_image.CHANGES for part in ("--change", change)]
        say(f"docker import {image}")
        docker.ask("docker", "import", *changes, str(archive), image)
    return image


def _published(cache: Path) -> str:
    """The node image that kind's source names as its default."""
    sources = node_image.kind_sources(cache)
    text = (sources / "pkg/apis/config/defaults/image.go").read_text()
    found = re.search(r'Image = "(\S+)"', text)
    if found is None:
        raise RigError(f"kind {pins.KIND.version} names no default image", "name one in kind.yaml")
    return found.group(1)


def _config(folder: Path, docker: Docker, net: Network, image: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(LAYOUT.read_text())
    networking = config.setdefault("networking", {})
    networking |= {"podSubnet": net.pods, "serviceSubnet": net.services}
    if docker.own:
        networking["apiServerAddress"] = net.node  # its loopback is not ours
    if image == node_image.name():
        # It has no pods but those of kubeadm: the network is a bridge, and there is no DNS.
        (folder / "cni.conflist").write_text(json.dumps(_bridge(net)))
        networking["disableDefaultCNI"] = True
        mount = {"hostPath": str(folder / "cni.conflist"), "containerPath": _CNI, "readOnly": True}
        for node in config["nodes"]:
            node.setdefault("extraMounts", []).append(mount)
        phases = {"kind": "InitConfiguration", "skipPhases": ["preflight", "addon/coredns"]}
        config.setdefault("kubeadmConfigPatches", []).append(yaml.safe_dump(phases))
    return config


def _bridge(net: Network) -> dict[str, Any]:
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": net.pods, "gateway": net.pods_gateway}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True}
    plugins = [
        bridge | {"ipam": addresses},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    return {"cniVersion": "1.0.0", "name": "kind", "plugins": plugins}


def _node_address(docker: Docker, name: str) -> str:
    shown = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    return docker.ask("docker", "inspect", "--format", shown, f"{name}-control-plane").strip()


def load(folder: Path, source: IO[bytes], label: str) -> None:
    """Give the node the images of an archive that is read from a file or pipe."""
    folder = folder.expanduser().resolve()
    made, docker = _recorded(folder)
    program = str(kind_program(cache_folder()))
    done = docker.run(
        *(program, "load", "image-archive", "/dev/stdin", "--name", made.name), stdin=source
    )
    if done.returncode != 0:
        raise RigError(
            f"{label} could not be loaded:\n{done.stderr.strip()[-2000:]}", "see kind's lines above"
        )


def _recorded(folder: Path) -> tuple[Cluster, Docker]:
    try:
        found = json.loads((folder / _RECORD).read_text())
    except FileNotFoundError:
        raise RigError(f"no kind cluster is up in {folder}", f"run `up --state {folder}`") from None
    enter = tuple(found.pop("enter"))
    environment = {"DOCKER_HOST": f"unix://{dockers.SOCKET}"} if enter else {}
    return Cluster(**found), Docker(enter, environment)


def down(folder: Path) -> list[str]:
    """End a cluster and remove every trace of it; can be run again, and after a crash."""
    folder = folder.expanduser().resolve()
    removed = []
    with _undisturbed():
        if (folder / _RECORD).exists():
            made, docker = _recorded(folder)
            if not docker.own:  # with our own Docker all of it goes with the namespaces
                removed += _deleted(made, docker)
        return removed + teardown.take_down(folder)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Within, Ctrl-C does nothing: the second one of somebody in a hurry would leave a half."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's alone
        return
    ignored = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _deleted(made: Cluster, docker: Docker) -> list[str]:
    program = str(kind_program(cache_folder()))
    with contextlib.suppress(RigError):
        via = _node_address(docker, made.name)
        subprocess.run(["ip", "route", "flush", "via", via], check=False, capture_output=True)  # noqa: S603, S607 (ip)
    docker.ask(
        *(program, "delete", "cluster", "--name", made.name, "--kubeconfig", made.kubeconfig),
        remedy="start Docker again and take it down once more: its record is kept",
    )
    return [f"kind's cluster {made.name}"]
