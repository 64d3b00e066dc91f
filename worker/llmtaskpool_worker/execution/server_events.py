"""What servers behind models report, and what it means for tasks: answers, ends, refusals."""

from __future__ import annotations

from collections.abc import Callable

from llmtaskpool_worker.engines.protocol import (
    Answered,
    ConnectionLost,
    FromServer,
    Gauges,
    Piece,
    TurnedAway,
)
from llmtaskpool_worker.execution.active_task import ActiveTask
from llmtaskpool_worker.execution.engine_slots import EngineSlots
from llmtaskpool_worker.execution.lanes import Lane
from llmtaskpool_worker.execution.ledger import TaskLedger
from llmtaskpool_worker.scheduling.cost import CostModel
from llmtaskpool_worker.scheduling.seats import CACHE_FULL
from llmtaskpool_worker.scheduling.task import WHOLE_ROUTES, Forward, Forwarded, TaskError

QUEUED_INSIDE = 2
"""So many waiting in the server keep a successor ready; more is order that we have lost."""
CACHE_PARTS = 10_000
LEFT = ("cancelled", "parked")
"""Reasons of an end that is not the server's."""


class ServerEvents:
    """Takes in one event after the other. ``lane`` is that of the engines."""

    def __init__(
        self, ledger: TaskLedger, cost: CostModel, clock: Callable[[], float], lane: Lane
    ) -> None:
        self._ledger, self._cost, self._clock, self._lane = ledger, cost, clock, lane

    def take_in(self, slots: EngineSlots, happened: FromServer) -> None:
        """One event of the server behind ``slots``."""
        match happened:
            case Piece(id=request_id, choice=choice, tokens=tokens):
                slots.moved(self._clock())
                slots.unread.pop(request_id, None)
                task = self._ledger.at_work(slots.in_flight.get(request_id), request_id)
                if task is not None and task.forwarded is not None:
                    self._took(slots)
                    self._drew(slots, task, tokens)
                    self._ledger.publish(task, task.forwarded.push(choice))
            case Answered(id=request_id, reason=reason):
                slots.moved(self._clock())
                share = slots.shared_until(self._clock())
                task = self._answers(slots, request_id, happened)
                if task is not None and reason == "parked":
                    task.made_way += 1
                    why = "it made way for an urgent one; it begins again"
                    self._ledger.hold([task], why, slots.group_of)
                elif task is not None and reason != "cancelled":
                    self._took(slots)
                    self._answered(task, happened, share - task.share_began)
            case TurnedAway(id=request_id, retry_after_seconds=seconds):
                slots.moved(self._clock())
                task = self._of(slots, request_id)
                if slots.seats is not None:
                    slots.seats.refused(len(slots.in_flight), seconds, self._clock())
                self.settle(slots)
                if task is not None:
                    why = "the server behind the model has enough; waiting"
                    self._ledger.give_back(task, why)
            case ConnectionLost(id=request_id):
                task = self._of(slots, request_id)
                if task is not None:
                    self._lost(slots, task)
            case Gauges():
                self._gauges(slots, happened)

    def _drew(self, slots: EngineSlots, task: ActiveTask, tokens: int) -> None:
        """Learn from tokens that came: with the first ones its prompt was read."""
        if slots.seats is None or not tokens:
            return
        now, threads = self._clock(), self._lane.threads
        delivery = slots.seats.delivery
        if not task.told_tokens:
            slots.seats.take_in(delivery.read(self._prompt(task), now), threads, now)
        task.told_tokens += tokens
        slots.seats.take_in(delivery.drew(tokens, now), threads, now)

    def _answers(
        self, slots: EngineSlots, request_id: int, answered: Answered
    ) -> ActiveTask | None:
        """The task of a request that ended; what its usage adds to what its chunks told."""
        task = self._ledger.at_work(slots.in_flight.get(request_id), request_id)
        seats, usage = slots.seats, answered.usage or {}
        if task is not None and seats is not None and answered.reason not in LEFT:
            now, threads = self._clock(), self._lane.threads
            if answered.value is None:
                told = task.told_tokens
                drawn = max(told, _whole(usage.get("completion_tokens")))
                # Servers that are in a hurry put several tokens into one chunk.
                seats.take_in(seats.delivery.drew(drawn - told, now), threads, now)
                seats.take_in(seats.delivery.ended(drawn, now), threads, now)
            else:
                read = _whole(usage.get("prompt_tokens")) or self._prompt(task)
                seats.take_in(seats.delivery.answered_at_once(read, now), threads, now)
            details = usage.get("prompt_tokens_details")
            if isinstance(details, dict):
                seats.delivery.was_known(
                    _whole(details.get("cached_tokens")), _whole(usage.get("prompt_tokens"))
                )
        return self._of(slots, request_id)

    def _prompt(self, task: ActiveTask) -> int:
        payload = task.request.payload
        assert isinstance(payload, Forward)  # noqa: S101 - only those are sent to servers
        return self._cost.prompt_tokens(task.request.model, payload)

    def _answered(self, task: ActiveTask, answered: Answered, seconds: float) -> None:
        payload = task.request.payload
        assert isinstance(payload, Forward)  # noqa: S101 - only those are sent to servers
        guess = self._prompt(task)
        if payload.route in WHOLE_ROUTES:
            usage = answered.usage or {"prompt_tokens": guess, "total_tokens": guess}
            result = Forwarded(answered.value, usage)
            self._cost.observe_seconds(task.cost_class, seconds)
        else:
            assert task.forwarded is not None  # noqa: S101 - made at its start
            result = task.forwarded.result(answered.reason, answered.usage, guess)
            self._cost.observe_generated(
                task.cost_class,
                result.completion_tokens,
                result.prompt_tokens,
                result.cached_tokens,
            )
        if answered.usage is not None:
            self._cost.observe_prompt(task.request.model, payload, result.prompt_tokens)
        self._ledger.commit(task, result)

    def _lost(self, slots: EngineSlots, task: ActiveTask) -> None:
        """Its connection broke: it runs again, unless somebody has read what came."""
        task.crashes += 1
        if not self._ledger.may_run_again(task):
            error = TaskError("engine_crashed", "the connection to the upstream broke; try again")
            self._ledger.commit(task, error)
        elif task.crashes >= slots.suspicion.max_attempts:
            error = TaskError(
                "upstream_failed",
                f"the upstream broke the connection in each of {task.crashes} attempts",
            )
            self._ledger.commit(task, error)
        else:
            why = "the connection to the upstream broke; trying again"
            self._ledger.hold([task], why, slots.group_of)

    def _gauges(self, slots: EngineSlots, now_told: Gauges) -> None:
        before, slots.gauges = slots.gauges, now_told
        if slots.seats is None:
            return
        now, ours = self._clock(), len(slots.in_flight)
        preempted = before is not None and (now_told.preemptions or 0) > (before.preemptions or 0)
        if now_told.cache_usage is not None:
            slots.kv_used = round(min(now_told.cache_usage, 1.0) * CACHE_PARTS)
            slots.kv_total = CACHE_PARTS
        if ours and (preempted or (now_told.cache_usage or 0.0) > CACHE_FULL):
            slots.seats.cut(ours, now)
        waited = before is not None and (before.waiting or 0) > QUEUED_INSIDE
        if waited and (now_told.waiting or 0) > QUEUED_INSIDE and now_told.running:
            slots.seats.hold(int(now_told.running) + QUEUED_INSIDE, now)
        self.settle(slots)

    def _took(self, slots: EngineSlots) -> None:
        if slots.seats is not None:
            slots.seats.took()

    def settle(self, slots: EngineSlots) -> None:
        """Look anew how much the server can hold."""
        slots.bound(self._clock())

    def _of(self, slots: EngineSlots, request_id: int) -> ActiveTask | None:
        """The task of a request that the server has no more; None when it has ended meanwhile."""
        task_id = slots.ended(request_id, self._clock())
        self._lane.left(request_id)
        return self._ledger.at_work(task_id, request_id)


def _whole(told: object) -> int:
    """A number of a server's usage; 0 where it is none."""
    return told if type(told) is int and told > 0 else 0
