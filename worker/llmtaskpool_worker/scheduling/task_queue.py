"""A bounded queue in the order of P = W / T that stays exact while T is being learned.

Tasks of one cost class share T, so among them W alone decides and their heap never needs new
keys. Across classes P is computed when a task is taken, from the T of that moment: a completion
that changes T costs nothing here, however many tasks wait. With n waiting in c classes (tens:
see cost.py), push is O(log n), take O(c + log n), cancel O(1) amortized. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from math import inf

from llmtaskpool_worker.scheduling.aged_share import DEFAULT_AGED_SHARE, AgedShare
from llmtaskpool_worker.scheduling.priority import QueuePolicy, aged, priority


class QueueFullError(Exception):
    """Nothing more fits; ``bound`` says which bound: tasks or bytes."""

    def __init__(self, bound: str, limit: int) -> None:
        super().__init__(f"the queue is full: {limit} {bound}")
        self.bound = bound
        self.limit = limit


@dataclass(slots=True, eq=False)
class Waiting:
    """One waiting task. ``group`` is what must have a free slot for it (its model or kind).

    ``gone`` marks what has left the queue while heaps still hold it.
    """

    id: str
    group: str | None
    cost_class: Hashable
    weight: float
    arrived_at: float
    expires_at: float = inf
    size_bytes: int = 0
    sequence: int = 0
    gone: bool = True

    def __lt__(self, other: Waiting) -> bool:
        """Only for heaps that still hold a task that waits again: which of the two is no matter."""
        return self.gone > other.gone


def again(item: Waiting, group: str | None, expires_at: float) -> Waiting:
    """A task that was taken and waits again, for ``restore``: heaps may still hold the old one."""
    return replace(item, group=group, expires_at=expires_at)


@dataclass(slots=True)
class _Heap:
    """A heap of tasks by a fixed key that forgets the gone ones when they are the majority."""

    entries: list[tuple[float, int, Waiting]] = field(default_factory=list)
    gone: int = 0

    def push(self, key: float, item: Waiting) -> None:
        heappush(self.entries, (key, item.sequence, item))

    def top(self) -> Waiting | None:
        """The first task that still waits."""
        while self.entries:
            item = self.entries[0][2]
            if not item.gone:
                return item
            heappop(self.entries)
            self.gone -= 1
        return None

    def left(self) -> None:
        """Say that one of its tasks is gone."""
        self.gone += 1
        if self.gone * 2 > len(self.entries) + 16:
            self.entries = [entry for entry in self.entries if not entry[2].gone]
            heapify(self.entries)
            self.gone = 0


class _Group:
    """The waiting tasks of one model or kind: a heap per cost class, and all by arrival."""

    def __init__(self) -> None:
        self.classes: dict[Hashable, _Heap] = {}
        self.by_arrival: OrderedDict[str, Waiting] = OrderedDict()


@dataclass(frozen=True, slots=True)
class Terms:
    """What else counts in a turn, by cost class: who may go now, and the factor F of its P."""

    serves: Callable[[Hashable], bool] = lambda _: True
    favour: Callable[[Hashable], float] = lambda _: 1.0


class TaskQueue:
    """The waiting tasks of one lane. ``load(cost_class)`` gives T in thread-seconds."""

    def __init__(
        self,
        *,
        load: Callable[[Hashable], float],
        max_tasks: int,
        max_bytes: int,
        ageing_seconds: float,
        policy: QueuePolicy = QueuePolicy.PRIORITY,
        aged_share: float = DEFAULT_AGED_SHARE,
    ) -> None:
        self._load = load
        self.max_tasks, self.max_bytes = max_tasks, max_bytes
        self.ageing_seconds, self.policy = ageing_seconds, policy
        self._aged = AgedShare(aged_share)
        self.bytes = 0
        self._sequence = 0
        self._items: dict[str, Waiting] = {}
        self._groups: dict[str | None, _Group] = {}
        self._expiry = _Heap()

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._items

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._items.values())

    def push(self, item: Waiting, *, bounded: bool = True) -> None:
        """Add a task that arrived now, behind all that arrived before. Raises QueueFullError.

        Not ``bounded``: its place was settled before.
        """
        if bounded and len(self._items) >= self.max_tasks:
            raise QueueFullError("tasks", self.max_tasks)
        if bounded and self.bytes + item.size_bytes > self.max_bytes:
            raise QueueFullError("bytes", self.max_bytes)
        if item.id in self._items:
            raise ValueError(f"task {item.id!r} waits already")
        self._sequence += 1
        item.sequence, item.gone = self._sequence, False
        self._items[item.id] = item
        self.bytes += item.size_bytes
        group = self._groups.get(item.group)
        if group is None:
            group = self._groups[item.group] = _Group()
        group.by_arrival[item.id] = item
        heap = group.classes.get(item.cost_class)
        if heap is None:
            heap = group.classes[item.cost_class] = _Heap()
        heap.push(-item.weight, item)
        if item.expires_at < inf:
            self._expiry.push(item.expires_at, item)

    def restore(self, items: Collection[Waiting]) -> None:
        """Put tasks back that had been taken, in the places of their arrival, beyond all bounds.

        One costs O(n) in its group: what is put back has crashed an engine or was preempted.
        """
        touched = set()
        for item in items:
            item.gone = False
            self._items[item.id] = item
            self.bytes += item.size_bytes
            group = self._groups.setdefault(item.group, _Group())
            group.by_arrival[item.id] = item
            group.classes.setdefault(item.cost_class, _Heap()).push(-item.weight, item)
            if item.expires_at < inf:
                self._expiry.push(item.expires_at, item)
            touched.add(item.group)
        for name in touched:
            arrived = sorted(self._groups[name].by_arrival.values(), key=lambda i: i.sequence)
            self._groups[name].by_arrival = OrderedDict((item.id, item) for item in arrived)

    def take(
        self, now: float, eligible: Callable[[str | None], bool], terms: Terms | None = None
    ) -> Waiting | None:
        """Take the task that goes next among groups that are eligible; None if there is none."""
        groups = [group for name, group in self._groups.items() if eligible(name)]
        oldest = _oldest(groups)
        if oldest is None:
            return None
        best = item = self._best(groups, terms)
        if item is None:
            return None
        if aged(oldest.arrived_at, now, self.ageing_seconds):
            if self.policy is QueuePolicy.NEWEST_FIRST:
                item = _served(_newest(groups), item, terms)
            elif self._aged.is_due():
                item = _served(oldest, item, terms)
            for_its_age = item is oldest and item is not best
            self._aged.started(self._load(item.cost_class), for_its_age=for_its_age)
        # Where all groups are eligible, their oldest was looked at above.
        elif len(groups) == len(self._groups) or not aged(
            self.oldest_arrival() or now, now, self.ageing_seconds
        ):
            self._aged.nobody_waits_long()
        self._remove(item)
        return item

    def most_urgent(
        self, eligible: Callable[[str | None], bool], terms: Terms | None = None
    ) -> Waiting | None:
        """The task with the highest P among eligible groups, whatever its age; it stays."""
        groups = [group for name, group in self._groups.items() if eligible(name)]
        return self._best(groups, terms) if groups else None

    def aged_is_due(self, now: float, eligible: Callable[[str | None], bool]) -> bool:
        """Whether ``take`` would take the oldest of these groups for its age."""
        oldest = _oldest([group for name, group in self._groups.items() if eligible(name)])
        if oldest is None or not aged(oldest.arrived_at, now, self.ageing_seconds):
            return False
        return self._aged.is_due()

    def started_elsewhere(self, load_seconds: float, now: float) -> None:
        """A task of another queue has started on the same threads: the aged here have their share.

        ``load_seconds``: its T.
        """
        if aged(self.oldest_arrival() or now, now, self.ageing_seconds):
            self._aged.started(load_seconds, for_its_age=False)

    def groups(self) -> Iterator[tuple[str | None, int, float]]:
        """Each group's name, how many wait in it, and when the oldest of them arrived."""
        for name, group in self._groups.items():
            first = next(iter(group.by_arrival.values()))
            yield name, len(group.by_arrival), first.arrived_at

    def weights(self) -> list[tuple[str, float]]:
        """Each group's name and the weight of the strongest that waits in it."""
        found = []
        for name, group in self._groups.items():
            tops = (heap.top() for heap in group.classes.values())
            found.append((name or "", max(top.weight for top in tops if top is not None)))
        return found

    def count(self, group: str | None) -> int:
        """How many wait in a group."""
        found = self._groups.get(group)
        return 0 if found is None else len(found.by_arrival)

    def pass_aged(self, item: Waiting) -> None:
        """The next free thread is made for this one: the aged have their turn after it."""
        self._aged.pass_for(self._load(item.cost_class))

    def cancel(self, task_id: str) -> Waiting | None:
        """Take a task out, whatever its place; None when it doesn't wait."""
        item = self._items.get(task_id)
        if item is not None:
            self._remove(item)
        return item

    def expired(self, now: float) -> list[Waiting]:
        """Take out all that have waited to their ``expires_at``."""
        out = []
        while (item := self._expiry.top()) is not None and item.expires_at <= now:
            self._remove(item)
            out.append(item)
        return out

    def next_expiry(self) -> float:
        """When the next task expires; inf when none will."""
        item = self._expiry.top()
        return inf if item is None else item.expires_at

    def oldest_arrival(self) -> float | None:
        """When the task that waits longest arrived."""
        oldest = _oldest(self._groups.values())
        return None if oldest is None else oldest.arrived_at

    def _best(self, groups: Collection[_Group], terms: Terms | None = None) -> Waiting | None:
        """Falling P, ties by arrival."""
        best: Waiting | None = None
        highest, load = -inf, self._load
        for group in groups:
            for cost_class, heap in group.classes.items():  # each decision looks at all of them
                entries = heap.entries
                top = entries[0][2] if entries and not entries[0][2].gone else heap.top()
                if top is None:
                    continue
                rank = priority(top.weight, load(cost_class))
                if terms is not None:
                    if not terms.serves(cost_class):
                        continue
                    rank *= terms.favour(cost_class)
                if rank < highest:
                    continue
                if best is None or rank > highest or top.sequence < best.sequence:
                    best, highest = top, rank
        return best

    def _remove(self, item: Waiting) -> None:
        item.gone = True
        del self._items[item.id]
        self.bytes -= item.size_bytes
        if item.expires_at < inf:
            self._expiry.left()
        group = self._groups[item.group]
        del group.by_arrival[item.id]
        heap = group.classes[item.cost_class]
        heap.left()
        if heap.top() is None:
            del group.classes[item.cost_class]
        if not group.by_arrival:
            del self._groups[item.group]


def _oldest(groups: Collection[_Group]) -> Waiting | None:
    firsts = [next(iter(group.by_arrival.values())) for group in groups]
    return min(firsts, key=lambda item: item.sequence, default=None)


def _served(one: Waiting, other: Waiting, terms: Terms | None) -> Waiting:
    """The one, where it may go now."""
    return one if terms is None or terms.serves(one.cost_class) else other


def _newest(groups: Collection[_Group]) -> Waiting:
    lasts = [next(reversed(group.by_arrival.values())) for group in groups]
    return max(lasts, key=lambda item: item.sequence)
