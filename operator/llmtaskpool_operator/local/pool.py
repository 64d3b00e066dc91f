"""The whole local pool: front, fleet and loop, started, run and ended."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmtaskpool_worker.contract import LaneName

from llmtaskpool_operator.api.pool import LLMTaskPool
from llmtaskpool_operator.api.scaling import ScalingMode
from llmtaskpool_operator.autoscaler.decide import ThreadDecision
from llmtaskpool_operator.autoscaler.law import Bound
from llmtaskpool_operator.autoscaler.plan import SetReplicas
from llmtaskpool_operator.autoscaler.reasons import reason_of
from llmtaskpool_operator.autoscaler.reconcile import LoopMemory, ReconcileResult, reconcile
from llmtaskpool_operator.local.backend import LocalBackend
from llmtaskpool_operator.local.fleet import Fleet, FleetLimits
from llmtaskpool_operator.local.front import Front
from llmtaskpool_operator.local.front_connection import FrontLimits
from llmtaskpool_operator.local.live_view import Line, Snapshot, View, WorkerRow
from llmtaskpool_operator.local.settings import worker_command
from llmtaskpool_operator.local.worker_process import LocalWorker, WorkerCommand
from llmtaskpool_operator.replay.record import Recorder
from llmtaskpool_operator.replay.record_file import RecordFile
from llmtaskpool_operator.workers.client import ClientLimits, open_http


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """What the command line adds to a pool. ``command`` replaces the worker's (tests)."""

    host: str = "127.0.0.1"
    port: int = 8080
    api_key_file: Path | None = None
    tenant_keys_dir: Path | None = None
    """The folder with a file of keys for each tenant that the pool names."""
    cache_dir: Path | None = None
    data_dir: Path | None = None
    queue: Path | None = None
    """The file in which its one worker keeps tasks."""
    queue_url_file: Path | None = None
    """The file with the URL of the server on which its workers share a line."""
    trusted_ca_file: Path | None = None
    cores: int | None = None
    drain_seconds: float = 10.0
    record: Path | None = None
    upstream: tuple[str, ...] = ()
    """The command of a server behind the models; empty: none is started."""
    upstream_hosts: tuple[str, ...] = ()
    """Hosts that servers may be on beside this machine."""
    command: WorkerCommand | None = None


class PortTaken(Exception):
    """The address can't be listened on; the message has the remedy."""


class NoRecord(Exception):
    """The record can't be written; the message has the remedy."""


class LocalPool:
    """A pool of worker processes on this machine. All calls are from one asyncio loop.

    ``clock`` gives seconds since the epoch and never goes back. Raises NoRecord.
    """

    def __init__(
        self, pool: LLMTaskPool, options: LocalOptions, view: View, clock: Callable[[], float]
    ) -> None:
        self.pool = pool
        self.options = options
        self.decisions: list[str] = []
        self.most_replicas = 0
        self.most_threads = 0
        self.first_ready = asyncio.Event()
        self.at_rest = asyncio.Event()
        """Set while the pool is at its minimum and nothing drains."""
        self.last: ReconcileResult | None = None
        self._falling: set[tuple[str, LaneName]] = set()
        self._view = view
        self._clock = clock
        self._started_at = clock()
        self._record = _record_file(options.record, lambda text: self._tell("notice", text))
        self._http = open_http(ClientLimits())
        self.front = Front(FrontLimits(), starting=lambda: self.fleet.any_starting())
        command = options.command or worker_command(
            pool.spec,
            cores=options.cores,
            api_key_file=options.api_key_file,
            tenant_keys_dir=options.tenant_keys_dir,
            cache_dir=options.cache_dir,
            data_dir=options.data_dir,
            queue=options.queue,
            queue_url_file=options.queue_url_file,
            queue_pool=f"{pool.metadata.namespace}/{pool.metadata.name}",
            trusted_ca_file=options.trusted_ca_file,
            upstream_hosts=options.upstream_hosts,
        )
        self.fleet = Fleet(
            command,
            self.front,
            self._http,
            secrets.token_urlsafe(32),
            clock=clock,
            limits=FleetLimits(drain_seconds=pool.spec.scaling.drain_seconds),
            notice=lambda text: self._tell("notice", text),
        )
        self._backend = LocalBackend(self.fleet)
        self.port = 0

    @property
    def url(self) -> str:
        """Where clients reach it."""
        host = f"[{self.options.host}]" if ":" in self.options.host else self.options.host
        return f"http://{host}:{self.port}"

    async def start(self) -> None:
        """Listen. Raises PortTaken."""
        try:
            self.port = await self.front.start(self.options.host, self.options.port)
        except OSError as error:
            raise PortTaken(
                f"--port {self.options.port}: {self.options.host}:{self.options.port} can't be "
                f"listened on ({error.strerror}): choose another --port (0 takes a free one) or "
                "--host"
            ) from None

    async def run(self) -> None:
        """Reconcile until cancelled. Raises Unstartable when no worker can ever start."""
        scaling = self.pool.spec.scaling
        if scaling.mode is ScalingMode.ADVISE or scaling.paused:
            # The loop asks for nothing then; a cluster's Deployment begins with the least too.
            await self.fleet.scale(scaling.min_replicas)
        memory = LoopMemory()
        recorder = Recorder(self._record.write) if self._record is not None else None
        while True:
            result = await reconcile(self.pool, self._backend, memory, self._clock())
            if recorder is not None:
                recorder.turn(self.pool, memory.decided, result)
            memory = result.memory
            self._show(result)
            await asyncio.sleep(result.requeue_after)

    async def stop(self, *, drain_seconds: float) -> None:
        """Drain, end every worker, stop listening; returns when nothing is left running."""
        await self.fleet.stop(drain_seconds)
        await self._close()

    async def kill(self) -> None:
        """End everything now; returns when nothing is left running."""
        await self.fleet.kill()
        await self._close()

    async def _close(self) -> None:
        await self.front.stop()
        await self._http.close()
        if self._record is not None:
            self._record.close()

    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started_at

    def snapshot(self) -> Snapshot:
        """The pool as shown now."""
        scaling = self.pool.spec.scaling
        workers = sorted(self.fleet.workers.values(), key=lambda w: w.started_at)
        return Snapshot(
            pool=self.pool.metadata.name,
            url=self.url,
            desired=self.fleet.wanted,
            ready=len(self.front.routed()),
            limits=(scaling.min_replicas, scaling.max_replicas),
            utilization=self.last.status.utilization if self.last is not None else None,
            target=scaling.target_utilization,
            workers=tuple(self._row(worker) for worker in workers),
        )

    def _row(self, worker: LocalWorker) -> WorkerRow:
        state = worker.state
        loads = sorted(worker.loading.values(), key=lambda one: one.fraction)
        phase = "draining" if worker.retiring else "ready" if worker.ready else "starting"
        if phase == "ready" and worker.silent:
            phase = "silent"
        return WorkerRow(
            id=worker.id,
            phase=phase,
            age_seconds=self._clock() - worker.started_at,
            lanes=dict(state.lanes) if state is not None else {},
            connections=self.front.open_connections(worker.id),
            loading=(f"{loads[0].model} {loads[0].stage}", loads[0].fraction) if loads else None,
            rss_bytes=state.rss_bytes if state is not None else None,
        )

    def _show(self, result: ReconcileResult) -> None:
        self.last = result
        for action in result.plan:
            if isinstance(action, SetReplicas):
                self._decided(action.reason, what="replicas")
        for one in result.decisions.threads:
            if one.decision.desired != one.decision.current and self._worth_telling(one):
                self._decided(
                    f"{one.pod} {one.lane.value}: {reason_of(one.decision)}",
                    what=f"threads/{one.lane}",
                )
        for failure in result.failures:
            self._tell("notice", f"not done ({failure.error}): {failure.action.reason}")
        self._note_extremes(result)
        self._view.show(self.snapshot())

    def _worth_telling(self, one: ThreadDecision) -> bool:
        """Of a slow fall in many steps, the first and the last are enough."""
        key, stepwise = (one.pod, one.lane), one.decision.bound is Bound.STEP
        known = key in self._falling
        (self._falling.add if stepwise else self._falling.discard)(key)
        return not (stepwise and known)

    def _note_extremes(self, result: ReconcileResult) -> None:
        ready, least = len(self.front.routed()), self.pool.spec.scaling.min_replicas
        threads = sum(one.observed for one in result.status.threads if one.lane == "compute")
        self.most_replicas = max(self.most_replicas, ready)
        self.most_threads = max(self.most_threads, threads)
        if ready:
            self.first_ready.set()
        if self.fleet.wanted > least or self.fleet.retiring():
            self.at_rest.clear()
        else:
            self.at_rest.set()

    def _decided(self, text: str, *, what: str) -> None:
        self.decisions.append(f"{self.elapsed():6.1f} s  {text}")
        self._view.tell(Line(self.elapsed(), "decision", text, {"what": what}))

    def _tell(self, kind: Literal["decision", "notice"], text: str) -> None:
        self._view.tell(Line(self.elapsed(), kind, text))


def _record_file(path: Path | None, failed: Callable[[str], object]) -> RecordFile | None:
    if path is None:
        return None
    try:
        return RecordFile(path, failed)
    except OSError as error:
        raise NoRecord(
            f"--record {path}: {error.strerror}: name a file that can be written"
        ) from None
