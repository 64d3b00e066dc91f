"""Removing every trace of a cluster, whatever state its `up` left it in."""

from __future__ import annotations

from pathlib import Path

from rig import processes, state


def take_down(folder: Path) -> list[str]:
    """End a cluster's processes and delete its network, cgroups and folder; says what there was.

    Works from what exists rather than from what was recorded, so it can be run again at any time.
    """
    folder = folder.expanduser().resolve()
    removed = []
    if found := processes.members(folder):
        processes.end(folder)
        removed.append(f"{len(found)} processes")
    record = state.read(folder)
    if record is not None:
        state.discard(folder)
        removed.append(str(folder))
    return removed
