"""The Docker that kind's nodes run in: the one that runs here already, or one of our own.

Our own lives as the rig's nodes do, in namespaces that the kernel ends with their first process:
its bridges, packet filter, mounts and containers are never seen outside, and can't be left behind.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from rig import cgroups, namespaces, network, pins
from rig.build import path_of
from rig.errors import RigError
from rig.namespaces import INSIDE
from rig.network import Network
from rig.processes import Processes

from kindrig import runtime

RUNS_WITHIN = 60.0
SOCKET = INSIDE / "docker.sock"
_MODULES = Path("/lib/modules")


@dataclass(frozen=True, slots=True)
class Docker:
    """How programs are started so that they talk to it. `enter` is empty for this machine's."""

    enter: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def own(self) -> bool:
        """Whether we started it."""
        return bool(self.enter)

    def run(
        self, *command: str, stdin: IO[bytes] | None = None, within: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program beside it; never raises for an exit code."""
        return subprocess.run(  # noqa: S603 (docker, kind, ip with our own arguments)
            [*self.enter, *command],
            stdin=stdin or subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=within,
            env={**os.environ, **self.environment},
        )

    def ask(self, *command: str, remedy: str = "see the message above") -> str:
        """Its output; raises a RigError with the end of its messages."""
        done = self.run(*command)
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip()[-2500:]
            raise RigError(f"`{' '.join(command[:4])}` failed:\n{said}", remedy)
        return done.stdout


def of_this_machine() -> Docker | None:
    """The Docker that answers here, if one does."""
    return Docker() if silence() is None else None


def silence() -> str | None:
    """Why no Docker answers here; None when one does."""
    if shutil.which("docker") is None:
        return "docker is not on PATH"
    try:
        answered = Docker().run("docker", "info", within=30).returncode == 0
    except subprocess.TimeoutExpired:
        return "no Docker answers within 30 s"
    return None if answered else "no Docker runs here"


def require_own() -> None:
    """Raise a RigError with what is missing to start one."""
    namespaces.require_root()
    network.require_tools()
    client = "docker-cli" if shutil.which("dockerd") else "docker.io"  # apart since Debian 13
    packages = {"dockerd": "docker.io", "docker": client, "iptables": "iptables"}
    absent = sorted({package for tool, package in packages.items() if shutil.which(tool) is None})
    if absent:
        raise RigError(
            f"no Docker runs here, and these packages are missing to start one: {absent}",
            f"run `apt-get install --no-install-recommends {' '.join(absent)}` as root",
        )


def start(folder: Path, cache: Path, held: Processes) -> tuple[Docker, Network]:
    """Start one whose data lies in `folder`, with a network that this machine reaches."""
    namespaces.require_visible(folder, cache)
    cgroup = cgroups.create(folder)
    pause = next(path_of(binary, cache) for binary in pins.NODE if binary.name == "pause")
    pid = namespaces.open_namespaces(held, pause)
    enter = namespaces.entering(pid)
    net = network.connect(pid, enter)
    _prepare(enter)
    held.enter = enter
    options = [f"--host=unix://{SOCKET}", f"--data-root={INSIDE}/docker"]
    options += [f"--cgroup-parent={cgroup}", "--oom-score-adjust=0", "--log-level=warn"]
    if names := runtime.withheld():
        runtime.write(folder / "node" / "runc", names)
        options += [f"--add-runtime=fewer={INSIDE}/runc", "--default-runtime=fewer"]
    held.launch("dockerd", ["dockerd", *options])
    docker = Docker(enter, {"DOCKER_HOST": f"unix://{SOCKET}"})
    _wait(docker, held)
    return docker, net


def _prepare(enter: Sequence[str]) -> None:
    # dockerd closes forwarding between its bridges and the rest when it is the one to open it.
    _step([*enter, "tee", "/proc/sys/net/ipv4/ip_forward"], "1\n")
    if not _MODULES.exists():
        # kind's nodes mount this folder, so Docker makes it: not on the machine, where it would
        # stay, but on a layer above that goes with the namespace.
        lower, upper, work = _MODULES.parent.resolve(), "/run/lib-upper", "/run/lib-work"
        _step([*enter, "mkdir", upper, work])
        layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
        _step([*enter, "mount", "-t", "overlay", "-o", layers, "overlay", str(lower)])


def _step(command: list[str], given: str = "") -> None:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)  # noqa: S603 (tee, mount)
    if done.returncode != 0:
        raise RigError(
            f"`{' '.join(command[-4:])}` failed: {done.stderr.strip()}",
            "the container around this needs CAP_SYS_ADMIN (--privileged)",
        )


def _wait(docker: Docker, held: Processes) -> None:
    deadline = time.monotonic() + RUNS_WITHIN
    while docker.run("docker", "version", within=30).returncode != 0:
        held.check("dockerd")
        if time.monotonic() > deadline:
            raise RigError(
                f"dockerd does not answer within {RUNS_WITHIN:.0f} s:\n"
                f"{held.last_words('dockerd')}",
                "the lines above are the end of its log",
            )
        time.sleep(0.2)
