"""One turn for one pool on Kubernetes: children, the loop, and what is told of it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from llmtaskpool_operator.api.manifest_file import BadPool, parse_pool
from llmtaskpool_operator.api.pool import LLMTaskPool
from llmtaskpool_operator.api.status import LLMTaskPoolStatus
from llmtaskpool_operator.api.worker_defaults import WorkerDefaults
from llmtaskpool_operator.autoscaler.decide import replica_policy
from llmtaskpool_operator.autoscaler.law import DEFAULTS
from llmtaskpool_operator.autoscaler.observation import Problem
from llmtaskpool_operator.autoscaler.reconcile import LoopMemory, ReconcileResult, reconcile
from llmtaskpool_operator.autoscaler.rest import next_turn_seconds, rests
from llmtaskpool_operator.autoscaler.status import invalid_status
from llmtaskpool_operator.autoscaler.telling import Note, notes, rfc3339
from llmtaskpool_operator.cluster import manifests, pod_facts
from llmtaskpool_operator.cluster.access import ClusterAccess
from llmtaskpool_operator.cluster.api_client import ApiFailure, Fenced
from llmtaskpool_operator.cluster.backend import KubernetesBackend, Written
from llmtaskpool_operator.cluster.claims import ServedByAnother
from llmtaskpool_operator.cluster.gate import GateMemory
from llmtaskpool_operator.cluster.manifests import Manifest, Surroundings
from llmtaskpool_operator.cluster.metrics import OperatorMetrics
from llmtaskpool_operator.cluster.problem_backend import BackendWithProblems, ReplicasRefused
from llmtaskpool_operator.cluster.refusals import Refusals
from llmtaskpool_operator.cluster.resting import Resting
from llmtaskpool_operator.cluster.rivals import ScaleWrites
from llmtaskpool_operator.cluster.start_warnings import StartWarnings
from llmtaskpool_operator.cluster.store import PoolKey, status_in
from llmtaskpool_operator.cluster.teller import Teller, Told
from llmtaskpool_operator.replay.record import Recorder
from llmtaskpool_operator.workers.client import WorkerClient
from llmtaskpool_operator.workers.states import PodStates

CHILDREN_SECONDS = 600.0
"""Children that nobody watches are looked at again this often."""
STAND_BACK_SECONDS = 15.0
"""Between two looks at whether the operator that serves a pool still lives."""
CHILD_SECONDS = 2.0
"""Between two looks at children that somebody deletes or changes."""
TAKEN_SECONDS = 15.0
"""So often while somebody else's object has the name of one: whoever removes it waits."""

_Revision = tuple[int, tuple[tuple[str, str], ...]]
"""What a pool asks for: its generation, which its labels don't move, and those."""

log = logging.getLogger("llmtaskpool.operator")


@dataclass(frozen=True, slots=True)
class OperatorIdentity:
    """``key`` is the secret that pools' control tokens are derived from."""

    name: str
    namespace: str
    worker_image: str
    key: bytes
    lease: str = "llmtaskpool-operator"
    workers: WorkerDefaults = field(default_factory=WorkerDefaults)


@dataclass(slots=True)
class _Remembered:
    """What one turn of a pool leaves to the next; lost with the process, at no harm."""

    uid: str
    token: str
    states: PodStates
    refusals: Refusals
    warnings: StartWarnings
    gate: GateMemory
    writes: ScaleWrites = field(default_factory=ScaleWrites)
    memory: LoopMemory = field(default_factory=LoopMemory)
    parsed: tuple[_Revision, LLMTaskPool] | None = None
    problems: tuple[Problem, ...] = ()
    children_of: _Revision | None = None
    """What the pool was when its children were looked at last."""
    children_at: float = float("-inf")
    other: str | None = None
    """The operator that serves the pool, when it is not this one."""
    child_lost: bool = False
    """One of them is gone, or somebody else wrote it."""
    warned: int = 0
    """Of ``warnings.missed``, as it was when children were looked at last."""
    applied: Written = field(default_factory=dict)
    agreed: Manifest | None = None
    """The Deployment as it was when it was as it should be: to compare is dear."""
    told: Told = field(default_factory=Told)
    rest: Resting | None = None
    """The pool as it was, while it is at rest."""


class Controller:
    """All pools' turns. ``clock``: seconds since the epoch, never backwards.

    ``recorder`` is told of each turn that worked.
    """

    def __init__(
        self,
        access: ClusterAccess,
        identity: OperatorIdentity,
        metrics: OperatorMetrics,
        clock: Callable[[], float],
        recorder: Recorder | None = None,
    ) -> None:
        self._access = access
        self._recorder = recorder
        self._identity = identity
        self._metrics = metrics
        self._clock = clock
        self._teller = Teller(access.api, identity.name, clock)
        self._pools: dict[PoolKey, _Remembered] = {}

    async def turn(self, key: PoolKey) -> float | None:
        """Do what is to be done; seconds until the next turn, None when the pool is gone.

        Raises ApiFailure and Fenced: the turn is to be done again.
        """
        if await self._rests_on(key):
            return DEFAULTS.period_seconds
        body = self._access.store.pool(key)
        if body is None or body["metadata"].get("deletionTimestamp"):
            self.forget(key)  # its children go with it: their owner is gone
            return None
        ours, objects = self._remembered(key, body), self._access.store.objects(key)
        try:
            pool = _parsed(ours, body)
        except BadPool as bad:
            generation = int(body["metadata"]["generation"])
            before = ours.memory.status or LLMTaskPoolStatus()
            status = invalid_status(before, bad.faults, generation, rfc3339(self._clock()))
            ours.memory = replace(ours.memory, status=status)
            await self._teller.status(body, ours.told, status)
            for note in notes(before, status, 0, ()):
                await self._teller.event(body, note)
            return CHILDREN_SECONDS
        around = self._around(ours)
        backend = KubernetesBackend(
            pool,
            around,
            self._access,
            ours.states,
            ours.refusals,
            ours.warnings,
            ours.writes,
            ours.gate,
        )
        try:
            if ours.other is not None and await self._access.others.lives(ours.other):
                return STAND_BACK_SECONDS
            problems = await self._ensure(backend, key, ours)
        except ServedByAnother as served:
            await self._stand_back(body, ours, str(served))
            return STAND_BACK_SECONDS
        ours.other = None
        problems += await backend.ensure_scale()
        began, now = ours.memory, self._clock()
        seen = BackendWithProblems(backend, problems, ours.refusals, pool)
        result = await reconcile(pool, seen, began, now)
        ours.memory = result.memory
        seen.settle(result)
        self._metrics.decided(key.namespace, key.name, result)
        if self._recorder is not None:
            self._recorder.turn(pool, began.decided, result)
        await self._tell(body, ours, began.status, result)
        _raise_failed_writes(key, result)
        ours.rest = self._resting(ours, pool, began, result, objects, backend.clients)
        wait = next_turn_seconds(result)
        return min(wait, CHILD_SECONDS) if ours.child_lost else wait

    async def _rests_on(self, key: PoolKey) -> bool:
        """Whether a pool at rest is as it was: its pods are asked, and all else is known."""
        ours, store, now = self._pools.get(key), self._access.store, self._clock()
        if ours is None or (rest := ours.rest) is None:
            return False
        ours.rest = None
        if not rest.sees(store.objects(key)) or not rest.lasts(now):
            return False
        answers = await ours.states.read(rest.clients)
        if (heard := rest.hears(answers, now)) is None:
            ours.states.hurry()
            return False
        # While pods were waited for, something else may have come.
        over = ours.child_lost or ours.warned != ours.warnings.missed
        if over or not rest.sees(store.objects(key)):
            return False
        ours.memory = replace(ours.memory, decided=rest.remembered(ours.memory.decided, now))
        ours.rest = heard
        return True

    def _resting(
        self,
        ours: _Remembered,
        pool: LLMTaskPool,
        before: LoopMemory,
        result: ReconcileResult,
        objects: tuple[Manifest, ...],
        clients: Callable[[], dict[str, WorkerClient]],
    ) -> Resting | None:
        """What the next turns need, where this one was as the one before. ``objects`` are those
        that the store had when it began."""
        meta, settled = pool.metadata, ours.agreed is not None and ours.told.status is result.status
        if not settled or (self._recorder and self._recorder.wants(meta.namespace, meta.name)):
            return None
        policy = replica_policy(pool.spec, result.memory.decided.replicas_at)
        if not rests(pool.spec, policy, before, result):
            return None
        states = {pod.name: pod.state for pod in result.observed.pods if pod.state is not None}
        until = ours.children_at + CHILDREN_SECONDS
        return Resting(pool.spec, policy, objects, clients(), states, until)

    def child_lost(self, key: PoolKey) -> None:
        """A child of the pool is gone, or changed by somebody: the next turn looks at them."""
        if (ours := self._pools.get(key)) is not None:
            ours.child_lost = True

    def forget(self, key: PoolKey) -> None:
        """The pool is gone."""
        if (ours := self._pools.pop(key, None)) is not None:
            self._access.rollouts.ended(key)
            ours.states.close()
            ours.gate.states.close()
            self._metrics.forget(key.namespace, key.name)

    def forget_all(self) -> None:
        """Another replica leads."""
        for key in list(self._pools):
            self.forget(key)

    async def _ensure(
        self, backend: KubernetesBackend, key: PoolKey, ours: _Remembered
    ) -> tuple[Problem, ...]:
        revision, now = ours.parsed[0] if ours.parsed else None, self._clock()
        before = self._access.store.deployment(key)
        every = TAKEN_SECONDS if ours.problems else CHILDREN_SECONDS
        due = ours.children_of != revision or now - ours.children_at > every
        due |= ours.warned != ours.warnings.missed  # a pod waits, perhaps for one of them
        # Not at each word of somebody who deletes it again and again.
        due |= ours.child_lost and now - ours.children_at >= CHILD_SECONDS
        new = ours.children_of is None and before is None
        if due:
            ours.agreed = None
        # A pod of a new pool can't start without the others, and the claim comes before all.
        lost, missed = ours.child_lost and due, ours.warnings.missed
        if due:
            ours.child_lost = False  # before they are looked at: one may go when it was seen
        try:
            if due:
                ours.problems = await backend.ensure_children(ours.applied, new=new)
            problems = await backend.ensure_deployment(ours.agreed, new=new, written=ours.applied)
            problems += await backend.gate.ensure()
        except BaseException:
            ours.child_lost |= lost  # not all of them were looked at
            raise
        if due:
            ours.children_of, ours.children_at, ours.warned = revision, now, missed
        same = self._access.store.deployment(key) is before
        ours.agreed = self._access.store.drop_template(key) if same and not problems else None
        if self._access.rollouts.waits(key):
            ours.agreed = None  # it does not agree: it waits until it may be made to
        return ours.problems + problems

    def _remembered(self, key: PoolKey, body: Manifest) -> _Remembered:
        uid = str(body["metadata"].get("uid", ""))
        ours = self._pools.get(key)
        if ours is None or ours.uid != uid:
            self.forget(key)
            ours = self._pools[key] = _Remembered(
                uid,
                control_token(self._identity.key, uid),
                PodStates(self._clock),
                Refusals(self._clock),
                StartWarnings(self._access.api),
                GateMemory(PodStates(self._clock)),
            )
            ours.memory = LoopMemory(status=_status_of(body))
            live = self._access.store.deployment(key)
            if live is not None and pod_facts.rollout(live) and not pod_facts.is_late(live):
                self._access.rollouts.found(key)
        return ours

    def _around(self, ours: _Remembered) -> Surroundings:
        return Surroundings(
            image=self._identity.worker_image,
            control_token=ours.token,
            namespace=self._identity.namespace,
            workers=self._identity.workers,
            operator=f"{self._identity.namespace}/{self._identity.lease}",
        )

    async def _stand_back(self, body: Manifest, ours: _Remembered, other: str) -> None:
        """Leave the pool to another operator, and say so once."""
        ours.children_of, ours.agreed = None, None
        if ours.other == other:
            return
        ours.other = other
        meta, mine = body["metadata"], f"{self._identity.namespace}/{self._identity.lease}"
        text = (
            f"the operator {mine} stands back: {other} serves this pool, and lives. Let only one "
            "of them see it: the chart's `namespaces`, or uninstall one"
        )
        log.warning("%s/%s: %s", meta["namespace"], meta["name"], text)
        await self._teller.event(body, Note("Warning", "OtherOperator", "Observe", text))

    async def _tell(
        self,
        body: Manifest,
        ours: _Remembered,
        before: LLMTaskPoolStatus | None,
        result: ReconcileResult,
    ) -> None:
        meta = body["metadata"]
        for action in result.plan:
            log.info("%s/%s: %s", meta["namespace"], meta["name"], action.reason)
        await self._teller.status(body, ours.told, result.status)
        undone = [failure.action for failure in result.failures]
        done = [action for action in result.plan if action not in undone]
        for note in notes(before, result.status, result.observed.replicas, done):
            await self._teller.event(body, note)


def control_token(key: bytes, uid: str) -> str:
    """The token of one pool's workers: HMAC-SHA256 of its uid, so that it need not be read back."""
    digest = hmac.new(key, uid.encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _parsed(ours: _Remembered, body: Manifest) -> LLMTaskPool:
    meta = body["metadata"]
    revision = _revision(int(meta.get("generation", 0)), meta.get("labels") or {})
    if ours.parsed is None or ours.parsed[0] != revision:
        ours.parsed = (revision, parse_pool({k: v for k, v in body.items() if k != "status"}))
    pool = ours.parsed[1]
    if pool.status is not ours.memory.status:
        pool = pool.model_copy(update={"status": ours.memory.status})
        ours.parsed = (revision, pool)
    return pool


def _revision(generation: int, labels: Mapping[str, str]) -> _Revision:
    return generation, tuple(sorted(labels.items()))


def _status_of(body: Manifest) -> LLMTaskPoolStatus | None:
    """The status as it was left, by us or by the one who led before; odd ones are made anew."""
    try:
        status = LLMTaskPoolStatus.model_validate(status_in(body))
    except ValueError:
        status = LLMTaskPoolStatus()
    return status.model_copy(update={"selector": manifests.selector(body["metadata"]["name"])})


def _raise_failed_writes(key: PoolKey, result: ReconcileResult) -> None:
    for failure in result.failures:
        if isinstance(failure.error, ApiFailure | Fenced):
            raise failure.error
        if isinstance(failure.error, ReplicasRefused):
            continue
        log.warning("%s: %s: %s", key, failure.action.reason, failure.error)
