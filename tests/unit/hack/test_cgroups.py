"""A cluster's cgroup, in hierarchies that are folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from rig import cgroups


def test_a_cluster_has_more_of_the_cpu_than_one_process_beside_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    roots = [tmp_path / name for name in ("cpu", "memory", "unified")]
    monkeypatch.setattr(cgroups, "hierarchies", lambda: roots)
    state = tmp_path / "state"
    folders = [root / cgroups.name_of(state) for root in roots]
    for folder in folders:
        folder.mkdir(parents=True)
    shares, weight = folders[0] / "cpu.shares", folders[2] / "cpu.weight"
    shares.write_text("1024")  # one process of nice 0, in version 1
    weight.write_text("100")  # the same in version 2
    cgroups.create(state)
    assert int(shares.read_text()) > 4 * 1024
    assert int(weight.read_text()) > 4 * 100
    assert list(folders[1].iterdir()) == []
