"""A TaskPool without engines: tests say when its tasks run, speak and end."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator, Sequence

from llmtaskpool_worker.brokers.memory import MEMORY
from llmtaskpool_worker.contract import (
    DrainAnswer,
    LaneName,
    LaneState,
    Phase,
    ThreadsAnswer,
    Totals,
    WorkerState,
)
from llmtaskpool_worker.execution.pool import Rejected, StaleGeneration
from llmtaskpool_worker.kinds.registry import ENGINE_KINDS
from llmtaskpool_worker.scheduling.task import (
    TERMINAL,
    Embed,
    Embedded,
    Evaluate,
    Evaluated,
    Generate,
    Generated,
    Result,
    Returned,
    StateChanged,
    TaskError,
    TaskEvent,
    TaskRequest,
    TaskState,
    TaskView,
    TextDelta,
)
from llmtaskpool_worker.text.conclusions import conclude
from msgspec.structs import replace


class FakePool:
    """``script`` is called for every accepted task, in a task of its own, with a Running."""

    def __init__(
        self,
        clock,
        *,
        queue_limit=100,
        models=("echo", "vectors"),
        script=None,
        keep_ended=10_000,
    ):
        self.clock = clock
        self.queue_limit = queue_limit
        self.phase = Phase.READY
        self.is_alive = True
        self.model_problems = {}
        self.generation = 0
        self.threads = {LaneName.COMPUTE: 4, LaneName.IO: 8}
        self.requests: list[TaskRequest] = []
        self.views: dict[str, TaskView] = {}
        self.drained_with: float | None = None
        self._log: dict[str, list[TaskEvent]] = {}
        self._changed: dict[str, asyncio.Event] = {}
        self._running: dict[str, asyncio.Task] = {}
        self._keys: dict[str, str] = {}
        self._held: set[str] = set()
        self._count = 0
        self._keep_ended = keep_ended
        self._models = models
        self.durability = MEMORY
        self._script = script or answer_prompt

    def held(self) -> int:
        """Tasks that have not ended."""
        return len(self._held)

    async def submit(self, request):
        if self.phase is Phase.DRAINING:
            raise Rejected("draining", "This worker drains.", retry_after_seconds=1.0)
        if self.phase is Phase.STARTING:
            raise Rejected("starting", "This worker starts.", retry_after_seconds=2.0)
        if self.held() >= self.queue_limit:
            raise Rejected("queue_full", "The queue is full.", retry_after_seconds=1.5)
        if request.kind not in (*ENGINE_KINDS, "sum"):
            raise Rejected("unknown_kind", "The kind is unknown.", field="kind")
        if request.idempotency_key in self._keys:
            return self.views[self._keys[request.idempotency_key]]
        self._forget()
        task_id = f"t{self._count}"
        self._count += 1
        self._held.add(task_id)
        if request.idempotency_key is not None:
            self._keys[request.idempotency_key] = task_id
        self.requests.append(request)
        self.views[task_id] = TaskView(
            id=task_id,
            kind=request.kind,
            lane=LaneName.COMPUTE,
            model=request.model,
            state=TaskState.QUEUED,
            weight=request.weight,
            load_seconds=0.5,
            priority=request.weight / 0.5,
            submitted_at=self.clock(),
            result_expires_at=None if request.attended else self.clock() + 600,
            labels=request.labels,
        )
        self._log[task_id] = [StateChanged(TaskState.QUEUED)]
        self._changed[task_id] = asyncio.Event()
        self._running[task_id] = asyncio.create_task(self._script(Running(self, task_id, request)))
        return self.views[task_id]

    def _forget(self) -> None:
        del self.requests[: -self._keep_ended]
        if len(self.views) - len(self._held) > self._keep_ended:
            oldest = next(i for i in self.views if i not in self._held)
            for kept in (self.views, self._log, self._changed, self._running):
                del kept[oldest]

    def push(self, task_id: str, happened: TaskEvent, **changes) -> None:
        if self.views[task_id].state in TERMINAL:
            return
        if isinstance(happened, StateChanged):
            changes["state"] = happened.state
            if happened.state in TERMINAL:
                self._held.discard(task_id)
                changes["ended_at"] = self.clock()
        self.views[task_id] = replace(self.views[task_id], **changes)
        self._log[task_id].append(happened)
        changed, self._changed[task_id] = self._changed[task_id], asyncio.Event()
        changed.set()

    async def get(self, task_id):
        return self.views.get(task_id)

    async def list(self, asked):
        found = [view for view in reversed(self.views.values()) if view.state in asked.states]
        return found[: asked.limit]

    async def replay(self, task_id):
        """None of its tasks is ever lost."""

    async def wait(self, task_id):
        while self.views[task_id].state not in TERMINAL:
            await self._changed[task_id].wait()
        return self.views[task_id]

    async def events(self, task_id) -> AsyncIterator[TaskEvent]:
        seen = 0
        log = self._log[task_id]
        while True:
            while seen < len(log):
                yield log[seen]
                seen += 1
                if isinstance(log[seen - 1], StateChanged) and log[seen - 1].state in TERMINAL:
                    return
            await self._changed[task_id].wait()

    async def cancel(self, task_id):
        self.abandon(task_id)
        return self.views.get(task_id)

    def abandon(self, task_id):
        view = self.views.get(task_id)
        if view is not None and view.state not in TERMINAL:
            self._running[task_id].cancel()
            self.push(task_id, StateChanged(TaskState.CANCELLED))

    def let_go(self, task_id):
        """Its tasks are kept by number."""

    def set_threads(self, generation, threads):
        if generation < self.generation:
            raise StaleGeneration(self.generation)
        self.generation = generation
        self.threads |= threads
        return ThreadsAnswer(generation=generation, threads=self.threads)

    def drain(self, budget_seconds):
        self.phase = Phase.DRAINING
        self.drained_with = budget_seconds
        return DrainAnswer(phase=self.phase, active=self.held(), queued=0)

    def state(self):
        ended = [view.state for view in self.views.values()]
        return WorkerState(
            worker_id="fake",
            started_at=0.0,
            observed_at=self.clock(),
            phase=self.phase,
            threads_generation=self.generation,
            lanes={
                name: LaneState(
                    threads=n,
                    threads_cap=64,
                    active=self.held() if name is LaneName.COMPUTE else 0,
                    queued=0,
                    queue_limit=self.queue_limit,
                )
                for name, n in self.threads.items()
            },
            totals=Totals(accepted=len(ended), cancelled=ended.count(TaskState.CANCELLED)),
            models=self._models,
        )

    def alive(self):
        return self.is_alive

    def problems(self):
        return self.model_problems

    def models(self) -> Sequence[str]:
        return self._models


class Running:
    """One accepted task in the hands of a script."""

    def __init__(self, pool: FakePool, task_id: str, request: TaskRequest) -> None:
        self.pool = pool
        self.id = task_id
        self.request = request

    def start(self) -> None:
        self.pool.push(
            self.id, StateChanged(TaskState.RUNNING), started_at=self.pool.clock(), attempts=1
        )

    def say(self, text: str, *tokens: int, logprobs=()) -> None:
        self.pool.push(self.id, TextDelta(text, tokens, tuple(logprobs)))

    def succeed(self, result: Result) -> None:
        self.pool.push(self.id, StateChanged(TaskState.SUCCEEDED), result=result)

    def fail(self, code: str, message: str) -> None:
        self.pool.push(self.id, StateChanged(TaskState.FAILED), error=TaskError(code, message))

    def expire(self) -> None:
        self.pool.push(self.id, StateChanged(TaskState.EXPIRED))


async def answer_prompt(run: Running) -> None:
    """Echo the prompt's tokens, up to max_tokens; embed as the numbers 1, 2, 3."""
    run.start()
    payload = run.request.payload
    if isinstance(payload, Generate):
        tokens = payload.prompt[: payload.max_tokens]
        parts = [f"{token} " for token in tokens]
        for token, part in zip(tokens, parts, strict=True):
            run.say(part, token)
            await asyncio.sleep(0)
        reason = "length" if len(tokens) == payload.max_tokens else "stop"
        run.succeed(Generated("".join(parts), tokens, len(payload.prompt), reason))
    elif isinstance(payload, Embed):
        vector = b"\x00\x00\x80\x3f\x00\x00\x00\x40\x00\x00\x40\x40"
        run.succeed(Embedded(vector, len(payload.tokens)))
    elif isinstance(payload, Evaluate):
        pairs = payload.options.get("pairs")
        rows = payload.rows if pairs is None else [payload.rows[second] for _, second in pairs]
        values = [_VALUES[run.request.kind](row) for row in rows]
        values += [_VALUES[run.request.kind](packed) for packed in payload.images]
        values += [_first_column(tensor) for tensor in payload.tensors]
        about = {"labels": ["calm", "angry"]}
        run.succeed(Evaluated(conclude(run.request.kind, payload, values, about), payload.size))
    else:
        run.succeed(Returned(sum(payload.arguments.get("numbers", []))))


def _first_column(tensor):
    """What a model of tables would make of its rows."""
    code = {"FP32": "f", "FP64": "d", "INT32": "i", "INT64": "q"}[tensor.datatype]
    first = array(code, tensor.data)[:: tensor.shape[1]]
    data = array("f", first).tobytes()
    return {"name": "output", "datatype": "FP32", "shape": [tensor.shape[0], 1], "data": data}


_VALUES = {
    "rerank": lambda row: float(row.size),
    "score": lambda row: float(row.size),
    "classify": lambda row: [0.25, 0.75],
    "tag": lambda row: [[1] * row.size, [0.5] * row.size],
    "answer": lambda row: [[0, max(0, min(1, row.end - row.second - 1)), 0.5]],
    "detect": lambda packed: [{"label": "angry", "score": 0.75, "box": {}}],
}
"""What a model would make of a row: longer ones are better, all are angry."""


async def wait_for_ever(run: Running) -> None:
    """Start, say one word, and never end."""
    run.start()
    run.say("once ", 1)
    await asyncio.Event().wait()


async def queue_for_ever(run: Running) -> None:
    """Never start."""
    await asyncio.Event().wait()
