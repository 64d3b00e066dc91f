"""Where the tasks of a broker of this process wait: in line, for their time, for their parents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf

from llmtaskpool_worker.brokers.protocol import (
    Depth,
    Full,
    Head,
    LaneDepth,
    Line,
    Submission,
    Wanted,
)
from llmtaskpool_worker.brokers.records import Record
from llmtaskpool_worker.scheduling.limits import Limits
from llmtaskpool_worker.scheduling.priority import priority
from llmtaskpool_worker.scheduling.scheduler import Start, schedule
from llmtaskpool_worker.scheduling.task import LaneName, TaskState
from llmtaskpool_worker.scheduling.task_queue import TaskQueue, Terms, Waiting, again

LEAST_SECONDS = 1.0


def _alike(_: str) -> float:
    return 1.0


@dataclass(slots=True)
class _Lane:
    queue: TaskQueue
    came: asyncio.Event = field(default_factory=asyncio.Event)
    work_seconds: float = 0.0
    """Of all that waits, wherever."""
    aside: int = 0
    aside_bytes: int = 0
    least: list[Waiting] = field(default_factory=list)
    """Those that may make room, the least urgent last, as ranked then."""
    ranked_at: float = -inf


class Lines:
    """A bounded line for each lane, in the order of P = W / T, and who is not in it yet.

    ``load`` of the claimer who asked last gives T, and ``favour`` F.
    """

    def __init__(self, limits: Limits) -> None:
        self._load: Callable[[Line], float] = lambda _: 1.0
        self._favour: Callable[[str], float] = _alike
        self._lanes = {
            name: _Lane(
                TaskQueue(
                    load=lambda line: self._load(line),  # type: ignore[arg-type]  # as we push
                    max_tasks=limits.lane(name).queue_tasks,
                    max_bytes=limits.lane(name).queue_bytes,
                    ageing_seconds=limits.ageing_seconds,
                    policy=limits.policy,
                    aged_share=limits.aged_share,
                )
            )
            for name in LaneName
        }
        self._tenants = limits.tenants
        self._bound_running = limits.tenants.bound_running
        self._counts: dict[str, list[int]] = {}
        """Of each tenant: tasks that wait, and tasks that are claimed."""
        self._blocked: dict[str, Record] = {}
        self._delayed: dict[str, Record] = {}
        self._due: list[tuple[float, str]] = []

    def check_tenant(self, task: Submission) -> None:
        """Raises Full when as many of its tenant wait as may."""
        tenant = task.line.tenant
        most = self._tenants.may_wait(tenant, of_a_batch=task.request.of_a_batch)
        if most is not None and self._counts.get(tenant, (0, 0))[0] >= most:
            raise Full("tenant", most)

    def check_group(self, task: Submission) -> None:
        """Raises Full when as many of its group wait as may."""
        most = task.group_most
        if most is not None and self._lanes[task.lane].queue.count(task.group) >= most:
            raise Full("model", most)

    def has_room(self, task: Submission) -> bool:
        """Whether check_room raises nothing."""
        try:
            self.check_room(task)
        except Full:
            return False
        return True

    def check_room(self, task: Submission) -> None:
        """Raises Full when the lane is."""
        one, size = self._lanes[task.lane], task.size_bytes
        queue = one.queue
        if len(queue) + one.aside >= queue.max_tasks:
            raise Full("tasks", queue.max_tasks)
        if queue.bytes + one.aside_bytes + size > queue.max_bytes:
            raise Full("bytes", queue.max_bytes)

    def least(self, task: Submission, now: float, may_go: Callable[[str], bool]) -> str | None:
        """The least urgent in line, where it is less so than a task that comes and may go.

        They are ranked anew at most once in LEAST_SECONDS: a line may be full for long.
        """
        lane = self._lanes[task.lane]
        if now - lane.ranked_at >= LEAST_SECONDS:
            lane.ranked_at = now
            ranked = [(self._rank(one), one) for one in lane.queue if may_go(one.id)]
            ranked.sort(key=lambda pair: (-pair[0], pair[1].sequence))
            lane.least = [one for _, one in ranked]
        while lane.least:
            last = lane.least[-1]
            if last.gone:
                lane.least.pop()
                continue
            mine = priority(task.request.weight, self._load(task.line))
            if self._rank(last) >= mine * self._favour(task.line.tenant):
                return None
            return lane.least.pop().id
        return None

    def _rank(self, item: Waiting) -> float:
        line: Line = item.cost_class  # type: ignore[assignment]  # as we pushed it
        return priority(item.weight, self._load(line)) * self._favour(line.tenant)

    def stand(self, record: Record, since: float, until: float | None = None) -> None:
        """Into the line, behind all that are there; it has waited since then.

        ``until``: the end of its patience, where that is not the usual.
        """
        task, lane = record.task, self._lanes[record.task.lane]
        record.state = TaskState.QUEUED
        record.waiting = Waiting(
            id=task.id,
            group=task.group,
            cost_class=task.line,
            weight=record.weight,
            arrived_at=since,
            expires_at=since + task.patience_seconds if until is None else until,
            size_bytes=task.size_bytes,
        )
        lane.queue.push(record.waiting, bounded=False)
        lane.came.set()

    def stand_again(self, record: Record, until: float) -> None:
        """Into the place that it had; until then."""
        assert record.waiting is not None  # noqa: S101  it was taken from there
        lane = self._lanes[record.task.lane]
        record.waiting = again(record.waiting, record.task.group, until)
        lane.queue.restore([record.waiting])
        lane.came.set()

    def block(self, record: Record) -> None:
        """It waits for its parents."""
        self._put_aside(record, TaskState.BLOCKED, self._blocked)

    def delay(self, record: Record, due_at: float) -> None:
        """It waits for its time."""
        self._put_aside(record, TaskState.DELAYED, self._delayed)
        heappush(self._due, (due_at, record.task.id))

    def _put_aside(self, record: Record, state: TaskState, where: dict[str, Record]) -> None:
        record.state = state
        where[record.task.id] = record
        lane = self._lanes[record.task.lane]
        lane.aside += 1
        lane.aside_bytes += record.task.size_bytes

    def leave(self, record: Record) -> None:
        """From wherever it waits; nothing when it waits nowhere."""
        task, lane = record.task, self._lanes[record.task.lane]
        for where in (self._blocked, self._delayed):
            if where.pop(task.id, None) is not None:
                lane.aside -= 1
                lane.aside_bytes -= task.size_bytes
                return
        lane.queue.cancel(task.id)

    def work(self, record: Record, sign: int) -> None:
        """The offered work of a task waits (1), or waits no longer (-1)."""
        self._lanes[record.task.lane].work_seconds += sign * record.task.work_seconds
        self._count(record.task.line.tenant, 0, sign)

    def runs(self, record: Record, sign: int) -> None:
        """A task is claimed (1), or is no longer (-1)."""
        self._count(record.task.line.tenant, 1, sign)

    def _count(self, tenant: str, which: int, sign: int) -> None:
        if not tenant:
            return
        counts = self._counts.setdefault(tenant, [0, 0])
        counts[which] += sign
        if not any(counts):
            del self._counts[tenant]

    def reweigh(self, record: Record) -> None:
        """It has a new weight, and the place of it."""
        queue, item = self._lanes[record.task.lane].queue, record.waiting
        if item is not None and queue.cancel(item.id) is not None:
            record.waiting = again(item, item.group, item.expires_at)
            record.waiting.weight = record.weight
            queue.restore([record.waiting])

    def take(self, wanted: Wanted, now: float) -> tuple[list[str], list[str]]:
        """Those who go next, in order; and those who have waited as long as they may."""
        self._load = wanted.load
        queue = self._lanes[wanted.lane].queue
        serves = self._serves if self._bound_running else None
        terms = None if serves is None else Terms(lambda line: serves(line, started))
        started: list[Waiting] = []
        started += self._exception(queue, wanted, now, terms)
        most = 0 if wanted.above > 0 else wanted.most - len(started)
        self._favour = favour = wanted.favour or _alike
        if favour is not _alike:
            terms = Terms(
                lambda line: serves is None or serves(line, started),
                lambda line: favour(line.tenant),  # type: ignore[attr-defined]  # as we pushed it
            )

        def free(group: str | None) -> int:
            return wanted.free(group or "") - sum(item.group == group for item in started)

        gone: list[str] = []
        # Where tenants' tasks at work are bounded, each that starts counts for the next.
        turns = [most] if serves is None else [1] * most
        for turn in turns or [0]:
            decisions = schedule(queue, turn, free, now, terms)
            gone += [one.task.id for one in decisions if not isinstance(one, Start)]
            begun = [one.task for one in decisions if isinstance(one, Start)]
            started += begun
            if len(begun) < turn:
                break
        return [item.id for item in started], gone

    def _serves(self, line: Hashable, started: Sequence[Waiting]) -> bool:
        """Whether one more task of a line's tenant may be at work, these counted."""
        tenant = line.tenant  # type: ignore[attr-defined]  # as we pushed it
        most = self._tenants.of(tenant).running
        if most is None:
            return True
        here = sum(item.cost_class.tenant == tenant for item in started)  # type: ignore[attr-defined]
        return self._counts.get(tenant, (0, 0))[1] + here < most

    @staticmethod
    def _exception(
        queue: TaskQueue, wanted: Wanted, now: float, terms: Terms | None
    ) -> list[Waiting]:
        """Who goes out of the ordinary turn: what outranks the claimer's own, what is urgent."""
        if wanted.above <= 0 and wanted.by_age:
            return []

        def has_slot(group: str | None) -> bool:
            return wanted.free(group or "") > 0

        best = queue.most_urgent(has_slot, terms)
        if best is None:
            return []
        if wanted.above > 0:
            load = wanted.load(best.cost_class)  # type: ignore[arg-type]  # as we pushed it
            if priority(best.weight, load) <= wanted.above:
                return []
            queue.cancel(best.id)
            return [best]
        queue.pass_aged(best)
        first = queue.take(now, has_slot, terms)
        return [] if first is None else [first]

    def head(self, wanted: Wanted) -> Head | None:
        """The most urgent of the groups; it stays."""
        self._load = wanted.load
        terms = Terms(lambda line: self._serves(line, ())) if self._bound_running else None
        queue = self._lanes[wanted.lane].queue
        best = queue.most_urgent(lambda group: group in wanted.groups, terms)
        if best is None:
            return None
        load = wanted.load(best.cost_class)  # type: ignore[arg-type]  # as we pushed it
        return Head(best.id, best.group or "", priority(best.weight, load))

    def weights(self, lane: LaneName) -> list[tuple[str, float]]:
        """See Broker.waiting_weights."""
        return self._lanes[lane].queue.weights()

    def expired(self, now: float) -> list[str]:
        """Those who have waited as long as they may; they have left the line."""
        lanes = self._lanes.values()
        return [
            item.id
            for lane in lanes
            if lane.queue.next_expiry() <= now
            for item in lane.queue.expired(now)
        ]

    def due(self, now: float) -> list[Record]:
        """Those whose time has come; they wait nowhere now."""
        found = []
        while self._due and self._due[0][0] <= now:
            record = self._delayed.get(heappop(self._due)[1])
            if record is not None:
                self.leave(record)
                found.append(record)
        return found

    async def wait(self, lane: LaneName, seconds: float) -> bool:
        """Until somebody comes into the line."""
        came = self._lanes[lane].came
        try:
            async with asyncio.timeout(seconds):
                await came.wait()
        except TimeoutError:
            return False
        came.clear()
        return True

    def depth(self, now: float, *, running: int, dead: int, bound: int | None = None) -> Depth:
        """See Broker. ``bound``: None: all of them."""
        while self._due and self._due[0][1] not in self._delayed:
            heappop(self._due)
        lanes = {
            name: LaneDepth(
                len(lane.queue) + lane.aside,
                max(0.0, lane.work_seconds),
                lane.queue.oldest_arrival(),
            )
            for name, lane in self._lanes.items()
        }
        groups = {
            name or "": LaneDepth(count, 0.0, oldest_at)
            for lane in self._lanes.values()
            for name, count, oldest_at in lane.queue.groups()
        }
        return Depth(
            now,
            lanes,
            groups,
            running=running,
            bound=sum(lane.waiting for lane in lanes.values()) if bound is None else bound,
            blocked=len(self._blocked),
            delayed=len(self._delayed),
            next_due_at=self._due[0][0] if self._due else None,
            dead=dead,
            tenants={name: (waits, runs) for name, (waits, runs) in self._counts.items()},
        )
