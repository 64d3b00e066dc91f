"""A whole node: control plane, containerd, kubelet and kube-proxy in their own namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from rig import cgroups, commands, debian, images, namespaces, network, node_config, pins, state
from rig import teardown as ending
from rig.build import cache_folder, path_of, require
from rig.commands import Addresses
from rig.control_plane import ControlPlane, Options
from rig.errors import RigError
from rig.network import Network
from rig.processes import Processes

NAME = "rig"
READY_WITHIN = 90.0
_API_PORT, _ETCD_PORT, _ETCD_PEER_PORT = 6443, 2379, 2380  # the node's loopback is its own


def program(name: str, cache: Path) -> Path:
    """The path of one of the rig's programs by its name."""
    return next(path_of(binary, cache) for binary in pins.ALL if binary.name == name)


@dataclass(frozen=True, slots=True)
class Node:
    """A running node. Pods' and services' addresses answer from this machine too."""

    plane: ControlPlane
    network: Network
    kubectl: Path

    def load_image(self, archive: Path) -> list[str]:
        """Give the node the images of a docker or OCI archive."""
        return load_image(self.plane.state_dir, archive)

    def stop(self) -> None:
        """End everything and delete the state folder."""
        self.plane.processes.end()
        ending.take_down(self.plane.state_dir)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.stop()


def load_image(folder: Path, archive: Path) -> list[str]:
    """Give the node in `folder` the images of a docker or OCI archive."""
    return images.load(archive, program("ctr", cache_folder()), _entering(folder))


def load_image_from(folder: Path, source: IO[bytes], label: str) -> list[str]:
    """The same from an open file or pipe; blobs that `known_blobs` names may be left out."""
    return images.load_from(source, label, program("ctr", cache_folder()), _entering(folder))


def known_blobs(folder: Path) -> frozenset[str]:
    """Digests of the blobs that the node in `folder` has."""
    return images.blobs(program("ctr", cache_folder()), _entering(folder))


def _entering(folder: Path) -> tuple[str, ...]:
    pid = namespaces.first_process(folder)
    if pid is None:
        raise RigError(f"no node runs in {folder}", f"run `up --state {folder}` first")
    return namespaces.entering(pid)


def node(state_dir: Path, *, audit: bool = False, die_with_parent: bool = True) -> Node:
    """Bring up a whole node; as root. Raises RigError, and then leaves nothing."""
    namespaces.require_root()
    cache = cache_folder()
    require((*pins.CONTROL_PLANE, *pins.NODE), cache)
    network.require_tools()
    debian.require_nft()
    namespaces.require_visible(state_dir.absolute(), cache)
    folder = state.claim(state_dir, "node")
    held = Processes(folder, die_with_parent=die_with_parent)
    try:
        return _brought_up(folder, cache, held, Options(scheduler=True, audit=audit))
    except BaseException:
        held.end()
        ending.take_down(folder)
        raise


def _brought_up(folder: Path, cache: Path, held: Processes, options: Options) -> Node:
    cgroup = cgroups.create(folder)
    pid = namespaces.open_namespaces(held, program("pause", cache))
    enter = namespaces.entering(pid)
    net = network.connect(pid, enter)
    addresses = Addresses(
        net.node, _API_PORT, _ETCD_PORT, _ETCD_PEER_PORT, net.services, net.service_address
    )
    held.enter = enter
    plane = ControlPlane(
        folder, addresses, held, commands.built_programs(cache, scheduler=True), options
    )
    state.write(folder, state.Record("node", plane.server, net.slot))
    _start_containerd(folder, cache, held)
    plane.bring_up()
    files = node_config.write(folder, NAME, net, plane, cgroup)
    for role in ("kubelet", "kube-proxy"):
        held.launch(role, [str(program(role, cache)), *files.flags[role]])
    made = Node(plane, net, program("kubectl", cache))
    _wait_ready(made, held)
    return made


def _start_containerd(folder: Path, cache: Path, held: Processes) -> None:
    config = node_config.write_containerd(
        folder, program("runc", cache), debian.cni_plugins(cache), images.SANDBOX
    )
    # It finds its shim on PATH.
    path = f"{program('containerd', cache).parent}{os.pathsep}{os.environ['PATH']}"
    command = [str(program("containerd", cache)), "--config", str(config)]
    held.launch("containerd", command, {"PATH": path})
    socket = folder / "node" / images.SOCKET.name
    deadline = time.monotonic() + READY_WITHIN
    while not socket.exists():
        held.check("containerd")
        if time.monotonic() > deadline:
            raise RigError(
                f"containerd has no socket:\n{held.last_words('containerd')}", "see its log above"
            )
        time.sleep(0.05)
    archive = images.sandbox_archive(program("pause", cache), folder / "node" / "pause.tar")
    images.load(archive, program("ctr", cache), held.enter)


def _wait_ready(made: Node, held: Processes) -> None:
    ask = [str(made.kubectl), "--kubeconfig", str(made.plane.kubeconfig), "get", "node", NAME]
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline:
        for role in ("containerd", "kubelet", "kube-proxy"):
            held.check(role)
        got = subprocess.run([*ask, "-o", "json"], capture_output=True, text=True, check=False)  # noqa: S603 (kubectl)
        conditions = json.loads(got.stdout or "{}").get("status", {}).get("conditions", [])
        if any(c["type"] == "Ready" and c["status"] == "True" for c in conditions):
            return
        time.sleep(0.2)
    raise RigError(
        f"the node is not Ready within {READY_WITHIN:.0f} s:\n{held.last_words('kubelet')}",
        "the lines above are the end of kubelet's log",
    )
