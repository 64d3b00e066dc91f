"""The running operator: watches, election, turns, and the pages that tell of them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import gc
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar

from llmtaskpool_operator.api.names import KIND
from llmtaskpool_operator.cluster.access import ClusterAccess
from llmtaskpool_operator.cluster.api_client import ApiFailure, Fenced, KubernetesApi, connected
from llmtaskpool_operator.cluster.children_watch import ChildrenWatch
from llmtaskpool_operator.cluster.claims import OtherOperators
from llmtaskpool_operator.cluster.controller import Controller, OperatorIdentity
from llmtaskpool_operator.cluster.election import Election
from llmtaskpool_operator.cluster.handlers import watch
from llmtaskpool_operator.cluster.health import HealthPages
from llmtaskpool_operator.cluster.manifests import POOL_LABEL, Manifest
from llmtaskpool_operator.cluster.metrics import OperatorMetrics
from llmtaskpool_operator.cluster.rollouts import Rollouts
from llmtaskpool_operator.cluster.settings import OperatorSettings
from llmtaskpool_operator.cluster.store import WATCHED, ClusterStore, PoolKey, kept
from llmtaskpool_operator.cluster.watch_proof import LATE_SECONDS, WatchProof
from llmtaskpool_operator.cluster.work_queue import WorkQueue
from llmtaskpool_operator.replay.record import Recorder
from llmtaskpool_operator.replay.record_file import to_stdout
from llmtaskpool_operator.workers.client import ClientLimits, WorkerClient, open_http

KEY_SECRET = "llmtaskpool-operator-key"  # noqa: S105  a name
PODS_EVERY = 5
"""Pods are many and big: they are listed at every fifth resync."""
FAULTY_SECONDS = 10.0
"""While a watch brings nothing, everything is listed this often: lists are all there is."""
SYNCS_MISSED = 2.0
"""An operator is not ready when so many resyncs in a row, and LATE_SECONDS, brought no list."""
STUCK_SECONDS = 120.0
GATHER_SECONDS = 0.5
"""What happens to a pool's pods comes in crowds: a rollout of 25 is over 200 events."""
WAIT_FOR_CRD_SECONDS = 5.0
CLIENTS = 10_000
"""Clients of pods that are kept: each knows what its pod said last, and need not read it again."""

COLLECT_EVERY = 2_000, 10, 1_000_000_000
"""Of Python's generations of objects: the oldest, which has thousands of pods, is looked through
after lists alone. By itself that came every 1.3 s of a rollout and held all else up for 0.7 s."""

Found = TypeVar("Found")

log = logging.getLogger("llmtaskpool.operator")


@dataclass(frozen=True, slots=True)
class Clocks:
    """``steady`` goes on while the process stands still; ``wall`` is since the epoch."""

    steady: Callable[[], float]
    wall: Callable[[], float]


def system_clocks() -> Clocks:
    """This machine's. CLOCK_BOOTTIME counts a suspended machine's time too, for the fence."""
    epoch = time.time() - time.monotonic()
    return Clocks(
        steady=lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
        wall=lambda: epoch + time.monotonic(),
    )


class Operator:
    """One replica. ``run`` ends on SIGTERM or SIGINT."""

    def __init__(self, settings: OperatorSettings, clocks: Clocks) -> None:
        self._settings = settings
        self._clocks = clocks
        self.metrics = OperatorMetrics()
        self.queue: WorkQueue[PoolKey] = WorkQueue(clocks.steady)
        self.store = ClusterStore(self._changed)
        self.proof = WatchProof(clocks.steady, scoped=bool(settings.namespaces))
        self._leading = False
        self._synced_at: float | None = None
        self._stopping = asyncio.Event()
        self._watching = asyncio.Event()

    async def run(self) -> None:
        """Serve until a signal. Raises OSError when the port is taken, NoCluster."""
        gc.set_threshold(*COLLECT_EVERY)
        limits = ClientLimits(connections=1024)
        async with connected() as client, open_http(limits) as http:
            unfenced = KubernetesApi(client, failed=self.metrics.api_error)
            port = self._settings.control_port

            @lru_cache(maxsize=CLIENTS)
            def worker(address: str, token: str) -> WorkerClient:
                return WorkerClient(http, f"http://{address}:{port}", token, limits)

            pages = HealthPages(self.metrics, alive=self.alive, fault=self.fault)
            async with pages.serving(self._settings.host, self._settings.port):
                await self._wait_for_crd(unfenced)
                owner = await self._owner(unfenced)
                election = Election(
                    unfenced,
                    name=self._settings.lease,
                    namespace=self._settings.namespace,
                    identity=self._settings.identity,
                    clock=self._clocks.steady,
                    wall=self._clocks.wall,
                    owner=owner,
                )
                api = KubernetesApi(client, may_write=election.leads, failed=self.metrics.api_error)
                me = f"{self._settings.namespace}/{self._settings.lease}"
                others = OtherOperators(unfenced, me, self._clocks.steady)
                rollouts = Rollouts(self._settings.max_concurrent_rollouts)
                access = ClusterAccess(self.store, api, worker, others, rollouts)
                await self._serve(election, access, owner)

    def alive(self) -> bool:
        """No pool has been due for minutes without anybody taking it up."""
        self.metrics.queue(self.queue.depth, self.queue.oldest_seconds)
        self.metrics.watches(self.proof.behind())
        return self.queue.oldest_seconds < STUCK_SECONDS

    def fault(self) -> str:
        """Why it is not ready: it does not watch, or does not know what there is; or empty."""
        if not self._watching.is_set() or self._synced_at is None:
            return "pools, Deployments and pods are not listed yet: is the API server there?"
        since = self._clocks.steady() - self._synced_at
        if since > SYNCS_MISSED * self._settings.resync_seconds + LATE_SECONDS:
            return f"the API server has not answered a list for {since:.0f} s"
        return self.proof.fault()

    def _changed(self, key: PoolKey, kind: str) -> None:
        """A replica that stands by works on nothing, so nothing may be due there."""
        if self._leading:
            self.queue.add(key, 0.0 if kind == KIND else GATHER_SECONDS)

    async def _serve(
        self, election: Election, access: ClusterAccess, owner: Manifest | None
    ) -> None:
        watching = asyncio.create_task(
            watch(self.store, self.proof, self._settings.namespaces, self._stopping, self._watching)
        )
        syncing = asyncio.create_task(self._resync(access.api))
        electing = asyncio.create_task(election.run(lambda: self._lead(access, owner)))
        tasks = {watching, syncing, electing}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stopping.set()
            electing.cancel()
            syncing.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            if not task.cancelled():
                await task

    async def _lead(self, access: ClusterAccess, owner: Manifest | None) -> None:
        """Work on all pools until cancelled."""
        self.metrics.leading(True)
        self._leading = True
        try:
            identity = OperatorIdentity(
                name=self._settings.identity,
                namespace=self._settings.namespace,
                worker_image=self._settings.worker_image,
                key=await _answered(lambda: _key(access.api, self._settings.namespace, owner)),
                workers=self._settings.workers,
                lease=self._settings.lease,
            )
            await _answered(lambda: self._list(access.api, WATCHED))
            wanted = self._settings.record
            recorder = Recorder(to_stdout, wanted) if wanted else None
            controller = Controller(access, identity, self.metrics, self._clocks.wall, recorder)
            for key in self.store.pools():
                self.queue.add(key)
            children = ChildrenWatch(
                access.api, self._settings.namespaces, partial(self._child_lost, controller)
            )
            watching = asyncio.create_task(children.run())
            try:
                await self._work(controller)
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
                controller.forget_all()
        finally:
            self._leading = False
            self.queue.clear()
            self.metrics.leading(False)

    def _child_lost(self, controller: Controller, key: PoolKey) -> None:
        body = self.store.pool(key)
        if body is not None and not body["metadata"].get("deletionTimestamp"):
            controller.child_lost(key)
            self.queue.add(key, GATHER_SECONDS)

    async def _work(self, controller: Controller) -> None:
        """Give each pool that is due a turn, a number of them at one time, for ever.

        One who takes and not many: they would get one pool for each pass of a busy event loop.
        """
        room = asyncio.Semaphore(self._settings.concurrency)
        async with asyncio.TaskGroup() as turns:
            while True:
                await room.acquire()
                turn = turns.create_task(self._turn(controller, await self.queue.take()))
                turn.add_done_callback(lambda _: room.release())

    async def _turn(self, controller: Controller, key: PoolKey) -> None:
        began = self._clocks.steady()
        try:
            again_after = await controller.turn(key)
        except ApiFailure as failure:
            result, wait = "failed", self.queue.failed(key, failure.retry_after)
            log.warning("%s: %s; again in %.1f s", key, failure, wait)
        except Fenced as fenced:
            # It may lead again in a moment: after it stood still, or the API server did. Where it
            # doesn't, the queue is cleared.
            result, wait = "fenced", self.queue.failed(key)
            log.warning("%s: %s; again in %.1f s", key, fenced, wait)
        except Exception:
            # One pool's fault must not end the operator for all others.
            result, wait = "failed", self.queue.failed(key)
            log.exception("%s: the turn failed; again in %.1f s", key, wait)
        except BaseException:
            self.queue.done(key)
            raise
        else:
            result = "ok"
            self.queue.done(key, again_after)
        self.metrics.turn(result, self._clocks.steady() - began)

    async def _resync(self, api: KubernetesApi) -> None:
        """List what is watched, again and again: a watch that missed something is mended."""
        rounds = 0
        while True:
            faulty = bool(self.proof.fault())
            kinds = WATCHED if faulty or rounds % PODS_EVERY == 0 else WATCHED[:2]
            try:
                await self._list(api, kinds)
            except ApiFailure as failure:
                log.warning("resync: %s", failure)
                await asyncio.sleep(min(5.0, self._settings.resync_seconds))
                continue
            self._synced_at = self._clocks.steady()
            if rounds % PODS_EVERY == 0:
                gc.collect()
            _give_memory_back()
            rounds += 1
            wait = self._settings.resync_seconds
            await asyncio.sleep(min(FAULTY_SECONDS, wait) if self.proof.fault() else wait)

    async def _list(self, api: KubernetesApi, kinds: tuple[str, ...]) -> None:
        for kind in kinds:
            for namespace in self._settings.namespaces or ("",):
                selector = "" if kind == KIND else POOL_LABEL
                found = await api.list(kind, namespace, selector, partial(kept, kind))
                self.store.listed(kind, found.items, found.version, within=namespace)
                self.proof.listed(kind, found.items, within=namespace)

    async def _wait_for_crd(self, api: KubernetesApi) -> None:
        told = ""
        while True:
            problem = "apply crds/llmtaskpool.yaml: the API server does not know LLMTaskPool yet"
            with contextlib.suppress(ApiFailure):
                if await api.served():
                    return
            if problem != told:
                log.warning("waiting: %s", problem)
                told = problem
            await asyncio.sleep(WAIT_FOR_CRD_SECONDS)

    async def _owner(self, api: KubernetesApi) -> Manifest | None:
        """Whose going takes our Lease and key with it: our account's, which the chart makes."""
        while True:
            try:
                return await api.account(self._settings.namespace)
            except ApiFailure as failure:
                if failure.code in (403, 404):  # a cluster that tells nobody who they are
                    log.warning("the Lease and the key will stay when we go: %s", failure)
                    return None
                log.warning("waiting: %s", failure)
                await asyncio.sleep(WAIT_FOR_CRD_SECONDS)


async def _answered(ask: Callable[[], Awaitable[Found]]) -> Found:
    """What it gives once the server can tell: who leads does not end for an answer that is lost.

    Raises ApiFailure where the server answers that it must not be.
    """
    while True:
        try:
            return await ask()
        except ApiFailure as failure:
            if failure.code in (401, 403, 404):
                raise
            log.warning("leading waits: %s", failure)
            await asyncio.sleep(failure.retry_after or 1.0)


async def _key(api: KubernetesApi, namespace: str, owner: Manifest | None) -> bytes:
    """The secret that control tokens are derived from; made by the first who leads."""
    owned = {} if owner is None else {"ownerReferences": [owner]}
    while True:
        found = await api.get("Secret", namespace, KEY_SECRET)
        if found is not None:
            return base64.b64decode(found["data"]["key"])
        fresh = base64.b64encode(secrets.token_bytes(32)).decode()
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": KEY_SECRET, "namespace": namespace} | owned,
            "type": "Opaque",
            "data": {"key": fresh},
        }
        try:
            await api.create(secret)
        except ApiFailure as failure:
            if failure.code != 409:
                raise


def _give_memory_back() -> None:
    """What lists and storms of events have freed, which glibc keeps: 20 MiB of 1,000 pools.

    MALLOC_TRIM_THRESHOLD_ does as much at every free, for a quarter of the processor time at rest.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if trim is not None:
        trim(0)
