"""Workers and clients of the shared queue that write down what they do and what they are told."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from llmtaskpool_worker.brokers.codec import encode_result
from llmtaskpool_worker.brokers.protocol import (
    Broker,
    Claim,
    Commit,
    Dependencies,
    Full,
    Held,
    Line,
    Outcome,
    Submission,
    Unavailable,
    UnknownParent,
    Wanted,
)
from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.scheduling.task import Call, Returned, TaskError, TaskRequest, TaskState

from queue_soak.history import Log, short

GROUP = "m"
ATTEMPTS = 3
LINES = {f"k{i}": 0.002 * 1.6**i for i in range(10)}
"""T in seconds, which is also how long its tasks run: 2 ms to 140 ms."""
WEIGHTS = (0.25, 1.0, 1.0, 4.0, 20.0)


def new_ids(ahead_seconds: float) -> Callable[[], str]:
    """UUIDv7 in hex of a wall clock that is wrong by so much; rising within a process."""
    last = 0

    def new_id() -> str:
        nonlocal last
        ms = int((time.time() + ahead_seconds) * 1000)
        drawn = int.from_bytes(os.urandom(10), "big")
        value = (ms << 80) | (7 << 76) | ((drawn >> 68 & 0xFFF) << 64)
        value |= (2 << 62) | (drawn & (1 << 62) - 1)
        last = max(value, last + 1)
        return f"{last:032x}"

    return new_id


@dataclass(slots=True)
class Worker:
    """Claims, runs, renews, commits, sweeps, until it is cancelled or killed."""

    broker: Broker
    log: Log
    name: str
    lease: float
    slots: int = 8
    groups: tuple[str, ...] = (GROUP,)
    dies: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGKILL)
    """What a poisonous task does to it."""
    frozen: bool = False
    """Whether it does nothing now, and finds out later that time has passed."""
    running: dict[str, str] = field(default_factory=dict)
    waiting_alone: list[Claim] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self) -> None:
        calls = itertools.count()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._renew())
            group.create_task(self._sweep())
            while True:
                await self._thaw()
                if self.waiting_alone and not self.running:
                    self._begin(self.waiting_alone.pop())
                free = 0 if self.waiting_alone else self.slots - len(self.running)
                if not free:
                    await asyncio.sleep(0.005)
                    continue
                if not await self._claim(free, f"{next(calls)}"):
                    await self.broker.wait_for_work(LaneName.IO, self.groups, 0.2)

    async def _claim(self, free: int, fence: str) -> bool:
        wanted = Wanted(
            self.name,
            fence,
            LaneName.IO,
            self.groups,
            lambda _: free,
            free,
            lambda line: LINES[line.cost_class],
            self.lease,
        )
        t0 = time.monotonic()
        try:
            claims = await self.broker.claim(wanted)
        except Unavailable:
            await asyncio.sleep(0.02)
            return True
        t = time.monotonic()
        for c in claims:
            told = {"id": c.id, "fence": c.fence, "attempt": c.attempt, "by": self.name}
            self.log("claim", t0=t0, t=t, **told)
            if c.alone:
                self.running_alone(c)
            else:
                self._begin(c)
        return bool(claims)

    def running_alone(self, c: Claim) -> None:
        self.waiting_alone.append(c)

    def _begin(self, c: Claim) -> None:
        self.running[c.id] = c.fence
        task = asyncio.create_task(self._work(c))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _work(self, c: Claim) -> None:
        self.log("start", id=c.id, fence=c.fence, by=self.name)
        assert isinstance(c.request.payload, Call)
        job = c.request.payload.arguments
        if job.get("poison"):
            self.dies()
            await asyncio.sleep(60)
        await asyncio.sleep(job["seconds"])
        await self._thaw()
        result: Returned | TaskError = Returned({"by": self.name, "fence": c.fence})
        if job.get("fails"):
            result = TaskError("failed", f"by {self.name} {c.fence}")
        await self._commit(c, result)
        self.running.pop(c.id, None)

    async def _commit(self, c: Claim, result: Returned | TaskError) -> None:
        told = {
            "id": c.id,
            "fence": c.fence,
            "by": self.name,
            "s": "F" if isinstance(result, TaskError) else "S",
            "hash": short(encode_result(result)),
            "t0": time.monotonic(),
        }
        self.log("commit", out="unknown", **told)  # we may not live to say it later
        while True:
            try:
                (done,) = await self.broker.commit([Outcome(c.id, c.fence, result)])
            except Unavailable:
                await asyncio.sleep(0.02)
                continue
            self.log("commit", out="lost" if done.commit is Commit.LOST else "ok", **told)
            return

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self.lease / 3)
            await self._thaw()
            mine = [Held(*one) for one in self.running.items()]
            mine += [Held(c.id, c.fence) for c in self.waiting_alone]
            if not mine:
                continue
            t0 = time.monotonic()
            try:
                lost = await self.broker.renew(mine, self.lease)
            except Unavailable:
                continue
            t = time.monotonic()
            for one in mine:
                out = "lost" if one.id in lost else "ok"
                self.log("renew", t0=t0, t=t, id=one.id, fence=one.fence, out=out)
            self.waiting_alone = [c for c in self.waiting_alone if c.id not in lost]

    async def _sweep(self) -> None:
        rng = random.Random(self.name)
        while True:
            await asyncio.sleep(self.lease / 3 * (0.5 + rng.random()))
            await self._thaw()
            with suppress(Unavailable):
                await self.broker.sweep()

    async def _thaw(self) -> None:
        while self.frozen:  # noqa: ASYNC110 - it is frozen from outside
            await asyncio.sleep(0.01)


@dataclass(frozen=True, slots=True)
class Mix:
    """What clients ask for: shares of tasks."""

    dependent: float = 0.1
    keyed: float = 0.1
    cancelled: float = 0.04
    failing: float = 0.02
    poisonous: float = 0.0
    long: float = 0.01
    long_seconds: tuple[float, float] = (0.5, 2.5)


@dataclass(slots=True)
class Client:
    """Submits ``tasks`` at ``rate`` a second, some with a key three times, and cancels some."""

    broker: Broker
    log: Log
    rng: random.Random
    name: str
    mix: Mix
    new_id: Callable[[], str]
    recent: list[str] = field(default_factory=list)
    accepted: int = 0

    async def run(self, tasks: int, rate: float) -> None:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for i in range(tasks):
                await asyncio.sleep(max(0.0, began + i / rate - time.monotonic()))
                group.create_task(self._submit(i))

    async def _submit(self, i: int) -> None:
        rng, mix = self.rng, self.mix
        line, weight = rng.choice(list(LINES)), rng.choice(WEIGHTS)
        job: dict[str, Any] = {"seconds": LINES[line]}
        if rng.random() < mix.long:
            job["seconds"] = rng.uniform(*mix.long_seconds)
        if rng.random() < mix.poisonous:
            job["poison"] = True
        elif rng.random() < mix.failing:
            job["fails"] = True
        deps: tuple[str, ...] = ()
        need = 0
        if len(self.recent) > 20 and rng.random() < mix.dependent:
            deps = tuple(rng.sample(self.recent[-60:], rng.randint(2, 4)))
            need = rng.randint(1, len(deps))
        key = f"{self.name}-{i}" if rng.random() < mix.keyed else None
        first = self.new_id()
        known = await self._say(first, line, weight, job, key, deps, need)
        if known is None:
            return
        self.recent.append(known)
        self.accepted += 1
        if key is not None:
            for _ in range(2):
                await self._say(self.new_id(), line, weight, job, key, deps, need)
        if rng.random() < mix.cancelled:
            await asyncio.sleep(rng.choice([0, 0.01, 0.05]))
            await self._cancel(known)

    async def _say(
        self,
        task_id: str,
        line: str,
        weight: float,
        job: dict[str, Any],
        key: str | None,
        deps: tuple[str, ...],
        need: int,
    ) -> str | None:
        """The id that it is known by, if it was accepted; said again until somebody answers."""
        submission = submission_of(task_id, line, weight, job, key, deps, need)
        told = {"id": task_id, "w": weight, "k": line, "key": key, "deps": deps, "need": need}
        told["by"] = self.name
        t0 = time.monotonic()
        for _ in range(30):
            try:
                receipt = await self.broker.accept(submission)
            except Unavailable:
                self.log("accept", t0=t0, out="unknown", **told)
                await asyncio.sleep(0.1)
                continue
            except (UnknownParent, Full):
                return None
            known = receipt.view.id
            out = "ok" if known == task_id else "same"
            self.log("accept", t0=t0, out=out, known=known, **told)
            return known
        return None

    async def _cancel(self, task_id: str) -> None:
        t0 = time.monotonic()
        try:
            became = (await self.broker.cancel(task_id)).commit
        except Unavailable:
            self.log("cancel", t0=t0, id=task_id, out="unknown")
            return
        out = "C" if became is not Commit.LOST else "other"
        self.log("cancel", t0=t0, id=task_id, out=out)


def submission_of(
    task_id: str,
    line: str,
    weight: float = 1.0,
    job: dict[str, Any] | None = None,
    key: str | None = None,
    deps: tuple[str, ...] = (),
    need: int = 0,
    group: str = GROUP,
) -> Submission:
    job = {"seconds": LINES[line]} if job is None else job
    request = TaskRequest(group, Call(job), weight=weight, idempotency_key=key)
    return Submission(
        id=task_id,
        request=request,
        lane=LaneName.IO,
        group=group,
        line=Line(line),
        load_seconds=LINES[line],
        priority=weight / LINES[line],
        work_seconds=LINES[line],
        size_bytes=200,
        patience_seconds=3600.0,
        run_seconds=60.0,
        dependencies=Dependencies(deps, need) if deps else None,
        max_attempts=ATTEMPTS,
    )


ENDED = frozenset({TaskState.SUCCEEDED, TaskState.FAILED})
