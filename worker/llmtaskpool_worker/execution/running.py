"""Starting what the scheduler decides, on an engine or as a call, and taking in what calls did."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.engines.protocol import AdmitEmbedding, AdmitForward
from llmtaskpool_worker.execution.active_task import ActiveTask, admit_message, inputs_message
from llmtaskpool_worker.execution.calls import Calls
from llmtaskpool_worker.execution.engine_slots import EngineSlots, model_of
from llmtaskpool_worker.execution.lanes import Lane
from llmtaskpool_worker.execution.ledger import TaskLedger
from llmtaskpool_worker.execution.making_way import MakingWay
from llmtaskpool_worker.kinds.registry import CallContext, HandlerError, Kind, Kinds
from llmtaskpool_worker.scheduling.cost import CostModel
from llmtaskpool_worker.scheduling.nature import Nature
from llmtaskpool_worker.scheduling.scheduler import Expire, schedule
from llmtaskpool_worker.scheduling.task import (
    Call,
    Evaluate,
    Forward,
    Generate,
    Result,
    Returned,
    TaskError,
    TaskState,
)
from llmtaskpool_worker.text.forwarded import ForwardedChoice
from llmtaskpool_worker.text.generated import GenerationText


class Running:
    """Fills the lanes' free threads. ``tokenizers`` are looked up when a task starts.

    ``timeout_seconds`` bounds every run.
    """

    def __init__(
        self,
        ledger: TaskLedger,
        slots: Mapping[str, EngineSlots],
        lanes: Mapping[LaneName, Lane],
        *,
        kinds: Kinds,
        nature: Nature,
        cost: CostModel,
        tokenizers: Mapping[str, Any],
        clock: Callable[[], float],
        making_way: MakingWay,
        timeout_seconds: float,
    ) -> None:
        self._ledger, self._slots, self._lanes = ledger, slots, lanes
        self._kinds, self._nature, self._cost = kinds, nature, cost
        self._tokenizers = tokenizers
        self._clock = clock
        self._making_way = making_way
        self._timeout_seconds = timeout_seconds
        self._request_ids = itertools.count(1)
        self._calls = Calls()

    def schedule(self, *lanes: Lane) -> None:
        """Start and expire what the scheduler decides."""
        for lane in lanes:
            decided = schedule(lane.queue, lane.free_threads, self._free_of_group, self._clock())
            for decision in decided:
                task = self._ledger.active[decision.task.id]
                if isinstance(decision, Expire):
                    self._expire(task)
                else:
                    self._start(task)

    def start(self, task: ActiveTask) -> None:
        """Start a waiting task out of its turn: whoever calls this has a place for it."""
        task.lane.queue.cancel(task.id)
        self._start(task)

    def close(self) -> None:
        """Let the threads of calls go."""
        self._calls.close()

    def _free_of_group(self, group: str | None) -> int:
        slots = self._slots.get(model_of(group))
        return 1 << 30 if slots is None else slots.free(group)

    def _expire(self, task: ActiveTask) -> None:
        if task.crashes:
            error = TaskError("timeout", "the engine crashed and was not back in time")
            self._ledger.finish_waiting(task, TaskState.FAILED, error)
        else:
            error = TaskError("queue_timeout", "the task waited longer than it may")
            self._ledger.finish_waiting(task, TaskState.EXPIRED, error)

    def _start(self, task: ActiveTask) -> None:
        if task.parked_at is not None:
            self._making_way.resume(task)
            return
        timeout = task.request.timeout_seconds or self._timeout_seconds
        self._ledger.start(task, min(timeout, self._timeout_seconds))
        task.request_id = next(self._request_ids)
        task.lane.began(task.request_id, task.id)
        payload = task.request.payload
        if isinstance(payload, Call):
            self._begin_call(task, payload)
            return
        slots = task.slots = self._slots[task.request.model or ""]
        slots.began(task.request_id, task.id, task.began_at)
        task.share_began = slots.shared_until(task.began_at)
        if isinstance(payload, Generate):
            detokenizer = self._tokenizers[slots.name].detokenizer()
            task.text = GenerationText(payload, detokenizer)
            slots.engine.send(admit_message(task.request_id, payload))
        elif isinstance(payload, Forward):
            task.forwarded = ForwardedChoice(chat=payload.route == "chat/completions")
            slots.engine.send(AdmitForward(task.request_id, payload.route, payload.body))
        elif isinstance(payload, Evaluate):
            slots.engine.send(inputs_message(task.request_id, payload))
        else:
            slots.engine.send(AdmitEmbedding(task.request_id, list(payload.tokens)))

    def _begin_call(self, task: ActiveTask, payload: Call) -> None:
        kind = self._kinds.get(task.request.kind)
        assert kind is not None  # noqa: S101 - checked at acceptance
        task.context = CallContext(task.id, task.deadline)
        task.on_loop = self._calls.on_loop(kind, task.lane.name)
        task.calling = asyncio.create_task(self._call(task, kind, payload, task.context))
        # Not at the coroutine's end: one that is cancelled before its first step has none.
        task.calling.add_done_callback(partial(self._call_ended, task))

    async def _call(
        self, task: ActiveTask, kind: Kind, payload: Call, context: CallContext
    ) -> Result | TaskError:
        if context.cancelled:
            return TaskError("cancelled", "the task was cancelled before its handler began")
        try:
            ran = await self._calls.run(kind, task.lane.name, payload.arguments, context)
            wall = self._clock() - task.began_at
            self._nature.observe(kind.name, ran.compute_seconds, wall - ran.compute_seconds)
            self._cost.observe_seconds(task.cost_class, wall)
            return Returned(ran.value)
        except HandlerError as error:
            return TaskError(error.code, error.message)
        except (Exception, SystemExit) as error:
            # What it says may hold anything: its type must do for the client.
            return TaskError("handler_failed", f"the handler raised {type(error).__name__}")

    def _call_ended(self, task: ActiveTask, calling: asyncio.Task[Result | TaskError]) -> None:
        """A handler let go of its task, however: by its end, cancelled, or never begun."""
        task.lane.left(task.request_id)
        if task.id in self._ledger.active:
            if calling.cancelled():  # by itself: what we cancel has ended before
                outcome: Result | TaskError = TaskError(
                    "handler_failed", "the handler raised CancelledError"
                )
            else:
                outcome = calling.result()
            self._ledger.commit(task, outcome)
        self.schedule(task.lane)
