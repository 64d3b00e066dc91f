"""The books of a pool: which tasks have not ended, what became of the others, offered work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from llmtaskpool_worker.brokers.own_books import Accepted, Broker, LeaseLost
from llmtaskpool_worker.contract import LaneName, Totals, Work
from llmtaskpool_worker.engines.protocol import Cancel
from llmtaskpool_worker.execution.active_task import ActiveTask
from llmtaskpool_worker.execution.engine_slots import EngineSlots
from llmtaskpool_worker.execution.lanes import Lane
from llmtaskpool_worker.scheduling.task import (
    Result,
    TaskError,
    TaskEvent,
    TaskState,
    TaskView,
)
from llmtaskpool_worker.scheduling.task_queue import Waiting, again


class TaskLedger:
    """Every task is entered once and ends once; the broker has what others may see of it."""

    def __init__(
        self, broker: Broker, clock: Callable[[], float], slots: Iterable[EngineSlots]
    ) -> None:
        self.broker = broker
        self.active: dict[str, ActiveTask] = {}
        self.totals = Totals()
        self.on_ended: Callable[[TaskView], None] = lambda _: None
        self.emptied = asyncio.Event()
        self._clock = clock
        self._slots = tuple(slots)
        self._arrived = self._done = self._waiting_work = 0.0

    def work(self) -> Work:
        """Offered work, in pod-seconds."""
        return Work(
            arrived_seconds_total=self._arrived,
            done_seconds_total=self._done,
            waiting_seconds=max(0.0, self._waiting_work),
        )

    def arrived(self, work_seconds: float) -> None:
        """Work was offered; if its task is rejected it is demand all the same."""
        self._arrived += work_seconds

    def reject(self) -> None:
        """A task was turned away."""
        self._count(rejected=1)

    def enter(self, task: ActiveTask, load: float, rank: float) -> TaskView:
        """The task waits in its lane's queue from now on. Raises NoRoom for its result."""
        accepted = Accepted(task.id, task.request, task.lane.name, load, rank)
        view = self.broker.accept(accepted, task.arrived_at)
        self.active[task.id] = task
        self._waiting_work += task.work_seconds
        self._count(accepted=1)
        return view

    def start(self, task: ActiveTask, timeout: float) -> None:
        """The task runs from now on, at most ``timeout`` seconds; its lane has a place for it."""
        now = self._clock()
        task.claim = self.broker.claim(task.id, now, timeout)
        task.deadline, task.began_at = now + timeout, now
        self._waiting_work -= task.work_seconds

    def publish(self, task: ActiveTask, event: TaskEvent) -> None:
        """Something of a running task is there for those who follow it."""
        if task.claim is not None:
            self.broker.publish(task.id, task.claim.token, event)

    def may_run_again(self, task: ActiveTask) -> bool:
        """Whether nobody has read what a running task has said."""
        return not (self.broker.watched(task.id) and task.drawn)

    def give_back(
        self,
        tasks: Iterable[ActiveTask],
        why: str,
        group_of: Callable[[str], str],
        *,
        patient: bool = False,
    ) -> None:
        """Running tasks wait again, at most until their deadlines.

        ``group_of`` tells the group of the queue by a task's id. ``patient``: they have not begun,
        so they wait at most as long as they would have.
        """
        waiting: dict[Lane, list[Waiting]] = {}
        for task in tasks:
            assert task.claim is not None  # noqa: S101 - only running tasks are given back
            assert task.waiting is not None  # noqa: S101 - and those have waited
            self.broker.release(task.id, task.claim.token, why)
            task.claim, task.text, task.forwarded, task.slots = None, None, None, None
            self._waiting_work += task.work_seconds
            until = task.waiting.expires_at if patient else task.deadline
            task.waiting = again(task.waiting, group_of(task.id), until)
            waiting.setdefault(task.lane, []).append(task.waiting)
        for lane, items in waiting.items():
            lane.queue.restore(items)

    def commit(self, task: ActiveTask, outcome: Result | TaskError) -> None:
        """A running task ends."""
        assert task.claim is not None  # noqa: S101 - only running tasks are committed
        try:
            view = self.broker.commit(task.id, task.claim.token, outcome, self._clock())
        except LeaseLost:
            return
        if view.state is TaskState.SUCCEEDED:
            self._done += task.work_seconds
        self._ended(task, view)

    def cancel(self, task: ActiveTask) -> TaskView:
        """The task is not wanted any more, wherever it is."""
        if task.claim is None:
            return self.end_waiting(task, TaskState.CANCELLED, None)
        view = self.broker.cancel_running(task.id, task.claim.token, self._clock())
        self.stop_running(task)
        self._ended(task, view)
        return view

    def end_waiting(self, task: ActiveTask, state: TaskState, error: TaskError | None) -> TaskView:
        """A waiting task ends."""
        task.lane.queue.cancel(task.id)
        return self.finish_waiting(task, state, error)

    def finish_waiting(
        self, task: ActiveTask, state: TaskState, error: TaskError | None
    ) -> TaskView:
        """The same for a task that has left the queue already."""
        view = self.broker.end_waiting(task.id, state, error, self._clock())
        self._waiting_work -= task.work_seconds
        self._ended(task, view)
        return view

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
        """End a task with this error, running or waiting."""
        if task.claim is None:
            self.end_waiting(task, TaskState.FAILED, error)
        else:
            self.commit(task, error)
            self.stop_running(task)

    def retry_after(self, lane: Lane) -> float:
        """Seconds until about a tenth of the queue has run, from 1 to 60."""
        return min(60.0, max(1.0, 1.0 if lane.name is LaneName.IO else self._waiting_work / 10))

    def _ended(self, task: ActiveTask, view: TaskView) -> None:
        del self.active[task.id]
        if task.parked_at is not None:
            task.lane.queue.cancel(task.id)
        for slots in self._slots:
            slots.suspicion.left(task.id)
        self._count(**{view.state.value: 1})
        self.on_ended(view)
        if not self.active:
            self.emptied.set()

    def _count(self, **more: int) -> None:
        counted = {name: getattr(self.totals, name) + n for name, n in more.items()}
        self.totals = self.totals.model_copy(update=counted)
