"""What depth.lua tells of the line, as our types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from llmtaskpool_worker.brokers.protocol import Depth, LaneDepth
from llmtaskpool_worker.brokers.redis.books import group_of
from llmtaskpool_worker.scheduling.task import LaneName

_HEAD = 11


def depth_of(values: Sequence[Any], now: float, at: Callable[[float], float]) -> Depth:
    """``at`` makes a time of ours of the server's. Groups of future versions are left out."""
    _, dead, aside, running, blocked, delayed, due, bound, *held, billed = values[:_HEAD]
    lanes = {lane: LaneDepth() for lane in LaneName}
    groups: dict[str, LaneDepth] = {}
    for place in range(_HEAD, len(values), 4):
        name, waiting, since, work = values[place : place + 4]
        known = group_of(name.decode())
        if known is None:
            continue
        here = LaneDepth(waiting, max(0.0, work / 1e6), at(since) if since else None)
        lane, group = known
        lanes[lane] = _added(lanes[lane], here)
        groups[group] = _added(groups.get(group), here)
    for lane, count in zip((LaneName.COMPUTE, LaneName.IO), held, strict=True):
        lanes[lane] = replace(lanes[lane], waiting=count)  # what is aside waits as well
    return Depth(
        as_of=now,
        lanes=lanes,
        groups=groups,
        running=running,
        bound=bound,
        blocked=blocked,
        delayed=delayed,
        next_due_at=at(due) if due else None,
        dead=dead,
        quarantined=aside,
        shared=True,
        tenants=_by_tenant(billed),
    )


def _by_tenant(flat: Sequence[bytes]) -> dict[str, tuple[int, int]]:
    found: dict[str, list[int]] = {}
    for name, count in zip(flat[::2], flat[1::2], strict=True):
        sort, _, tenant = name.decode().partition(" ")
        found.setdefault(tenant, [0, 0])[sort == "r"] = int(count)
    return {tenant: (waits, runs) for tenant, (waits, runs) in found.items()}


def _added(one: LaneDepth | None, other: LaneDepth) -> LaneDepth:
    if one is None:
        return other
    sinces = [d.oldest_at for d in (one, other) if d.oldest_at is not None]
    return replace(
        one,
        waiting=one.waiting + other.waiting,
        work_seconds=one.work_seconds + other.work_seconds,
        oldest_at=min(sinces, default=None),
    )
