"""Who crashed the engine? Found by halving, beside the ordinary work.

After a crash with several requests in flight nobody knows whose fault it was. They are split in
two groups of suspects, and one group is tried at a time: its members run again, as soon as their
priority lets them, with the ordinary work beside them in the other threads. Then:

- A group whose members have all ended without a crash is innocent; the next one is tried.
- A crash with members of the tried group in flight is blamed on those: they are split in two again
  (the larger half first), and tried next. Members that had not started stay suspects as they were.
- Ordinary tasks that ran beside them are bystanders: they run again with no blame. One that saw
  ``BYSTANDER_CRASHES`` crashes as such is a suspect too.
- A crash with no member of the tried group in flight is blamed on all that were.
- A suspect that was blamed for a crash as the only one of its group is tried **strictly**: alone in
  the engine, at once when it is back, when nothing runs in it anyway. All others wait for that.
- A task is convicted when the engine crashed while it was alone in it, in its ``max_attempts``-th
  crash or a later one.

Why this ends, and is just, when a crash means that a poisonous task was in flight: an innocent task
is alone in no crash, so it is never convicted, however many crashes it sees. A poisonous one of n
in flight is a bystander at most ``BYSTANDER_CRASHES`` times and each further crash in which it is
in flight halves its group, so after ceil(log2 n) + 1 of them it was blamed alone, and then it runs
strictly until it has crashed ``max_attempts`` times. Every crash has a poisonous task in flight, so
there are only finitely many: one poisonous task among n costs at most ceil(log2 n) + 2 crashes (one
less when no other work runs beside it), or ``max_attempts`` where that is more. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

BYSTANDER_CRASHES = 2


@dataclass(slots=True, eq=False)
class Group:
    """Suspects that are tried together. ``strict``: its only member runs alone."""

    number: int
    members: dict[str, None]
    strict: bool = False


@dataclass(slots=True)
class Suspicion:
    """The suspects of one engine. ``max_attempts``: crashes before one is convicted."""

    max_attempts: int
    groups: deque[Group] = field(default_factory=deque)
    """In the order in which they are tried; the first one is being tried."""
    _of: dict[str, Group] = field(default_factory=dict)
    _crashes: dict[str, int] = field(default_factory=dict)
    _beside: dict[str, int] = field(default_factory=dict)
    _made: int = 0

    @property
    def tried(self) -> Group | None:
        """The group that is being tried now."""
        return self.groups[0] if self.groups else None

    def group_of(self, task_id: str) -> Group | None:
        """The group of a suspect; None for a task that is none."""
        return self._of.get(task_id)

    def crashes(self, task_id: str) -> int:
        """Crashes in which the task was in flight."""
        return self._crashes.get(task_id, 0)

    def allows(self, group: int | None, running: int) -> bool:
        """Whether a task of that group (None: an ordinary one) may start now.

        ``running`` requests are in flight.
        """
        tried = self.tried
        if tried is None or not tried.strict:
            return group is None or (tried is not None and group == tried.number)
        return group == tried.number and running == 0

    def crashed(self, in_flight: Sequence[str], *, alone: bool) -> list[str]:
        """The engine crashed with these tasks in flight; the ids of those who are convicted.

        ``alone``: nothing else was in flight, not even a task that has been cancelled. The others
        are to run again: those of whom ``group_of`` tells a group as its members.
        """
        for task_id in in_flight:
            self._crashes[task_id] = self.crashes(task_id) + 1
        if alone and len(in_flight) == 1 and self.crashes(in_flight[0]) >= self.max_attempts:
            self.left(in_flight[0])
            return [in_flight[0]]
        tried = self.tried
        blamed = [i for i in in_flight if tried is not None and self._of.get(i) is tried]
        others = [i for i in in_flight if i not in self._of]
        if not blamed:
            self._suspect(others)
            return []
        self._suspect(blamed)
        for task_id in others:
            self._beside[task_id] = self._beside.get(task_id, 0) + 1
        joining = [i for i in others if self._beside[i] >= BYSTANDER_CRASHES]
        if joining:
            self._append(joining)
        return []

    def left(self, task_id: str) -> None:
        """The task has ended, in whatever way, or is not wanted any more. Idempotent."""
        self._crashes.pop(task_id, None)
        self._beside.pop(task_id, None)
        self._remove(task_id)

    def _suspect(self, blamed: list[str]) -> None:
        """Split those who are blamed for a crash, and try them next."""
        single = len(blamed) == 1
        known = single and blamed[0] in self._of
        for task_id in blamed:
            self._remove(task_id)
        middle = (len(blamed) + 1) // 2
        for half in (blamed[middle:], blamed[:middle]):
            if half:
                self.groups.appendleft(self._group(half, strict=known))

    def _append(self, members: list[str]) -> None:
        self.groups.append(self._group(members, strict=False))

    def _group(self, members: list[str], *, strict: bool) -> Group:
        self._made += 1
        group = Group(self._made, dict.fromkeys(members), strict)
        for task_id in members:
            self._beside.pop(task_id, None)
            self._of[task_id] = group
        return group

    def _remove(self, task_id: str) -> None:
        group = self._of.pop(task_id, None)
        if group is not None:
            del group.members[task_id]
            if not group.members:
                self.groups.remove(group)
