"""The memory that a worker plans with is what its container may take, and not the host's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from llmtaskpool_worker.engines import slot_cache
from llmtaskpool_worker.engines.memory import UNKNOWN_BYTES, available_bytes

GIB = 1 << 30
V2_MOUNT = "30 23 0:26 {root} /sys/fs/cgroup ro,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "31 23 0:27 {root} /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
    "32 23 0:28 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


class Host:
    """A fake root with 64 GiB free on the host."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/meminfo", f"MemTotal: 1 kB\nMemAvailable:   {64 * GIB // 1024} kB\n")

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def v2(self, path: str, *, mount_root: str = "/") -> None:
        self.write("proc/self/cgroup", f"0::{path}\n")
        self.write("proc/self/mountinfo", V2_MOUNT.format(root=mount_root))

    def v1(self, path: str, *, mount_root: str = "/") -> None:
        self.write("proc/self/cgroup", f"9:cpu,cpuacct:/other\n8:memory:{path}\n1:name=systemd:/\n")
        self.write("proc/self/mountinfo", V1_MOUNTS.format(root=mount_root))

    def group2(self, path: str, limit: str, used: int, inactive: int = 0) -> None:
        folder = f"sys/fs/cgroup{path}".rstrip("/")
        self.write(f"{folder}/memory.max", f"{limit}\n")
        self.write(f"{folder}/memory.current", f"{used}\n")
        self.write(f"{folder}/memory.stat", f"anon 5\ninactive_file {inactive}\nfile 9\n")

    def group1(self, path: str, limit: int, used: int, inactive: int = 0) -> None:
        folder = f"sys/fs/cgroup/memory{path}".rstrip("/")
        self.write(f"{folder}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{folder}/memory.usage_in_bytes", f"{used}\n")
        stat = f"cache 9\ninactive_file 1\ntotal_inactive_file {inactive}\n"
        self.write(f"{folder}/memory.stat", stat)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_limit_below_the_hosts_memory_is_what_counts(host: Host) -> None:
    host.v2("/")
    host.group2("/", str(2 * GIB), GIB)
    assert available_bytes(host.root) == GIB


def test_files_that_nobody_used_lately_count_as_free(host: Host) -> None:
    host.v2("/")
    host.group2("/", str(2 * GIB), GIB, inactive=GIB // 2)
    assert available_bytes(host.root) == 3 * GIB // 2


def test_the_host_counts_where_it_has_less_than_the_limit_leaves(host: Host) -> None:
    host.v2("/")
    host.group2("/", str(128 * GIB), GIB)
    assert available_bytes(host.root) == 64 * GIB


def test_no_limit_leaves_the_hosts_memory(host: Host) -> None:
    host.v2("/")
    host.group2("/", "max", GIB)
    assert available_bytes(host.root) == 64 * GIB


def test_where_the_kernel_begins_to_throttle_is_a_limit_too(host: Host) -> None:
    host.v2("/")
    host.group2("/", str(4 * GIB), GIB)
    host.write("sys/fs/cgroup/memory.high", f"{3 * GIB}\n")
    assert available_bytes(host.root) == 2 * GIB


@pytest.mark.parametrize("level", ["", "/pods", "/pods/one", "/pods/one/worker"])
def test_the_tightest_group_on_the_way_up_counts(host: Host, level: str) -> None:
    host.v2("/pods/one/worker")
    for path in ("/pods", "/pods/one", "/pods/one/worker"):
        host.group2(path, "max", GIB)
    host.group2(level, str(3 * GIB), GIB)
    assert available_bytes(host.root) == 2 * GIB


def test_a_container_that_sees_its_own_group_at_the_mount_reads_it_there(host: Host) -> None:
    host.v2("/kubepods/pod7/abc", mount_root="/kubepods/pod7/abc")
    host.group2("", str(2 * GIB), GIB)
    assert available_bytes(host.root) == GIB
    host.v2("/../../elsewhere")
    assert available_bytes(host.root) == GIB


def test_version_one_is_read_with_its_own_names(host: Host) -> None:
    host.v1("/docker/abc")
    host.group1("", (1 << 63) - 4096, 9 * GIB)
    host.group1("/docker", 8 * GIB, 4 * GIB)
    host.group1("/docker/abc", 2 * GIB, GIB, inactive=GIB // 4)
    assert available_bytes(host.root) == 5 * GIB // 4


def test_version_one_inside_of_a_container(host: Host) -> None:
    host.v1("/docker/abc", mount_root="/docker/abc")
    host.group1("", 2 * GIB, GIB)
    assert available_bytes(host.root) == GIB


def test_a_group_that_is_over_its_limit_leaves_nothing(host: Host) -> None:
    host.v2("/")
    host.group2("/", str(GIB), 2 * GIB)
    assert available_bytes(host.root) == 0


def test_files_that_make_no_sense_or_are_missing_are_as_if_there_were_no_limit(host: Host) -> None:
    host.write("proc/self/cgroup", "odd\n\n0::\n7:memory\n")
    host.write("proc/self/mountinfo", "what - is\n" + V2_MOUNT.format(root="/"))
    host.write("sys/fs/cgroup/memory.max", "a lot\n")
    assert available_bytes(host.root) == 64 * GIB


def test_where_nothing_tells_something_modest_is_assumed(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) == UNKNOWN_BYTES


def test_this_machine_tells() -> None:
    assert available_bytes() > 0


def test_the_slot_cache_is_planned_within_the_containers_limit(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.v2("/")
    host.group2("/", str(2 * GIB), GIB)
    monkeypatch.setattr(slot_cache, "available_bytes", lambda: available_bytes(host.root))
    assert slot_cache.free_memory(torch.device("cpu")) == GIB
