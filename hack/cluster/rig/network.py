"""The node's network: one veth pair into its own network namespace, and routes from this machine.

Nothing else is touched here: the bridge of the pods and every rule of kube-proxy live inside the
namespace and vanish with it, and so does the pair.
"""

from __future__ import annotations

import ipaddress
import json
import random
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rig.errors import RigError

_RANGE = ipaddress.IPv4Network("10.213.0.0/16")
_SLOTS = 16
GONE_WITHIN = 10.0


@dataclass(frozen=True, slots=True)
class Network:
    """The addresses of one node: a /20 of its own, so that 16 nodes can live side by side."""

    slot: int

    @property
    def _base(self) -> ipaddress.IPv4Address:
        return _RANGE.network_address + self.slot * 4096

    @property
    def whole(self) -> ipaddress.IPv4Network:
        """Everything this node may use."""
        return ipaddress.IPv4Network(f"{self._base}/20")

    @property
    def pods(self) -> str:
        """The range of the pods' addresses."""
        return f"{self._base}/22"

    @property
    def pods_gateway(self) -> str:
        """The bridge's address."""
        return str(self._base + 1)

    @property
    def services(self) -> str:
        """The range of ClusterIPs."""
        return f"{self._base + 2048}/24"

    @property
    def service_address(self) -> str:
        """The ClusterIP of the API server."""
        return str(self._base + 2049)

    @property
    def outside(self) -> str:
        """This machine's end of the pair."""
        return str(self._base + 3073)

    @property
    def node(self) -> str:
        """The node's end, on which the API server listens."""
        return str(self._base + 3074)

    @property
    def link(self) -> str:
        """The name of this machine's end."""
        return f"ltprig{self.slot}"


def _ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 (ip, with our own arguments)
        ["ip", *arguments],  # noqa: S607 (checked in require_tools)
        capture_output=True,
        text=True,
        check=False,
    )


def require_tools() -> None:
    """Raise a RigError when iproute2 or util-linux's namespace tools are missing."""
    for tool, package in (("ip", "iproute2"), ("unshare", "util-linux"), ("nsenter", "util-linux")):
        if shutil.which(tool) is None:
            raise RigError(f"{tool} is not here", f"run `apt-get install {package}` as root")


def connect(process: int, enter: Sequence[str]) -> Network:
    """Give the namespace of `process` the first free slot's addresses and routes.

    The kernel refuses a second link of the same name, so two nodes that start at once can't get
    the same slot.
    """
    for network in free():
        made = _ip(
            "link", "add", network.link, "type", "veth", "peer", "eth0", "netns", str(process)
        )
        if made.returncode == 0:
            _configure(network, enter)
            return network
        if "File exists" not in made.stderr:
            raise RigError(
                f"no veth pair could be made: {made.stderr.strip()}",
                "the kernel needs veth, and the container around this needs CAP_NET_ADMIN",
            )
    raise RigError(
        f"every part of {_RANGE} is routed already",
        "take clusters down that are not needed, or see `ip route`",
    )


def free() -> list[Network]:
    """The slots of which nothing is routed now, in any order."""
    taken = _routes()
    slots = random.Random().sample(range(_SLOTS), _SLOTS)  # noqa: S311 (no secret)
    networks = [Network(slot) for slot in slots]
    return [n for n in networks if not any(n.whole.overlaps(route) for route in taken)]


def _routes() -> list[ipaddress.IPv4Network]:
    shown = _ip("-j", "-4", "route", "show", "table", "all")
    targets = [route["dst"] for route in json.loads(shown.stdout or "[]")]
    return [ipaddress.IPv4Network(target) for target in targets if target != "default"]


def _configure(network: Network, enter: Sequence[str]) -> None:
    here = [
        ("addr", "add", f"{network.outside}/30", "dev", network.link),
        ("link", "set", network.link, "up"),
        ("route", "add", network.pods, "via", network.node),
        ("route", "add", network.services, "via", network.node),
    ]
    inside = [
        ("link", "set", "lo", "up"),
        ("addr", "add", f"{network.node}/30", "dev", "eth0"),
        ("link", "set", "eth0", "up"),
        ("route", "add", "default", "via", network.outside),
    ]
    commands = [["ip", *step] for step in here] + [[*enter, "ip", *step] for step in inside]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (ip)
        if done.returncode != 0:
            raise RigError(
                f"`{' '.join(command)}` failed: {done.stderr.strip()}", "see `ip addr; ip route`"
            )


def wait_gone(slot: int) -> None:
    """Wait until the kernel has taken the pair away with the namespace."""
    link = Network(slot).link
    deadline = time.monotonic() + GONE_WITHIN
    while _ip("link", "show", link).returncode == 0:
        if time.monotonic() > deadline:
            raise RigError(f"the link {link} is still there", f"run `ip link delete {link}`")
        time.sleep(0.05)
