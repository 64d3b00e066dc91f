"""The node's own namespaces: when their first process ends, the kernel ends everything in them.

Processes, mounts, the bridge and the packet filter's rules of a node all live in here, so nothing
of them can be left behind, however the node ends.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from rig import processes
from rig.errors import RigError
from rig.processes import Processes

INIT = "node-init"
INSIDE = Path("/run/node")
_HIDDEN = ("/run", "/var/log", "/var/lib")
_BORN_WITHIN = 5.0


def require_root() -> None:
    """Raise a RigError when this user can't make namespaces."""
    if os.geteuid() != 0:
        raise RigError(
            f"a whole node needs root, and this is user {os.geteuid()}",
            "run it as root, or `up --control-plane`, which needs none",
        )


def require_visible(*folders: Path) -> None:
    """Raise a RigError for a folder that the node covers with its own."""
    for folder in folders:
        for hidden in _HIDDEN:
            if folder.is_relative_to(hidden):
                raise RigError(
                    f"{folder} lies under {hidden}, which a node has for itself",
                    "choose another --state or LLMTASKPOOL_RIG_CACHE",
                )


def open_namespaces(held: Processes, pause: Path) -> int:
    """Start the first process and lay its mounts; returns its pid."""
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    held.launch(INIT, [*command, "--propagation", "private", "--", str(pause)])
    deadline = time.monotonic() + _BORN_WITHIN
    while (pid := first_process(held.state)) is None:
        held.check(INIT)
        if time.monotonic() > deadline:
            raise RigError(f"no namespaces within {_BORN_WITHIN:.0f} s", "see `dmesg`")
        time.sleep(0.02)
    _mount(held.state / "node", entering(pid))
    return pid


def entering(pid: int) -> tuple[str, ...]:
    """The command prefix that enters the namespaces of a node's first process."""
    return ("nsenter", "--target", str(pid), "--net", "--mount", "--pid", "--")


def first_process(state: Path) -> int | None:
    """The pid of a node's first process, or None when no node runs in `state`."""
    members = processes.members(state)
    return next((m.pid for m in members if m.role == INIT and _is_ready(m.pid)), None)


def _is_ready(pid: int) -> bool:
    """Whether it is the first of its PID namespace and past unshare's own mounts."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        program = Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return False
    ids = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
    return len(ids) > 1 and ids[-1] == "1" and program == "pause"


def _mount(folder: Path, enter: tuple[str, ...]) -> None:
    """Put the node's folder at /run/node, where paths of sockets stay short.

    Everything that kubelet and containerd write at fixed places goes to memory. Mounts are shared
    inside, since kubelet hands some of them to pods.
    """
    folder.mkdir(exist_ok=True)
    steps = [
        *(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", hidden] for hidden in _HIDDEN),
        ["mkdir", str(INSIDE)],
        ["mount", "--bind", str(folder), str(INSIDE)],
        ["mount", "--make-rshared", "/"],
    ]
    for step in steps:
        done = subprocess.run([*enter, *step], capture_output=True, text=True, check=False)  # noqa: S603 (mount)
        if done.returncode != 0:
            raise RigError(
                f"`{' '.join(step)}` failed in the node: {done.stderr.strip()}",
                "the container around this needs CAP_SYS_ADMIN (--privileged)",
            )
