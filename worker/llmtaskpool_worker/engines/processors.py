"""How many processors this process may use, and which are its own.

A container's limit (CFS quota) is in its cgroups, as of memory (memory.py); which processors it may
run on is its affinity. Kernel documentation: admin-guide/cgroup-v2 (cpu.max) and scheduler/
sched-bwc (cpu.cfs_quota_us, cpu.cfs_period_us).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import ceil
from pathlib import Path

from llmtaskpool_worker.engines.memory import cgroups_of


def processors(root: Path = Path("/"), allowed: int | None = None) -> int:
    """The processors that this process may keep busy: its affinity, and its cgroups' quotas."""
    count = len(os.sched_getaffinity(0)) if allowed is None else allowed
    for version, folder in cgroups_of(root, "cpu"):
        inside = root / folder.relative_to("/")
        quota = _quota2(inside) if version == 2 else _quota1(inside)
        if quota is not None:
            count = min(count, max(1, ceil(quota)))
    return max(1, count)


def own_processors(root: Path = Path("/"), allowed: Sequence[int] | None = None) -> list[int]:
    """Those that are this container's alone, as the kubelet's static CPU manager gives them.

    None of them where it may run on all of the machine's: others do too, and whoever pinned
    themselves to the first ones would all sit there.
    """
    mine = sorted(os.sched_getaffinity(0)) if allowed is None else list(allowed)
    online = _listed(_text(root / "sys/devices/system/cpu/online"))
    return mine if len(mine) < online else []


def part(count: int, number: int, of: int) -> tuple[int, int]:
    """From where to where one of ``of`` equal parts of ``count`` goes; each has at least one."""
    if count < of:
        return number % count, number % count + 1
    return count * number // of, count * (number + 1) // of


def _quota2(folder: Path) -> float | None:
    quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
    return _share(quota, period)


def _quota1(folder: Path) -> float | None:
    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    return _share(*(_text(folder / name).strip() for name in names))


def _share(quota: str, period: str) -> float | None:
    """Processors; None for no limit, which is ``max`` or -1."""
    if not quota.isdecimal() or not period.isdecimal() or not int(period):
        return None
    return int(quota) / int(period)


def _listed(text: str) -> int:
    """How many the kernel's list names, such as 0-3,8."""
    count = 0
    for one in text.strip().split(","):
        first, _, last = one.partition("-")
        if first.isdecimal():
            count += int(last or first) - int(first) + 1
    return count


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
