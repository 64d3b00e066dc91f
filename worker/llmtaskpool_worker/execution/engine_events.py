"""What engines report, and what it means for tasks: text, ends, costs, crashes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from llmtaskpool_worker.contract import ModelProblem
from llmtaskpool_worker.engines.protocol import (
    Answered,
    Beat,
    ConnectionLost,
    EngineDied,
    EngineEvent,
    Gauges,
    LoadFailed,
    Memory,
    Piece,
    Ready,
    RequestFailed,
    Step,
    Token,
    TurnedAway,
    Values,
    Vector,
)
from llmtaskpool_worker.execution.active_task import ActiveTask
from llmtaskpool_worker.execution.engine_slots import EngineSlots
from llmtaskpool_worker.execution.lanes import Lane
from llmtaskpool_worker.execution.ledger import TaskLedger
from llmtaskpool_worker.execution.making_way import MakingWay
from llmtaskpool_worker.execution.server_events import ServerEvents
from llmtaskpool_worker.scheduling.cost import CostModel
from llmtaskpool_worker.scheduling.task import (
    Embedded,
    Evaluate,
    Evaluated,
    FinishReason,
    TaskError,
    TokenLogprob,
)
from llmtaskpool_worker.text.conclusions import conclude
from llmtaskpool_worker.text.generated import GenerationText
from llmtaskpool_worker.text.spoken import SpokenText


class EngineEvents:
    """Takes in one event after the other. ``lane`` is that of the engines.

    ``became_ready`` is called with an engine that did.
    """

    def __init__(
        self,
        ledger: TaskLedger,
        cost: CostModel,
        clock: Callable[[], float],
        lane: Lane,
        making_way: MakingWay,
        *,
        became_ready: Callable[[EngineSlots], None],
    ) -> None:
        self._ledger = ledger
        self._cost = cost
        self._clock = clock
        self._lane, self._making_way = lane, making_way
        self._became_ready = became_ready
        self.server = ServerEvents(ledger, cost, clock, lane)

    def take_in(self, slots: EngineSlots, happened: EngineEvent) -> None:
        """One event of the engine behind ``slots``."""
        slots.heard_at = self._clock()
        match happened:
            case Step():
                self._step(slots, happened)
            case Piece() | Answered() | TurnedAway() | ConnectionLost() | Gauges():
                self.server.take_in(slots, happened)
            case Vector(id=request_id, vector=vector, tokens=tokens):
                task = self._ran(slots, request_id)
                if task is not None:
                    self._ledger.commit(task, Embedded(vector, tokens))
            case Values(id=request_id):
                task = self._ran(slots, request_id)
                if task is not None:
                    self._decode(task, partial(self._evaluated, slots, task, happened))
            case RequestFailed(id=request_id, code=code, message=message):
                task = self._of(slots, request_id)
                if task is not None:
                    self._ledger.commit(task, TaskError(code, message))
            case Memory():
                slots.memory.told(happened)
            case Beat():
                slots.moved(self._clock())
            case Ready():
                slots.ready, slots.was_ready, slots.trouble = happened, True, None
                slots.idle_since = self._clock()
                slots.unhindered.threads = happened.cpu_threads
                slots.memory.began(happened.memory_budget_bytes)
                self._cost.model(slots.name).resize(happened.max_threads)
                self.server.settle(slots)
                self._became_ready(slots)
            case LoadFailed(message=message, retrying_in_seconds=None):
                slots.failure = message
                self._fail_waiting_for(slots)
            case LoadFailed(message=message, retrying_in_seconds=wait):
                slots.heard_at += wait or 0.0
                slots.trouble = ModelProblem(code="retrying", message=message)
            case EngineDied(reason=reason, restarting_in_seconds=wait):
                slots.heard_at += wait
                slots.trouble = ModelProblem(code="restarting", message=reason)
                self._crashed(slots)

    def _step(self, slots: EngineSlots, step: Step) -> None:
        """What one step drew: text for its tasks, ends, and what it cost."""
        slots.steps += 1
        slots.memory.parked = step.parked
        slots.moved(self._clock())
        if slots.seats is None:  # a server tells of its cache in Gauges
            slots.kv_used, slots.kv_total = step.kv_tokens_used, step.kv_tokens_total
        own = slots.unhindered.own_seconds(step.decode_batch, step.seconds, step.cpu_seconds)
        if slots.guard is not None and step.decode_batch:
            slots.guard.observe(own)
        self._cost.observe_step(
            slots.name, step.decode_batch, step.prefill_tokens, step.seconds, own
        )
        for request_id, tokens in step.reused:
            task = self._ledger.at_work(slots.in_flight.get(request_id), request_id)
            if task is not None and isinstance(task.text, GenerationText):
                task.text.cached_tokens = tokens
        for token in step.tokens:
            task = self._ledger.active.get(slots.in_flight.get(token.id, ""))
            if task is not None and task.request_id == token.id:  # as at_work
                try:  # as _decode, written out: each token of each stream comes by here
                    self._draw(task, token)
                except Exception:
                    self._undecodable(task)
        for end in step.finished:
            task = self._of(slots, end.id)
            if task is not None and end.reason == "parked":
                self._making_way.parked(task)
            elif task is not None and end.reason != "cancelled":
                reason: FinishReason = "length" if end.reason == "length" else "stop"
                self._decode(task, partial(self._generated, task, reason))

    def _decode(self, task: ActiveTask, take_in: Callable[[], None]) -> None:
        """Take in tokens of one task; a tokenizer that fails on them fails no other."""
        try:
            take_in()
        except Exception:
            self._undecodable(task)

    def _undecodable(self, task: ActiveTask) -> None:
        if self._ledger.holds(task):
            self._ledger.commit(task, TaskError("decoding_failed", "the answer can't be decoded"))
            self._ledger.stop_running(task)

    def _draw(self, task: ActiveTask, token: Token) -> None:
        text, logprob = task.text, None
        if text is None:
            return
        if token.logprob is not None:
            logprob = TokenLogprob(token.token, token.logprob, tuple(token.top))
        delta = text.push(token.token, logprob)
        if delta is not None:  # as TaskLedger.publish: who has a text runs
            self._ledger.broker.publish(task.held, delta)
        if text.stopped:
            self._generated(task, "stop")
            self._ledger.stop_running(task)

    def _generated(self, task: ActiveTask, reason: FinishReason) -> None:
        text = task.text
        if not isinstance(text, GenerationText):
            return
        delta = text.finish()
        if delta is not None:
            self._ledger.publish(task, delta)
        if text.stopped:
            reason = "stop"
        result = text.result(reason)
        self._cost.observe_generated(
            task.cost_class, text.tokens, result.prompt_tokens, result.cached_tokens
        )
        self._ledger.commit(task, result)

    def _ran(self, slots: EngineSlots, request_id: int) -> ActiveTask | None:
        """The task of a request that a model has run over; what it cost is learned from it."""
        slots.moved(self._clock())
        share = slots.shared_until(slots.progress_at)
        task = self._of(slots, request_id)
        if task is not None:
            self._cost.observe_seconds(task.cost_class, share - task.share_began)
        return task

    def _evaluated(self, slots: EngineSlots, task: ActiveTask, happened: Values) -> None:
        payload, text = task.request.payload, task.text
        if isinstance(text, SpokenText):
            delta = text.finish()
            if delta is not None:
                self._ledger.publish(task, delta)
            self._ledger.commit(task, text.concluded(happened.values))
        elif isinstance(payload, Evaluate):

            def take_in() -> None:
                value = conclude(task.request.kind, payload, happened.values, slots.about)
                self._ledger.commit(task, Evaluated(value, happened.tokens))

            self._decode(task, take_in)

    def _crashed(self, slots: EngineSlots) -> None:
        """The engine died: tell whose output can't be unsaid, suspect the others."""
        slots.ready, slots.asked_at = None, None
        at_work = self._ledger.all_at_work(slots.in_flight)
        lost = sorted(at_work, key=lambda task: (task.claim.submitted_at, task.number))
        alone = len(slots.in_flight) == 1
        for request_id in slots.in_flight:
            self._lane.left(request_id)
        slots.lost_all(self._clock())
        convicted = slots.suspicion.crashed([task.id for task in lost], alone=alone)
        again: list[ActiveTask] = []
        for task in self._parked_of(slots):  # what the engine kept of them is gone too
            task.lane.held.cancel(task.id)
            task.parked_at = task.waiting = None
            self._retry_or_tell(task, again)
        for task in lost:
            task.crashes += 1
            if task.id in convicted:
                error = TaskError(
                    "crashed_engine_repeatedly",
                    f"the engine crashed in each of {task.crashes} attempts at this task",
                )
                self._ledger.commit(task, error)
            else:
                self._retry_or_tell(task, again)
        self._ledger.hold(again, "the engine crashed; trying again", slots.group_of)

    def _retry_or_tell(self, task: ActiveTask, again: list[ActiveTask]) -> None:
        """A task of a crash runs again, unless somebody has read what it drew."""
        if self._ledger.may_run_again(task):
            again.append(task)
        else:
            self._ledger.commit(task, TaskError("engine_crashed", "the engine crashed; try again"))

    def _parked_of(self, slots: EngineSlots) -> list[ActiveTask]:
        waiting = (self._ledger.active.get(item.id) for item in self._lane.held)
        return [
            t for t in waiting if t is not None and t.parked_at is not None and t.slots is slots
        ]

    def _fail_waiting_for(self, slots: EngineSlots) -> None:
        """The model will not be there again: tell those who wait for it."""
        error = TaskError("model_failed", f"the model {slots.name} could not be loaded")
        for task in list(self._ledger.active.values()):
            if not task.runs and task.request.model == slots.name:
                self._ledger.commit(task, error)
        self._ledger.desk.give_up(error, slots.name, self._ledger.ended)

    def _of(self, slots: EngineSlots, request_id: int) -> ActiveTask | None:
        """The task of a request that left the engine; None when it has ended meanwhile."""
        task_id = slots.ended(request_id, self._clock())
        self._lane.left(request_id)
        return self._ledger.at_work(task_id, request_id)
