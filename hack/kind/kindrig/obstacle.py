"""What of a machine makes a Docker impossible, whatever is installed on it.

Only such a thing excuses tests that were meant for kind from running on it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from rig import cgroups
from rig.errors import RigError

from kindrig import docker as dockers

_NEEDED = {"CAP_SYS_CHROOT": 18, "CAP_SYS_ADMIN": 21, "CAP_NET_ADMIN": 12, "CAP_MKNOD": 27}
_STATUS = Path("/proc/self/status")


def of_this_machine() -> str | None:
    """The obstacle, or None. A missing package is none: it can be installed.

    Nor is another user than root: that is for whoever starts this to change.
    """
    if dockers.silence() is None:
        return None
    if os.geteuid() != 0:
        return None
    if lacking := lacking_capabilities(_STATUS.read_text()):
        return f"this machine keeps {', '.join(lacking)} back from root"
    probe = Path("/llmtaskpool-probe") / str(os.getpid())  # tells the cgroup's name, never made
    try:
        cgroups.create(probe)
    except RigError as error:
        return error.problem
    finally:
        cgroups.remove(probe)
    return _packet_filter()


def lacking_capabilities(status: str) -> list[str]:
    """What a Docker needs and a process does not have, by its /proc/PID/status."""
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    bits = int(effective.split()[1], 16)
    return [name for name, number in _NEEDED.items() if not bits >> number & 1]


def _packet_filter() -> str | None:
    """Docker writes rules of address translation, and ends where the kernel has none."""
    if shutil.which("iptables") is None or shutil.which("unshare") is None:
        return None  # said with its remedy when a Docker is started
    tried = ["unshare", "--net", "iptables", "--wait", "--table", "nat", "--list"]
    done = subprocess.run(tried, capture_output=True, text=True, check=False)  # noqa: S603 (iptables)
    if done.returncode == 0:
        return None
    return f"iptables has no table nat here: {done.stderr.strip()[-200:]}"
