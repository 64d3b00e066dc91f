"""Several engines in one worker, and other workers on its machine, share processors and memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from llmtaskpool_worker.assembly import sharing
from llmtaskpool_worker.assembly.sharing import cores, shared_out
from llmtaskpool_worker.engines.processors import own_processors, processors
from llmtaskpool_worker.engines.protocol import ModelSpec

V2 = "30 23 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n"
V1 = "31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        ({}, 8),
        ({"pods/one": "max 100000"}, 8),
        ({"pods/one": "250000 100000"}, 3),
        ({"pods": "150000 50000", "pods/one": "900000 100000"}, 3),
        ({"pods/one": "20000 100000"}, 1),
        ({"pods/one": "odd"}, 8),
        ({"pods/one": "100000 0"}, 8),
    ],
)
def test_a_containers_limit_is_how_many_it_may_keep_busy(
    tmp_path: Path, quotas: dict[str, str], expected: int
) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/pods/one\n")
    write(tmp_path, "proc/self/mountinfo", V2)
    for folder, text in quotas.items():
        write(tmp_path, f"sys/fs/cgroup/{folder}/cpu.max", f"{text}\n")
    assert processors(tmp_path, allowed=8) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("150000", 2)])
def test_version_one_has_its_limit_in_two_files(tmp_path: Path, quota: str, expected: int) -> None:
    write(tmp_path, "proc/self/cgroup", "3:cpu,cpuacct:/one\n4:memory:/other\n")
    write(tmp_path, "proc/self/mountinfo", V1)
    write(tmp_path, "sys/fs/cgroup/cpu/one/cpu.cfs_quota_us", quota)
    write(tmp_path, "sys/fs/cgroup/cpu/one/cpu.cfs_period_us", "100000\n")
    assert processors(tmp_path, allowed=8) == expected


def test_the_environment_bounds_it_and_nonsense_there_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sharing, "processors", lambda: 6)
    for told, expected in (("4", 4), ("64", 6), ("0", 1), ("many", 6), ("", 6)):
        monkeypatch.setenv("OMP_NUM_THREADS", told)
        assert cores() == expected


@pytest.mark.parametrize(
    ("online", "allowed", "own"),
    [("0-7", range(8), []), ("0-7", [2, 3], [2, 3]), ("0-3,8", [1, 8], [1, 8]), ("", [0], [])],
)
def test_only_processors_that_no_other_container_has_are_its_own(
    tmp_path: Path, online: str, allowed: Sequence[int], own: list[int]
) -> None:
    write(tmp_path, "sys/devices/system/cpu/online", f"{online}\n")
    assert own_processors(tmp_path, allowed) == own


def models(*names: str) -> list[ModelSpec]:
    return [ModelSpec(name, "pypi:any") for name in names]


def test_engines_never_have_more_threads_than_there_are_processors() -> None:
    for count in (1, 2, 3, 5, 8):
        for engines in (1, 2, 3, 8):
            shared = shared_out(models(*map(str, range(engines))), count, list(range(count)))
            threads = [spec.options["most_threads"] for spec in shared]
            assert sum(threads) == max(count, engines)
            assert min(threads) == max(1, count // engines)
            taken = [one for spec in shared for one in spec.options["processors"]]
            assert set(taken) == set(range(count))
            if engines <= count:
                assert len(taken) == count, "nobody has another's"


def test_one_engine_has_all_and_servers_of_others_have_no_part() -> None:
    alone, server = shared_out(
        [*models("one"), ModelSpec("far", "openai:http://127.0.0.1:1/v1#m")], 4, []
    )
    assert alone.options == {"most_threads": 4}
    assert server.options == {}
    first, second = shared_out(models("a", "b"), 5, [])
    assert [s.options["most_threads"] for s in (first, second)] == [2, 3]
    assert first.options["memory_share"] == second.options["memory_share"] == 0.5


def test_what_a_model_says_itself_stays() -> None:
    chosen = ModelSpec("a", "pypi:any", options={"torch_threads": 3, "memory_share": 0.9})
    shared, _ = shared_out([chosen, *models("b")], 2, [0, 1])
    assert shared.options["torch_threads"] == 3
    assert shared.options["memory_share"] == 0.9
    assert "processors" not in shared.options


_CHILD = """
import os, threading
from llmtaskpool_worker.engines.child import keep_to, set_up_torch
keep_to([PROCESSOR]); keep_to([10_000])
set_up_torch({"most_threads": 1})
import torch
torch.randn(64, 64) @ torch.randn(64, 64)
found = [None]
one = threading.Thread(target=lambda: found.append(os.sched_getaffinity(0)))
one.start(); one.join()
print(torch.get_num_threads(), os.sched_getaffinity(0) == found[1] == {PROCESSOR})
"""


def test_an_engine_keeps_to_its_processors_with_all_its_threads() -> None:
    last = max(os.sched_getaffinity(0))
    said = subprocess.run(
        [sys.executable, "-c", _CHILD.replace("PROCESSOR", str(last))],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert said.stdout.split() == ["1", "True"]
