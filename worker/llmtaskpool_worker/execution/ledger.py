"""The books of a worker: what it has claimed, what became of it, offered work."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from llmtaskpool_worker.brokers.protocol import (
    Broker,
    Claim,
    Commit,
    Committed,
    Depth,
    Held,
    Outcome,
    Release,
)
from llmtaskpool_worker.contract import LaneName, Totals, Work
from llmtaskpool_worker.engines.protocol import Cancel
from llmtaskpool_worker.execution.active_task import ActiveTask
from llmtaskpool_worker.execution.desk import Desk
from llmtaskpool_worker.execution.engine_slots import EngineSlots
from llmtaskpool_worker.execution.lanes import Lane
from llmtaskpool_worker.execution.tenants import TenantBooks
from llmtaskpool_worker.scheduling.cost import CostClass
from llmtaskpool_worker.scheduling.task import (
    Result,
    StateChanged,
    TaskError,
    TaskEvent,
    TaskState,
    TaskView,
)
from llmtaskpool_worker.scheduling.task_queue import Waiting, again
from llmtaskpool_worker.scheduling.tenants import Tenants


class TaskLedger:
    """Every task that is claimed here ends here once; the broker has what others may see of it."""

    def __init__(
        self,
        broker: Broker,
        clock: Callable[[], float],
        slots: Iterable[EngineSlots],
        tenants: Tenants | None = None,
    ) -> None:
        self.broker = broker
        self.tenants = TenantBooks(tenants or Tenants(), clock)
        self.desk = Desk(broker)
        self.active: dict[str, ActiveTask] = {}
        self._counts: dict[str, int] = {}
        self.on_ended: Callable[[TaskView], None] = lambda _: None
        self.emptied = asyncio.Event()
        self._clock = clock
        self._slots = tuple(slots)
        self._numbers = itertools.count(1)
        self._arrived = self._done = self._held_work = 0.0

    @property
    def left(self) -> int:
        """How many tasks are not ended and end with this worker, or are at work in it."""
        return len(self.active) + self.desk.untold + self.broker.depth().bound

    def work(self, depth: Depth | None = None) -> Work:
        """Offered work, in pod-seconds; ``depth``: the broker's, of just now."""
        lanes = (depth or self.broker.depth()).lanes.values()
        waiting = sum(lane.work_seconds for lane in lanes) + self._held_work
        return Work(
            arrived_seconds_total=self._arrived,
            done_seconds_total=self._done,
            # What adding and taking away leaves of floats is no work: a pool sleeps only at 0.
            waiting_seconds=max(0.0, round(waiting, 6)),
        )

    @property
    def totals(self) -> Totals:
        """How many were taken in, turned away, and ended how."""
        return Totals(**self._counts)

    def arrived(self, work_seconds: float) -> None:
        """Work was offered; if its task is rejected it is demand all the same."""
        self._arrived += work_seconds

    def accepted(self) -> None:
        """A task was taken in."""
        self._count(accepted=1)

    def reject(self) -> None:
        """A task was turned away."""
        self._count(rejected=1)

    def claimed(self, claim: Claim, lane: Lane, cost_class: CostClass) -> ActiveTask:
        """A task is this worker's from now on; an earlier claim of it isn't any more."""
        self.lost(claim.id)
        task = ActiveTask(claim, lane, cost_class, Held(claim.id, claim.fence), next(self._numbers))
        self.active[claim.id] = task
        return task

    def start(self, task: ActiveTask, timeout: float) -> None:
        """The task runs from now on, at most ``timeout`` seconds; its lane has a place for it."""
        if task.waiting is not None:
            self._held_work -= task.claim.work_seconds
            task.waiting = None
        if task.again:
            self.broker.publish(task.held, StateChanged(TaskState.RUNNING))
            task.again = False
        now = self._clock()
        task.runs = True
        task.deadline, task.began_at = now + timeout, now

    def publish(self, task: ActiveTask, event: TaskEvent) -> None:
        """Something of a running task is there for those who follow it."""
        if task.runs:
            self.broker.publish(task.held, event)

    def may_run_again(self, task: ActiveTask) -> bool:
        """Whether nobody has read what a running task has said."""
        return not (self.broker.watched(task.id) and task.drawn)

    def hold(self, tasks: Iterable[ActiveTask], why: str, group_of: Callable[[str], str]) -> None:
        """Running tasks are to begin again here, at the latest at their deadlines.

        ``group_of`` tells by a task's id what must have a free slot for it.
        """
        for task in tasks:
            task.again = True
            self.broker.publish(task.held, StateChanged(TaskState.QUEUED, why))
            self.wait_here(task, group_of(task.id), task.deadline)

    def wait_here(self, task: ActiveTask, group: str, until: float) -> None:
        """A claimed task waits for a thread of this worker."""
        claim = task.claim
        task.runs, task.text, task.forwarded, task.slots = False, None, None, None
        self._held_work += claim.work_seconds
        item = Waiting(
            id=task.id,
            group=group,
            cost_class=task.cost_class,
            weight=claim.request.weight,
            arrived_at=claim.submitted_at,
            sequence=task.number,
        )
        task.waiting = again(item, group, until)
        task.lane.held.restore([task.waiting])

    def give_back(self, task: ActiveTask, why: str) -> None:
        """A claimed task that has not begun waits for anybody again."""
        if self._left(task):
            released = Release(task.id, task.claim.fence, why, counts=False)
            self.desk.release(released, bound=task.request.attended)

    def let_others(self, task: ActiveTask, why: str) -> None:
        """A running task that survives this worker is run again by the next."""
        if self._left(task):
            self.desk.release(Release(task.id, task.claim.fence, why), bound=False)
            self.stop_running(task)

    def commit(self, task: ActiveTask, outcome: Result | TaskError) -> None:
        """A claimed task ends."""
        if self._left(task):
            self.desk.commit(
                Outcome(task.id, task.claim.fence, outcome),
                partial(self._committed, task),
                bound=task.request.attended,
            )

    def _committed(self, task: ActiveTask, committed: Committed) -> None:
        if committed.commit is not Commit.LOST and committed.view is not None:
            if committed.view.state is TaskState.SUCCEEDED:
                self._done += task.claim.work_seconds
            self.ended(committed.view)
        self._look_empty()

    def lost(self, task_id: str, fence: str | None = None) -> None:
        """A claim of a task is not in force any more: whatever runs for it is to end.

        With ``fence``, that claim alone: the task may have been claimed again since.
        """
        task = self.active.get(task_id)
        if task is not None and fence in (None, task.claim.fence) and self._left(task):
            self.stop_running(task)

    def at_work(self, task_id: str | None, request_id: int) -> ActiveTask | None:
        """The task that a request is of; None when that has ended, or runs by another request.

        A task may run anew here while what ran for an earlier claim of it has not ended.
        """
        task = self.active.get(task_id or "")
        return task if task is not None and task.request_id == request_id else None

    def all_at_work(self, requests: Mapping[int, str]) -> Iterator[ActiveTask]:
        """The tasks of requests, which are given with their tasks' ids."""
        for request_id, task_id in requests.items():
            task = self.at_work(task_id, request_id)
            if task is not None:
                yield task

    def holds(self, task: ActiveTask) -> bool:
        """Whether this claim of the task is this worker's."""
        return self.active.get(task.id) is task

    def cancelled(self, answer: Committed) -> None:
        """The broker has cancelled a task, if it still could."""
        if answer.commit is Commit.TAKEN and answer.view is not None:
            self.ended(answer.view)

    def ended(self, view: TaskView) -> None:
        """A task has ended, of whoever it was."""
        self._count(**{view.state.value: 1})
        self.on_ended(view)
        self._look_empty()

    def stop_running(self, task: ActiveTask) -> None:
        """The result of a running task is no longer wanted: ask what runs for it to end.

        Its place is free once that has ended: a thread can't be stopped from outside.
        """
        if task.slots is not None:
            task.slots.engine.send(Cancel(task.request_id))
        if task.context is not None:
            task.context.cancelled = True
        if task.calling is not None and task.on_loop:
            task.calling.cancel()

    def stop(self, task: ActiveTask, error: TaskError) -> None:
        """End a claimed task with this error."""
        self.commit(task, error)
        self.stop_running(task)

    def retry_after(self, lane: Lane) -> float:
        """Seconds until about a tenth of the queue has run, from 1 to 60."""
        waiting = self.work().waiting_seconds
        return min(60.0, max(1.0, 1.0 if lane.name is LaneName.IO else waiting / 10))

    def _left(self, task: ActiveTask) -> bool:
        """It is this worker's no more; False: it wasn't."""
        if not self.holds(task):
            return False
        del self.active[task.id]
        if task.waiting is not None:
            task.lane.held.cancel(task.id)
            if task.parked_at is None:
                self._held_work -= task.claim.work_seconds
        for slots in self._slots:
            slots.suspicion.left(task.id)
        return True

    def _look_empty(self) -> None:
        if not self.active:
            self.emptied.set()

    def _count(self, **more: int) -> None:
        for name, n in more.items():
            self._counts[name] = self._counts.get(name, 0) + n
