"""How much memory this process can still have: the host's, and what its cgroups leave of it.

A container's limit is nowhere in /proc/meminfo. Each cgroup on the way up to the root may have one,
so the least of all of them counts. Kernel documentation: admin-guide/cgroup-v2 (memory.max,
memory.high, memory.current, memory.stat) and cgroup-v1/memory (memory.limit_in_bytes and its
siblings). File pages that nobody used lately (inactive_file) are given back before anybody is
killed, so they count as free; the kubelet reckons the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

UNKNOWN_BYTES = 1 << 31
"""Assumed where nothing tells."""


@dataclass(frozen=True, slots=True)
class _Files:
    """Names of one cgroup version's files; ``inactive`` is a line of ``stat``."""

    limits: tuple[str, ...]
    used: str
    stat: str
    inactive: str


_V2 = _Files(("memory.max", "memory.high"), "memory.current", "memory.stat", "inactive_file")
_V1 = _Files(
    ("memory.limit_in_bytes",), "memory.usage_in_bytes", "memory.stat", "total_inactive_file"
)


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes that this process may still take. ``root`` holds proc and sys."""
    found = [_host(_text(root / "proc/meminfo"))]
    cgroups = _text(root / "proc/self/cgroup")
    mounts = _text(root / "proc/self/mountinfo")
    for files, folder in memory_cgroups(cgroups, mounts):
        inside = root / folder.relative_to("/")
        names = (*files.limits, files.used, files.stat)
        found.append(room(files, {name: _text(inside / name) for name in names}))
    told = [bytes_ for bytes_ in found if bytes_ is not None]
    return max(0, min(told)) if told else UNKNOWN_BYTES


def limit_bytes(root: Path = Path("/")) -> int | None:
    """The most that this process could ever have, of containers' limits and the host's memory."""
    total = re.search(r"^MemTotal:\s+(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE)
    found = [int(total[1]) * 1024] if total else []
    cgroups = _text(root / "proc/self/cgroup")
    for files, folder in memory_cgroups(cgroups, _text(root / "proc/self/mountinfo")):
        texts = (_text(root / folder.relative_to("/") / name) for name in files.limits)
        found += [n for text in texts if (n := _number(text)) is not None]
    return min(found, default=None)


def own_bytes(root: Path = Path("/")) -> int | None:
    """What this process holds that is no copy of a file: the kernel can't take it back."""
    return _field(_text(root / "proc/self/status"), "RssAnon") or None


@contextmanager
def measured_peak(root: Path = Path("/")) -> Iterator[Callable[[], int]]:
    """By how much this process held more than at the beginning, at most, until it is asked.

    0 where the kernel does not tell. clear_refs lets it begin anew with the highest (proc(5)).
    Pages of files that came meanwhile (of a library that was called for the first time) are none
    of it: the kernel takes them back when it likes.
    """
    status = root / "proc/self/status"
    with suppress(OSError):
        (root / "proc/self/clear_refs").write_text("5")
    began = _text(status)
    before, files = _field(began, "VmRSS"), _field(began, "RssFile")

    def peak() -> int:
        ended = _text(status)
        highest, came = _field(ended, "VmHWM"), _field(ended, "RssFile") - files
        return max(0, highest - before - max(0, came)) if before and highest else 0

    yield peak


def _field(status: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def room(files: _Files, texts: Mapping[str, str]) -> int | None:
    """What one cgroup leaves, in bytes; None where it sets no limit or doesn't tell its use."""
    limits = [n for name in files.limits if (n := _number(texts.get(name, ""))) is not None]
    used = _number(texts.get(files.used, ""))
    if not limits or used is None:
        return None
    inactive = re.search(rf"^{files.inactive} (\d+)$", texts.get(files.stat, ""), re.MULTILINE)
    return min(limits) - max(0, used - (int(inactive[1]) if inactive else 0))


def memory_cgroups(cgroups: str, mounts: str) -> list[tuple[_Files, PurePosixPath]]:
    """The folders of this process's memory cgroup and of all those above it."""
    found = cgroup_folders(cgroups, mounts, "memory")
    return [(_V2 if version == 2 else _V1, folder) for version, folder in found]


def cgroups_of(root: Path, controller: str) -> list[tuple[int, PurePosixPath]]:
    """As ``cgroup_folders``, of this process. ``root`` holds proc and sys."""
    mounts = _text(root / "proc/self/mountinfo")
    return cgroup_folders(_text(root / "proc/self/cgroup"), mounts, controller)


def cgroup_folders(cgroups: str, mounts: str, controller: str) -> list[tuple[int, PurePosixPath]]:
    """Version (1 or 2) and folder of this process's cgroup and of all those above it.

    ``cgroups`` is /proc/self/cgroup, ``mounts`` /proc/self/mountinfo. A cgroup that lies outside
    of what is mounted (another namespace's) is looked for at the mount itself, where a container
    sees its own.
    """
    found = []
    for line in cgroups.splitlines():
        _number_of_tree, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        version, kind = (1, "cgroup") if controllers else (2, "cgroup2")
        for mount_root, mount in _mounts(mounts, kind, controller):
            inside = PurePosixPath(path)
            if inside.is_relative_to(mount_root) and ".." not in inside.parts:
                folder = mount / inside.relative_to(mount_root)
            else:
                folder = mount
            found += [(version, f) for f in (folder, *folder.parents) if f.is_relative_to(mount)]
    return found


def _mounts(mounts: str, kind: str, controller: str) -> list[tuple[PurePosixPath, PurePosixPath]]:
    """(root within the file system, mount point) of each mount that can tell of a controller."""
    found = []
    for line in mounts.splitlines():
        before, dash, after = line.partition(" - ")
        fields, system = before.split(), after.split()
        if not dash or len(fields) < 5 or len(system) < 3 or system[0] != kind:
            continue
        if kind == "cgroup" and controller not in system[2].split(","):
            continue
        found.append((PurePosixPath(fields[3]), PurePosixPath(fields[4])))
    return found


def _host(meminfo: str) -> int | None:
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _number(text: str) -> int | None:
    """``max`` is no limit; version 1 writes a number near 2^63 for it, which hurts nobody."""
    return int(text) if text.strip().isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
