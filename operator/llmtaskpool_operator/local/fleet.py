"""The workers of this machine as a set of N: what a Deployment and the kubelet do on a cluster.

``scale`` says how many there should be; ``tend`` starts those that are missing, with exponential
back-off after failures, and takes note of those that ended. A worker that has to go is unrouted,
finishes what it has, and is ended then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from signal import SIGKILL
from typing import Any

import aiohttp

from llmtaskpool_operator.local.front import Front
from llmtaskpool_operator.local.health import Health, HealthLimits, Verdict
from llmtaskpool_operator.local.worker_process import (
    BAD_SETTINGS,
    LOOPBACK,
    LocalWorker,
    WorkerCommand,
)
from llmtaskpool_operator.workers.backoff import Backoff


class Unstartable(Exception):
    """No worker can ever start with these settings; the message is the worker's own."""


@dataclass(frozen=True, slots=True)
class FleetLimits:
    """``healthy_seconds`` of service forget earlier failures."""

    drain_seconds: float = 120.0
    grace_seconds: float = 10.0
    backoff: Backoff = field(default_factory=Backoff)
    healthy_seconds: float = 10.0


class Fleet:
    """The set of workers. All calls are from one asyncio loop; ``clock`` is monotonic.

    ``notice`` is called with one line for people, whenever something happened.
    """

    def __init__(
        self,
        command: WorkerCommand,
        front: Front,
        http: aiohttp.ClientSession,
        token: str,
        *,
        clock: Callable[[], float],
        limits: FleetLimits | None = None,
        health: HealthLimits | None = None,
        notice: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.limits = limits or FleetLimits()
        self.workers: dict[str, LocalWorker] = {}
        self._health_limits = health or HealthLimits()
        self._health: dict[str, Health] = {}
        self.wanted = 0
        self.restarts = 0
        self.failures = 0
        self.unstartable: str | None = None
        self._command = command
        self._front = front
        self._http = http
        self._token = token
        self._clock = clock
        self._notice = notice
        self._count = 0
        self._one_at_a_time = asyncio.Lock()
        self._not_before = 0.0
        self._ever_ready = False
        self._watching: set[asyncio.Task[None]] = set()
        self._stopping = False

    def members(self) -> list[LocalWorker]:
        """The workers that are to stay, oldest first."""
        return [w for w in self.workers.values() if w.alive and not w.retiring]

    def retiring(self) -> list[LocalWorker]:
        """The workers that finish what they have and go."""
        return [w for w in self.workers.values() if w.retiring]

    async def observe(self, now: float) -> None:
        """Ask every worker that listens for its state, all at once; tell who stops answering.

        One that is ready and doesn't answer gets no new requests, and is replaced in the end.
        """
        asked = [w for w in self.workers.values() if w.alive and w.data_port is not None]
        before = [w.unreachable for w in asked]
        await asyncio.gather(*(w.observe(now) for w in asked), *map(self._judge, asked))
        for worker, was in zip(asked, before, strict=True):
            self._front.note_load(worker.id, float(worker.in_flight))
            if worker.unreachable is not None and was is None and worker.alive:
                self._notice(f"{worker.id} is left as it is: {worker.unreachable}")

    async def _judge(self, worker: LocalWorker) -> None:
        if not worker.ready:
            return
        alive = await worker.is_alive()
        health = self._health.get(worker.id)
        if health is None or not worker.ready:
            return
        answers = self._front.answers(worker.id)
        verdict = health.asked(self._clock(), alive=alive, answers=answers)
        silent = verdict is not Verdict.WELL
        if silent is not worker.silent:
            worker.silent = silent
            said = "does not answer, and gets no new requests" if silent else "answers again"
            self._notice(f"{worker.id} {said}")
            self._front.silence(worker.id, silent=silent)
        if verdict is Verdict.LOST:
            self._notice(f"{worker.id} is given up: it is ended, and replaced")
            worker.signal(SIGKILL)

    def any_starting(self) -> bool:
        """Whether a worker is on its way, or will be as soon as the back-off allows."""
        if self._stopping:
            return False
        members = self.members()
        return len(members) < self.wanted or any(not w.ready or w.silent for w in members)

    async def scale(self, replicas: int, victims: Sequence[str] = ()) -> None:
        """Have ``replicas`` workers; ``victims`` go first when there are too many."""
        self.wanted = replicas
        first = {worker_id: rank for rank, worker_id in enumerate(victims)}
        surplus = sorted(
            self.members(),
            key=lambda w: (first.get(w.id, len(first)), w.ready, self._load(w), -w.started_at),
        )[: max(0, len(self.members()) - replicas)]
        for worker in surplus:
            self.retire(worker)
        await self.tend()

    def _load(self, worker: LocalWorker) -> int:
        """What it has to finish. Its own count is of its last report; the front knows at once."""
        return max(worker.in_flight, self._front.open_connections(worker.id))

    async def tend(self) -> None:
        """Start what is missing, as far as the back-off allows. Raises Unstartable."""
        if self.unstartable is not None:
            raise Unstartable(self.unstartable)
        async with self._one_at_a_time:  # while one starts it is no member yet
            now = self._clock()
            if any(self._healthy(worker, now) for worker in self.members()):
                self.failures = 0
            while len(self.members()) < self.wanted and self._may_start(now):
                await self._start(now)

    def _may_start(self, now: float) -> bool:
        return now >= self._not_before and not self._stopping

    def retire(self, worker: LocalWorker) -> None:
        """Let a worker finish and go; returns at once."""
        if not worker.retiring:
            worker.retiring = True
            self._front.unroute(worker.id)
            self._notice(f"{worker.id} drains: {worker.in_flight} tasks to finish")
            self._watch(self._retire(worker))

    async def stop(self, drain_seconds: float) -> None:
        """Drain all within the budget and end them; returns when nothing is left running."""
        self._stopping = True
        self.wanted = 0
        workers = [w for w in self.workers.values() if w.alive]
        for worker in workers:
            worker.retiring = True
        await asyncio.gather(*(self._finish(w, drain_seconds) for w in workers))
        await self._settle()

    async def kill(self) -> None:
        """End all now; returns when nothing is left running."""
        self._stopping = True
        self.wanted = 0
        for worker in self.workers.values():
            worker.signal(SIGKILL)
        await asyncio.gather(*(w.end(0.0) for w in self.workers.values()))
        await self._settle()

    async def _settle(self) -> None:
        if self._watching:
            await asyncio.wait(self._watching)

    async def _start(self, now: float) -> None:
        self._count += 1
        worker = LocalWorker(f"worker-{self._count}", self._http, self._token, self._on_event)
        try:
            await worker.start(self._command, now)
        except OSError as error:
            self._failed(f"{worker.id} could not be started: {error.strerror}")
            return
        self.workers[worker.id] = worker
        self._watch(self._reap(worker))

    def _watch(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    async def _reap(self, worker: LocalWorker) -> None:
        code = await worker.ended()
        self._front.forget(worker.id)
        await worker.end(0.0)
        del self.workers[worker.id]
        self._health.pop(worker.id, None)
        if worker.retiring or self._stopping:
            self._notice(f"{worker.id} is gone")
            return
        if code == BAD_SETTINGS and not self._ever_ready:
            self.unstartable = worker.last_words() or "the worker refused its settings"
        if self._healthy(worker, self._clock()):
            self.failures = 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        self._failed(f"{worker.id} ended by itself ({how})")

    def _healthy(self, worker: LocalWorker, now: float) -> bool:
        return worker.ready_at is not None and now - worker.ready_at >= self.limits.healthy_seconds

    def _failed(self, what: str) -> None:
        """Note a failure: the n-th in a row waits ``first x 2^(n-1)`` before the next start."""
        self.failures += 1
        self.restarts += 1
        wait = self.limits.backoff.after(self.failures)
        self._not_before = self._clock() + wait
        self._notice(f"{what}; the next start is in {wait:g} s")
        self._front.recheck()

    def _on_event(self, worker: LocalWorker, event: dict[str, Any]) -> None:
        match event.get("event"):
            case "ready" if worker.data_port is not None:
                worker.ready_at = self._clock()
                self._ever_ready = True
                self._health[worker.id] = Health(self._health_limits, worker.ready_at)
                if not worker.retiring:
                    self._front.route(worker.id, LOOPBACK, worker.data_port)
                    took = worker.ready_at - worker.started_at
                    self._notice(f"{worker.id} is ready after {took:.1f} s")
            case "failed":
                if not self._ever_ready:
                    self.unstartable = worker.failure or "the worker could not load its models"
                self._notice(f"{worker.id} failed: {worker.failure or 'see its log'}")
                self._front.unroute(worker.id)
                worker.signal(SIGKILL)
            case "engine_died":
                self._notice(f"{worker.id}: its engine ended and restarts")

    async def _retire(self, worker: LocalWorker) -> None:
        await self._finish(worker, self.limits.drain_seconds)

    async def _finish(self, worker: LocalWorker, budget_seconds: float) -> None:
        """Unroute, let requests on open connections end, drain the rest, end the process.

        The worker is told to drain only when the front has no connection to it any more: what
        it was sent just before must still be taken, and not be refused because it drains.
        """
        self._front.unroute(worker.id)
        until = self._clock() + budget_seconds
        await self._emptied(worker, until)
        finished = await worker.drain(max(0.0, until - self._clock()), self._clock)
        await self._emptied(worker, until)  # answers of the last tasks, on their way out
        if not finished:
            self._notice(f"{worker.id}: the drain budget is used up, {worker.in_flight} tasks end")
        await worker.end(self.limits.grace_seconds)

    async def _emptied(self, worker: LocalWorker, until: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until - self._clock())):
                await self._front.emptied(worker.id)
