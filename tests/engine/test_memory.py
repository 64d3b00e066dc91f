"""The memory that a worker plans with is what its container may take, and not the host's."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from llmtaskpool_worker.engines import admission, decoder, slot_cache
from llmtaskpool_worker.engines.generation import load_generation
from llmtaskpool_worker.engines.memory import (
    UNKNOWN_BYTES,
    available_bytes,
    limit_bytes,
    measured_peak,
    own_bytes,
)
from llmtaskpool_worker.engines.memory_plan import Held, cache_budget, memory_budget
from llmtaskpool_worker.engines.protocol import Admit
from llmtaskpool_worker.engines.weights import ModelRefused

from .test_generation import run

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


def test_the_most_that_a_container_could_ever_have_is_its_tightest_limit(host: Host) -> None:
    host.write("proc/meminfo", f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable: 9 kB\n")
    host.v2("/pods/one")
    assert limit_bytes(host.root) == 16 * GIB
    host.group2("/pods", str(3 * GIB), 3 * GIB)
    host.group2("/pods/one", "max", 3 * GIB)
    assert limit_bytes(host.root) == 3 * GIB, "whatever of it is in use now"
    assert limit_bytes(host.root / "nowhere") is None


def test_what_is_held_for_a_moment_is_measured_and_what_stays_is_this_process_own() -> None:
    before = own_bytes()
    assert before is not None
    with measured_peak() as peak:
        with mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
            for place in range(0, 64 << 20, 4096):
                pages[place] = 1
            held = own_bytes()
        assert peak() >= 60 << 20
    assert held is not None
    assert held - before >= 60 << 20


def test_a_kernel_that_tells_nothing_of_a_process_is_no_error(tmp_path: Path) -> None:
    assert own_bytes(tmp_path) is None
    with measured_peak(tmp_path) as peak:
        assert peak() == 0


@pytest.mark.parametrize(
    ("options", "cache", "process"),
    [
        ({}, 4 * GIB, (2 + 4 + 0.5) * GIB + 100),
        ({"memory_share": 0.25}, GIB, (2 + 1 + 0.5) * GIB + 100),
        ({"memory_bytes": 5 * GIB}, 3 * GIB - 100, 5 * GIB),
        ({"memory_bytes": GIB}, -GIB - 100, GIB),
        ({"cache_bytes": 7, "memory_share": 0.25}, 7, 2.5 * GIB + 107),
    ],
)
def test_the_cache_gets_its_part_of_what_is_left(
    options: dict, cache: float, process: float
) -> None:
    held = Held(own=2 * GIB, free=8 * GIB, step=100)
    assert cache_budget(options, held) == cache
    assert memory_budget(options, held, max(0, int(cache))) == process


def test_on_a_gpu_the_cache_is_none_of_the_process_memory() -> None:
    held = Held(own=2 * GIB, free=8 * GIB, step=0, on_gpu=True)
    assert cache_budget({"memory_bytes": GIB}, held) == 4 * GIB
    assert memory_budget({}, held, 4 * GIB) == 2.5 * GIB


def test_weights_that_never_fit_are_refused_with_the_numbers_before_they_are_read(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "load_weights", lambda *_, **__: pytest.fail("it was read"))
    monkeypatch.setattr(admission, "limit_bytes", lambda: 200_000)
    with pytest.raises(ModelRefused, match=r"weights take 0\.4 MB in float32.* have 0\.2 MB: give"):
        load_generation(tiny("llama"), dtype="float32")
    monkeypatch.setattr(admission, "limit_bytes", lambda: GIB)
    with pytest.raises(ModelRefused, match=r"may have 0\.1 MB: give the container more memory"):
        load_generation(tiny("llama"), dtype="float32", options={"memory_bytes": 100_000})


def test_a_model_without_room_for_any_cache_is_refused_with_the_numbers(
    tiny: Callable[[str], Path],
) -> None:
    with pytest.raises(ModelRefused, match=r"the shortest takes .* MB, and 0\.0 MB are left"):
        load_generation(tiny("llama"), dtype="float32", options={"cache_bytes": 1000})


def test_a_prompt_that_memory_never_holds_is_refused_at_once_and_shorter_ones_are_answered(
    tiny: Callable[[str], Path],
) -> None:
    room = {"cache_bytes": 128 * 2 * 3 * 2 * 8 * 4}  # one granule of 3 layers' 2 heads of 8
    loop = load_generation(tiny("llama"), dtype="float32", threads=4, options=room)
    assert loop.ready().context_length == 128, "the model's own is 256"
    outcome = run(loop, [Admit(1, [5] * 130, 9), Admit(2, [5] * 120, 50, ignore_eos=True)])
    assert "the model's context is 128" in outcome.failures[1].message
    assert (len(outcome.tokens[2]), outcome.reasons[2]) == (8, "length")
    assert loop.cache.slots * loop.cache.length <= 128
