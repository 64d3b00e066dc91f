"""The cgroup under which a node's pods run, in every hierarchy (version 1) or in the one (2)."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from rig.errors import RigError

GONE_WITHIN = 10.0
WEIGHTS = {"cpu.shares": 8 * 1024, "cpu.weight": 8 * 100}
"""A cluster's part of the CPU: that of 8 processes. As one of many, which is what a cgroup beside
processes is, its API server doesn't answer its own probes on a machine with 30 that compute."""


def name_of(state: Path) -> str:
    """The cgroup's name: told by the state folder alone, so that `down` needs no record."""
    return f"llmtaskpool-rig-{hashlib.sha256(str(state).encode()).hexdigest()[:12]}"


def hierarchies() -> list[Path]:
    """Where the kernel's cgroup hierarchies are mounted."""
    rows = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [Path(row[4]) for row in rows if row[row.index("-") + 1] in {"cgroup", "cgroup2"}]


def create(state: Path) -> str:
    """Make the cgroup everywhere; returns its path as kubelet's `cgroupRoot` wants it."""
    mounted = hierarchies()
    if not mounted:
        raise RigError(
            "no cgroup hierarchy is mounted",
            "mount one (`mount -t cgroup2 none /sys/fs/cgroup`), or run in a privileged container",
        )
    for root in mounted:
        try:
            made = root / name_of(state)
            made.mkdir(exist_ok=True)
            for name, weight in WEIGHTS.items():
                if (made / name).exists():  # the hierarchy of the CPU
                    (made / name).write_text(str(weight))
        except OSError as error:
            raise RigError(
                f"no cgroup can be made in {root}: {error.strerror}",
                "pods need a writable /sys/fs/cgroup: run as root, in a container with "
                "--privileged --cgroupns=private; `up --control-plane` works without",
            ) from error
    return f"/{name_of(state)}"


def remove(state: Path) -> int:
    """End what still runs in the cgroup and delete it; says in how many hierarchies it was."""
    found = [path for root in hierarchies() if (path := root / name_of(state)).exists()]
    deadline = time.monotonic() + GONE_WITHIN
    for top in found:
        while top.exists():
            _remove_once(top)
            if time.monotonic() > deadline:
                raise RigError(f"{top} can't be removed", f"see `find {top} -name cgroup.procs`")
            time.sleep(0.02 if top.exists() else 0)
    return len(found)


def _remove_once(top: Path) -> None:
    for folder, _, _ in os.walk(top, topdown=False):
        with suppress(OSError):  # busy while a process in it is ending: the caller comes again
            for pid in (Path(folder) / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
        with suppress(OSError):
            Path(folder).rmdir()
