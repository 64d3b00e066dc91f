"""The first of each line of the pool, as this worker last saw them: nobody asks the server for it.

What is here comes with answers that come anyway: of a claim, of the sweep each second, and of what
this worker has accepted itself. So it may be some time behind, and whoever acts on it asks the
server then (``promise.lua``, or a claim of what is above the own).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from llmtaskpool_worker.brokers.protocol import Head, Line, Submission, Wanted
from llmtaskpool_worker.brokers.redis.books import group_key, group_keys, line_key, line_of
from llmtaskpool_worker.scheduling.priority import priority
from llmtaskpool_worker.scheduling.task import LaneName

_First = tuple[str, float]
"""An id and its weight."""


class Heads:
    """By group and line. Nothing is kept of a lane until somebody wants to know of it."""

    def __init__(self) -> None:
        self._lines: dict[str, dict[str, _First]] = {}
        self._named: dict[str, Line] = {}
        self._asked: dict[LaneName, Collection[str]] = {}

    def asked(self, lane: LaneName) -> bool:
        """Whether somebody wants to know of this lane."""
        return lane in self._asked

    def names(self) -> list[str]:
        """The groups of which somebody wants to know, as the server calls them."""
        return [
            name
            for lane, groups in self._asked.items()
            for group in groups
            for name in group_keys(lane, group)
        ]

    def came(self, task: Submission) -> None:
        """This worker has accepted a task, and it stands in line."""
        if task.lane not in self._asked:
            return
        lines = self._lines.setdefault(group_key(task.lane, task.group), {})
        first = lines.get(line_key(task.line))
        if first is None or first[1] < task.request.weight:
            lines[line_key(task.line)] = (task.id, task.request.weight)

    def saw(self, names: Collection[str], flat: Sequence[Any]) -> None:
        """What a script tells of these groups: group, line, id and score, one after the other."""
        for name in names:
            self._lines.pop(name, None)
        for place in range(0, len(flat), 4):
            group, line, task_id, score = (one.decode() for one in flat[place : place + 4])
            self._lines.setdefault(group, {})[line] = (task_id, -float(score))

    def gone(self, task_id: str) -> None:
        """It waits no longer."""
        for lines in self._lines.values():
            for line in [name for name, first in lines.items() if first[0] == task_id]:
                del lines[line]

    def best(self, wanted: Wanted) -> Head | None:
        """The one with the highest P = W / T among the groups, T by the claimer's ``load``."""
        self._asked.setdefault(wanted.lane, wanted.groups)
        best: Head | None = None
        for group in wanted.groups:
            for name in group_keys(wanted.lane, group):
                for line, (task_id, weight) in self._lines.get(name, {}).items():
                    rank = priority(weight, wanted.load(self._line(line)))
                    if best is None or rank > best.priority:
                        best = Head(task_id, group, rank)
        return best

    def weights(self, lane: LaneName, groups: Collection[str]) -> list[tuple[str, float]]:
        """Each group that has somebody in line, with the weight of its strongest."""
        self._asked[lane] = groups
        found = []
        for group in groups:
            firsts = [
                weight
                for name in group_keys(lane, group)
                for _, weight in self._lines.get(name, {}).values()
            ]
            if firsts:
                found.append((group, max(firsts)))
        return found

    def _line(self, name: str) -> Line:
        found = self._named.get(name)
        if found is None:
            if len(self._named) >= 1024:
                self._named.clear()
            found = self._named[name] = line_of(name)
        return found
