"""Starting what the broker gives, on an engine or as a call, and taking in what calls did."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from typing import Any, NamedTuple

from msgspec.structs import replace

from llmtaskpool_worker.brokers.protocol import (
    Claim,
    Head,
    Held,
    Line,
    Release,
    Unavailable,
    Wanted,
)
from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.engines.protocol import AdmitEmbedding, AdmitForward
from llmtaskpool_worker.execution.active_task import (
    ActiveTask,
    admit_message,
    inputs_message,
    sound_message,
)
from llmtaskpool_worker.execution.calls import Calls
from llmtaskpool_worker.execution.engine_slots import EngineSlots, model_of
from llmtaskpool_worker.execution.lanes import Lane
from llmtaskpool_worker.execution.ledger import TaskLedger
from llmtaskpool_worker.execution.making_way import MakingWay
from llmtaskpool_worker.execution.niceness import Niceness
from llmtaskpool_worker.execution.references import with_results
from llmtaskpool_worker.execution.thread_sharing import Free, ThreadSharing
from llmtaskpool_worker.kinds.registry import CallContext, HandlerError, Kind, Kinds
from llmtaskpool_worker.scheduling.cost import CostClass, CostModel
from llmtaskpool_worker.scheduling.nature import Nature
from llmtaskpool_worker.scheduling.priority import priority
from llmtaskpool_worker.scheduling.task import (
    Call,
    Evaluate,
    Forward,
    Generate,
    Result,
    Returned,
    TaskError,
    Transcribe,
)
from llmtaskpool_worker.text.forwarded import ForwardedChoice
from llmtaskpool_worker.text.generated import GenerationText
from llmtaskpool_worker.text.spoken import SpokenText

LEASE_SECONDS = 15.0
"""What a worker has claimed is taken for lost when it was not heard of for so long."""


class _Places(NamedTuple):
    """What may start: ``most`` in all and of each group as many as are ``free``, as of now.

    ``for_urgent``: whether one of them was made for an urgent task.
    """

    most: Callable[[], int]
    free: Free
    for_urgent: Callable[[], bool]


class Running:
    """Fills the lanes' free threads. ``tokenizers`` are looked up when a task starts.

    ``timeout_seconds`` bounds every run. ``ends`` says whether only what ends with this worker is
    claimed any more. ``worker`` and ``fences`` make the texts of its claims.
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
        worker: str,
        fences: str,
        ends: Callable[[], bool],
    ) -> None:
        self._ledger, self._slots, self._lanes = ledger, slots, lanes
        self._kinds, self._nature, self._cost = kinds, nature, cost
        self._tokenizers = tokenizers
        self._clock = clock
        self._making_way = making_way
        self._timeout_seconds = timeout_seconds
        self._worker, self._fences, self._ends = worker, fences, ends
        self._asked = itertools.count(1)
        self._request_ids = itertools.count(1)
        self._calls = Calls()
        self.place_is_free: Callable[[Lane], None] = lambda _: None
        """Called when a handler has ended and its thread is free."""
        self._sharing = ThreadSharing(ledger.broker, slots, self.free, self.groups)
        self.niceness = Niceness(lanes[LaneName.COMPUTE], slots, clock)
        self._alone: ActiveTask | None = None
        """What runs alone, or does so as soon as nothing else runs."""

    def wanted(
        self,
        lane: Lane,
        most: int,
        *,
        above: float = 0.0,
        by_age: bool = True,
        free: Free | None = None,
    ) -> Wanted:
        """What the broker is asked for a lane's free threads.

        Who outranks whom among those that run is P alone: tenants' shares count in the ordinary
        turn.
        """
        shared = self._ledger.broker.shared
        return Wanted(
            self._worker,
            f"{self._fences}.{next(self._asked)}",
            lane.name,
            self.groups(lane) if shared else tuple(self._slots),
            free or self.free,
            most,
            self.load_of,
            LEASE_SECONDS if shared else inf,
            above,
            by_age,
            self._ends(),
            self._ledger.tenants.favour() if by_age and above <= 0 else None,
        )

    def groups(self, lane: Lane) -> tuple[str, ...]:
        """What this worker can run in a lane: its models, and its kinds that belong there."""
        kinds = (name for name in self._kinds.names() if self._nature.lane(name) is lane.name)
        return (*(self._slots if lane.name is LaneName.COMPUTE else ()), *kinds)

    def free(self, group: str | None) -> int:
        """How many more of a group could start."""
        slots = self._slots.get(model_of(group))
        if slots is not None:
            return slots.free(group)
        return 1 << 30 if self._kinds.get(group or "") is not None else 0

    def load_of(self, line: Line) -> float:
        """T of the tasks of a line, in thread-seconds."""
        return self._cost.load(CostClass.of(line.cost_class))

    def progressing(self) -> list[Held]:
        """The claims whose engines have not stood still for a whole lease."""
        now = self._clock()
        return [
            task.held
            for task in self._ledger.active.values()
            if task.slots is None or task.slots.stalled_for(now) < LEASE_SECONDS
        ]

    async def fill(self, lane: Lane) -> None:
        """Start what is to start: of what is claimed and waits here, and of what the broker gives.

        Raises Unavailable.
        """
        now = self._clock()
        for item in lane.held.expired(now):
            self._too_late(self._ledger.active[item.id])
        if self._stands_aside():
            return
        if parts := self._sharing.guaranteed(lane):
            free = self._sharing.room(lane, parts)
            most = sum(parts.values())
            await self._fill(lane, _Places(lambda: most, free, for_urgent=lambda: False), now)
        places = _Places(lambda: lane.free_threads, self.free, lambda: self._for_urgent(lane))
        await self._fill(lane, places, now)

    async def _fill(self, lane: Lane, places: _Places, now: float) -> None:
        def has_place(group: str | None) -> bool:
            return places.free(group) > 0

        while (most := places.most()) > 0:
            first = lane.held.most_urgent(has_place) if len(lane.held) else None
            if first is None:
                await self._claim(lane, most, 0.0, places)
                return
            urgent, due = places.for_urgent(), lane.held.aged_is_due(now, has_place)
            rank = priority(first.weight, self._cost.load(first.cost_class))  # type: ignore[arg-type]  # as held
            if (urgent or not due) and (started := await self._claim(lane, 1, rank, places)):
                lane.held.started_elsewhere(self._cost.load(started[0].cost_class), now)
                continue
            mine = lane.held.take(now, has_place)
            if mine is None:
                return
            self._start(self._ledger.active[mine.id])

    async def _claim(
        self, lane: Lane, most: int, above: float, places: _Places
    ) -> list[ActiveTask]:
        by_age = not places.for_urgent()
        claims = await self._ledger.broker.claim(
            self.wanted(lane, most, above=above, by_age=by_age, free=places.free)
        )
        if claims and not by_age:
            self._making_way.made_for_urgent = False
        whole = await self._with_results(claims)
        return [self._begin(claim, lane, places) for claim in whole]

    async def _with_results(self, claims: Sequence[Claim]) -> list[Claim]:
        """Claims with what they ask for of their parents; those that can't have it now go back."""
        whole = []
        for claim in claims:
            try:
                whole.append(await with_results(claim, self._ledger.broker))
            except Unavailable as away:
                released = Release(claim.id, claim.fence, away.reason, counts=False)
                self._ledger.desk.release(released, bound=claim.request.attended)
        return whole

    def _for_urgent(self, lane: Lane) -> bool:
        return lane.name is LaneName.COMPUTE and self._making_way.made_for_urgent

    def _begin(self, claim: Claim, lane: Lane, places: _Places | None = None) -> ActiveTask:
        """A task is ours: it starts, or waits here when its place went while we asked for it."""
        task = self._take(claim, lane)
        if self._stands_aside():
            # It would be taken for lost with the one that runs, if that takes this worker along.
            self._ledger.give_back(task, "another one runs alone")
        elif claim.alone:
            self._alone = task
            self._stands_aside()
        elif places is not None and places.most() > 0 and places.free(claim.group) > 0:
            self._start(task)
        else:
            self._ledger.wait_here(task, claim.group, inf)
        return task

    def _take(self, claim: Claim, lane: Lane) -> ActiveTask:
        self._ledger.tenants.started(claim.line.tenant, self.load_of(claim.line))
        return self._ledger.claimed(claim, lane, CostClass.of(claim.line.cost_class))

    @property
    def one_runs_alone(self) -> bool:
        """Whether nothing else is to be started now."""
        return self._stands_aside()

    def _stands_aside(self) -> bool:
        """Whether a task runs alone now, or does so as soon as all others have ended."""
        task = self._alone
        if task is None or not self._ledger.holds(task):
            return False
        nobody = not any(lane.running for lane in self._lanes.values())
        group = task.claim.group if task.waiting is None else task.waiting.group
        if not task.runs and nobody and self.free(group) > 0:
            task.lane.held.cancel(task.id)
            self._start(task)
        return True

    async def start_urgent(self, head: Head) -> None:
        """Start one out of its turn: whoever calls this has a place for it beyond N.

        Raises Unavailable.
        """
        lane = self._lanes[LaneName.COMPUTE]
        if lane.held.cancel(head.id) is not None:
            self._start(self._ledger.active[head.id])
            return
        just_below = head.priority * (1 - 1e-9)
        wanted = replace(
            self.wanted(lane, 1, above=just_below),
            groups=(head.group,),
            free=lambda group: int(group == head.group),
        )
        for claim in await self._ledger.broker.claim(wanted):
            if claim.alone:
                self._begin(claim, lane)
            else:
                self._start(self._take(claim, lane))

    def close(self) -> None:
        """Let the threads of calls go."""
        self._calls.close()

    def _too_late(self, task: ActiveTask) -> None:
        """It was to run again, and could not."""
        task.waiting, crashed = None, "the engine crashed and was not back in time"
        self._ledger.commit(
            task,
            TaskError("timeout", crashed if task.crashes else "it could not run again in time"),
        )

    def _start(self, task: ActiveTask) -> None:
        if task.parked_at is not None:
            self._making_way.resume(task)
            return
        holder = self._sharing.holder_of(task.claim.group)
        self._ledger.start(task, min(task.claim.run_seconds, self._timeout_seconds))
        task.request_id = next(self._request_ids)
        task.lane.began(task.request_id, task.id, holder, task.request.weight)
        self.niceness.look()
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
            task.told_tokens = 0
            self._making_way.began(slots, task)
            slots.engine.send(AdmitForward(task.request_id, payload.route, payload.body))
        elif isinstance(payload, Transcribe):
            codec, about = self._tokenizers[slots.name], slots.about
            task.text = SpokenText(
                payload, codec.detokenizer(), codec.decode, about.get("text_below", 1 << 31)
            )
            slots.engine.send(sound_message(task.request_id, payload))
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
        if self._ledger.holds(task):
            if calling.cancelled():  # by itself: what we cancel has ended before
                outcome: Result | TaskError = TaskError(
                    "handler_failed", "the handler raised CancelledError"
                )
            else:
                outcome = calling.result()
            self._ledger.commit(task, outcome)
        self.place_is_free(task.lane)
