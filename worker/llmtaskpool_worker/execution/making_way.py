"""Urgent tasks find a place: beyond N at a server, or that of one that makes way for them.

A task that made way stays claimed, with its text, and goes on later where it stood: to its
readers it is a slow one. In the engine it is parked; in its lane's queue it waits for a thread as
all others do. A server can't park: there a request whose answer nobody has read is left, and runs
again from its beginning. So a server has places for urgent ones (reserve.py), and one is left only
when these are full.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from llmtaskpool_worker.brokers.protocol import Head, Wanted
from llmtaskpool_worker.engines.protocol import Park, Resume
from llmtaskpool_worker.execution.active_task import ActiveTask
from llmtaskpool_worker.execution.engine_slots import EngineSlots
from llmtaskpool_worker.execution.lanes import Lane
from llmtaskpool_worker.execution.ledger import TaskLedger
from llmtaskpool_worker.scheduling.cost import FORWARD_PRIOR_TOKENS, CostModel
from llmtaskpool_worker.scheduling.preemption import (
    Occupant,
    Preemption,
    expected_tokens_left,
    who_makes_way,
)
from llmtaskpool_worker.scheduling.priority import priority
from llmtaskpool_worker.scheduling.reserve import beyond, is_urgent, yields
from llmtaskpool_worker.scheduling.task import WHOLE_ROUTES, Forward, Generate
from llmtaskpool_worker.scheduling.task_queue import Waiting


class MakingWay:
    """Looks whether the most urgent in the queue should have the place of one that runs."""

    def __init__(
        self,
        ledger: TaskLedger,
        slots: Mapping[str, EngineSlots],
        lane: Lane,
        cost: CostModel,
        rule: Preemption,
        clock: Callable[[], float],
    ) -> None:
        self._ledger, self._slots, self._lane = ledger, slots, lane
        self._cost, self._rule, self._clock = cost, rule, clock
        self._asked: int | None = None
        """The run that was asked to make way and goes on still: one at a time."""
        self.made_for_urgent = False
        """Whether the next free thread was made for an urgent one, and not for the aged."""

    async def look(self, wanted: Wanted, start: Callable[[Head], Awaitable[None]]) -> None:
        """Find a place for the most urgent that waits: ``start`` takes and starts it beyond N.

        ``wanted``: the broker is asked by it who is the most urgent in line.
        """
        if self._ledger.broker.shared:  # its groups are kinds too, for which nobody makes way
            wanted = wanted._replace(groups=tuple(self._slots))
        in_line = await self._ledger.broker.peek(wanted)
        waiting = self._most_urgent(in_line)
        if waiting is None:
            return
        slots = self._slots[waiting.group]
        if slots.ready is None or slots.suspicion.tried is not None or slots.memory.leaving:
            return  # a place that is made would not be given
        if self._lane.free_threads and slots.free(waiting.group):
            return
        if slots.seats is not None and self._goes_beyond(slots, waiting.priority):
            await start(waiting)
            return
        if slots.seats is not None and not self._has_room(slots, leaving=1):
            return  # nothing can be sent, so one that left would leave for nothing
        if self._asked in self._lane.running or not self._outranks_any(slots, waiting.priority):
            return
        asked = who_makes_way(waiting.priority, self._occupants(slots), self._rule)
        if asked is None:
            return
        if waiting is in_line and not await self._ledger.broker.promise(waiting):
            return
        task = self._ledger.active.get(asked)  # a shared broker has taken its time
        if task is not None and task.runs and self._asked not in self._lane.running:
            self._asked = task.request_id
            slots.engine.send(Park(self._asked))
            self.made_for_urgent = True

    def _most_urgent(self, in_line: Head | None) -> Head | None:
        """Of those in line and those that are claimed and wait here."""
        held = self._lane.held.most_urgent(lambda name: name in self._slots)
        if held is None:
            return in_line
        task = self._ledger.active[held.id]
        rank = priority(held.weight, self._cost.load(task.cost_class))
        if in_line is not None and in_line.priority >= rank:
            return in_line
        return Head(held.id, held.group or "", rank)

    def _goes_beyond(self, slots: EngineSlots, urgent: float) -> bool:
        """Whether one of P ``urgent`` is to be sent to a server beyond its N, now."""
        assert slots.seats is not None  # noqa: S101 - the caller has looked
        running = self._ledger.all_at_work(slots.in_flight)
        if not is_urgent(urgent, map(self._rank, running), self._rule.factor):
            return False
        now = self._clock()
        slots.seats.urgent_came(now)
        slots.bound(now)
        return self._has_room(slots, leaving=0)

    def _has_room(self, slots: EngineSlots, leaving: int) -> bool:
        """Whether an urgent one could be sent once so many of those that run have left."""
        lane = self._lane
        most = lane.threads + beyond(lane.threads)
        return slots.free_for_urgent(leaving) and len(lane.running) - leaving < most

    def began(self, slots: EngineSlots, task: ActiveTask) -> None:
        """One is on its way to a server; those of low weight have a place kept from them."""
        if slots.seats is not None and yields(task.request.weight, self._rule.factor):
            now = self._clock()
            slots.seats.yielding_came(now)
            payload = task.request.payload
            if isinstance(payload, Forward) and payload.route not in WHOLE_ROUTES:
                slots.unread[task.request_id] = now
            slots.bound(now)

    def parked(self, task: ActiveTask) -> None:
        """The engine has put a task aside: it waits for a thread again."""
        self._asked = None
        task.parked_at = self._clock()
        task.made_way += 1
        claim = task.claim
        item = Waiting(
            id=task.id,
            group=claim.group,
            cost_class=task.cost_class,
            weight=claim.request.weight,
            arrived_at=claim.submitted_at,
            sequence=task.number,
        )
        task.waiting = item
        self._lane.held.restore([item])

    def resume(self, task: ActiveTask) -> None:
        """A thread is free for it: it goes on where it stood, and its time with it."""
        assert task.slots is not None  # noqa: S101 - only generations are parked
        assert task.parked_at is not None  # noqa: S101 - the caller has looked
        now = self._clock()
        task.deadline += now - task.parked_at
        task.parked_at = task.waiting = None
        task.lane.began(task.request_id, task.id, task.slots.name, task.request.weight)
        task.slots.began(task.request_id, task.id, now)
        task.slots.engine.send(Resume(task.request_id))

    def _outranks_any(self, slots: EngineSlots, urgent: float) -> bool:
        """Whether there is anybody for ``who_makes_way`` to choose from: it is cheaper to ask."""
        running = self._ledger.all_at_work(slots.in_flight)
        return any(urgent >= self._rule.factor * self._rank(task) for task in running)

    def _rank(self, task: ActiveTask) -> float:
        return priority(task.request.weight, self._cost.load(task.cost_class))

    def _occupants(self, slots: EngineSlots) -> list[Occupant]:
        step = self._cost.step_seconds(slots.name, len(slots.in_flight))
        found = []
        for task in self._ledger.all_at_work(slots.in_flight):
            most = self._most_tokens(task)
            if most is None:
                continue
            expected = self._cost.expected_tokens(task.cost_class)
            left = expected_tokens_left(expected, task.drawn, most)
            rank = self._rank(task)
            found.append(Occupant(task.id, rank, left * step, task.made_way, task.drawn))
        return found

    def _most_tokens(self, task: ActiveTask) -> int | None:
        """The most that a task draws; None for one that can't make way."""
        payload = task.request.payload
        if isinstance(payload, Generate) and task.text is not None:
            return payload.max_tokens
        if isinstance(payload, Forward) and payload.route not in WHOLE_ROUTES:
            most = payload.max_tokens or FORWARD_PRIOR_TOKENS
            return most if self._ledger.may_run_again(task) else None
        return None
