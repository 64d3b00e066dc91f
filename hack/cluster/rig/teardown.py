"""Removing every trace of a cluster, whatever state its `up` left it in."""

from __future__ import annotations

from pathlib import Path

from rig import cgroups, network, processes, state


def take_down(folder: Path) -> list[str]:
    """End a cluster's processes and delete its network, cgroups and folder; says what there was.

    Works from what exists rather than from what was recorded, so it can be run again at any time.
    """
    folder = folder.expanduser().resolve()
    removed = []
    if found := processes.members(folder):
        processes.end(folder)
        removed.append(f"{len(found)} processes")
    if (count := cgroups.remove(folder)) > 0:
        removed.append(f"the cgroup in {count} hierarchies")
    record = state.read(folder)
    if record is not None and record.slot is not None:
        network.wait_gone(record.slot)
        removed.append(f"the network {network.Network(record.slot).whole}")
    if record is not None:
        state.discard(folder)
        removed.append(str(folder))
    return removed
