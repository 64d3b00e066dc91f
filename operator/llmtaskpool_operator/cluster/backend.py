"""A pool on Kubernetes as the loop sees it: pods for workers, a Deployment that makes them.

A scale-down names its victims by deletion cost and then asks for fewer replicas: one absolute
write, after which nothing depends on the operator. Kubernetes takes the pods out of the Service
and tells them to end; each worker drains within the grace period, which covers the drain budget.
"""

from __future__ import annotations

import asyncio
import hashlib
import json

from llmtaskpool_operator.api.names import KIND
from llmtaskpool_operator.api.pool import LLMTaskPool
from llmtaskpool_operator.api.scaling import ScalingMode
from llmtaskpool_operator.autoscaler.observation import PoolObservation, Problem
from llmtaskpool_operator.autoscaler.plan import (
    Action,
    Route,
    SetReplicas,
    SetThreads,
    TellGate,
    given_replicas,
)
from llmtaskpool_operator.cluster import manifests, pod_facts, pod_problems
from llmtaskpool_operator.cluster.access import ClusterAccess
from llmtaskpool_operator.cluster.api_client import ApiFailure
from llmtaskpool_operator.cluster.differences import agrees, owned_by
from llmtaskpool_operator.cluster.gate import GateMemory, PoolGate, served_at
from llmtaskpool_operator.cluster.manifests import Manifest, Surroundings
from llmtaskpool_operator.cluster.observed_pods import observed
from llmtaskpool_operator.cluster.refusals import Refusals, is_refusal, told
from llmtaskpool_operator.cluster.rivals import ScaleWrites, rival_of
from llmtaskpool_operator.cluster.start_warnings import StartWarnings
from llmtaskpool_operator.cluster.store import PoolKey, has_template
from llmtaskpool_operator.workers.client import WorkerClient, WorkerUnreachable
from llmtaskpool_operator.workers.states import PodStates

VICTIM_COST = "-100"
CONFLICT_RETRIES = 5
"""A Deployment's status moves several times a second while its pods start."""
_APART = ("Secret",)
"""Kinds of which only the metadata is looked at: the operator reads no Secret of a pool."""
Written = dict[str, tuple[str, str]]
"""Children that were applied, by kind: the resource version that came of it, and the digest of what
was asked for, each where it is compared. The manifests would be 10 kB of each pool."""


class KubernetesBackend:
    """Implements reconcile.Backend for one pool."""

    def __init__(
        self,
        pool: LLMTaskPool,
        around: Surroundings,
        access: ClusterAccess,
        states: PodStates,
        refusals: Refusals | None = None,
        warnings: StartWarnings | None = None,
        writes: ScaleWrites | None = None,
        gate: GateMemory | None = None,
    ) -> None:
        self._pool = pool
        self._around = around
        self._access = access
        self._states = states
        self._key = PoolKey(pool.metadata.namespace, pool.metadata.name)
        self._refusals = refusals or Refusals(lambda: 0.0)
        self._warnings = warnings or StartWarnings(access.api)
        self._writes = writes or ScaleWrites()
        self._what = f"Deployment {pool.metadata.name}"
        self.gate = PoolGate(
            pool, around, access, gate or GateMemory(PodStates(lambda: 0.0)), self._refusals
        )

    async def ensure_children(
        self, written: Written | None = None, *, new: bool = False
    ) -> tuple[Problem, ...]:
        """Make or mend all children but the Deployment, once the pool is claimed.

        Raises ApiFailure, Fenced, and ServedByAnother before anything is written.

        ``written`` is kept from call to call: what was applied, by kind. Those of a ``new`` pool
        are made without a look at each first: it is likely that none is there.
        """
        written = {} if written is None else written
        led = await self.gate.routed()
        claim, *children = manifests.children(self._pool, self._around, to_gate=led)
        ensure = self._ensure_child
        found = [await ensure(claim, written, new=new)]
        if new:
            found += [await ensure(one, written, new=True) for one in children]
        else:  # all at once: whoever changed a pool waits for these looks
            found += await asyncio.gather(*(ensure(one, written) for one in children))
        return tuple(problem for problem in found if problem is not None)

    async def ensure_deployment(
        self,
        agreed: Manifest | None = None,
        *,
        new: bool = False,
        written: Written | None = None,
    ) -> tuple[Problem, ...]:
        """Make or mend the Deployment; its replicas stay. Raises ApiFailure, Fenced.

        What the server refuses is told, and not asked for again at once. ``agreed`` is the one of
        the store that was last found to be as it should; that of a ``new`` pool is made without a
        look first. ``written`` is kept from call to call: what was asked for last.
        """
        generation = self._pool.metadata.generation
        if (standing := self._refusals.standing(self._what, generation)) is not None:
            return (standing,)
        try:
            found = await self._ensured(agreed, {} if written is None else written, new=new)
        except ApiFailure as failure:
            first = self._live() is None
            return (self._refusals.refused(self._what, generation, failure, first=first),)
        self._refusals.taken(self._what)
        return found

    async def _ensured(
        self, agreed: Manifest | None, written: Written, *, new: bool
    ) -> tuple[Problem, ...]:
        live = self._access.store.deployment(self._key)
        if live is None and new:
            made = await self._access.api.make(self._wanted(self._first_replicas()))
            if made is not None:
                self._access.store.seen("Deployment", made)
                written["Deployment"] = ("", self._digest())
                return ()
        if live is not None and live is agreed:
            return ()
        rollouts, digest = self._access.rollouts, self._digest()
        _, known = written.get("Deployment", ("", ""))
        asked_for = known != digest if known else self._asked_for()
        if rollouts.held(self._key) and not asked_for:
            return ()
        if live is None or not has_template(live):
            # Not seen is not the same as not there: a watch may be late.
            live = await self._read()
        if live is None:
            await self._apply(self._first_replicas(), None)
        elif not self._ours(live):
            return (_taken("Deployment", self._key.name),)
        # What the spec does not ask for any more shows in no comparison with what is there.
        elif asked_for or not agrees(wanted := self._wanted(_replicas(live)), live):
            same = asked_for or agrees(wanted["spec"]["template"], live["spec"]["template"])
            if not (same or rollouts.begins(self._key)):
                return ()
            await self._apply(_replicas(live), live)
        written["Deployment"] = ("", digest)
        return ()

    async def ensure_scale(self) -> tuple[Problem, ...]:
        """See that /scale can be read in mode External: it needs a number in spec.replicas.

        Written through /scale itself, once, where the manifest has none: no manager owns it, so
        who applies the manifest, by whichever way, neither conflicts with it nor takes it away.
        """
        pool, body = self._pool, self._access.store.pool(self._key)
        if pool.spec.scaling.mode is not ScalingMode.EXTERNAL or pool.spec.replicas is not None:
            return ()
        what, generation = f"/scale of {KIND} {self._key.name}", pool.metadata.generation
        standing = self._refusals.standing(what, generation)
        if standing is not None or body is None:
            return () if standing is None else (standing,)
        live = self._live()
        replicas = self._first_replicas() if live is None else _replicas(live)
        # Somebody may write it right now: theirs holds, by the version.
        version = {"resourceVersion": str(body["metadata"]["resourceVersion"])}
        patch = {"metadata": version, "spec": {"replicas": replicas}}
        api, key = self._access.api, self._key
        try:
            await api.merge(KIND, key.namespace, key.name, patch, subresource="scale")
        except ApiFailure as failure:
            if failure.code == 409:
                return ()
            return (self._refusals.refused(what, generation, failure, first=False),)
        return ()

    async def observe(self, now: float) -> PoolObservation:
        """The pool by what was watched, and what its pods answer now."""
        live, every = self._live(), self._access.store.pods(self._key)
        pods = tuple(pod for pod in every if not pod_facts.is_over(pod))
        silent = pod_problems.starting_in_silence(pods, now)
        answers = await self._states.read(self.clients(pods))
        warned = await self._warnings.of(silent, now)
        gate = await self.gate.observe(now)
        pool, memory = self._pool, self._pool.spec.resources.limits.get("memory")
        return PoolObservation(
            replicas=0 if live is None else _replicas(live),
            pods=tuple(
                observed(pod, answers.get(pod_facts.name_of(pod)), now, served_at(pod))
                for pod in pods
            ),
            problems=pod_problems.problems(live, pods, now=now, memory=memory, warned=warned),
            rival=rival_of(pool, self._access.store.pool(self._key), live, self._writes, now),
            scalable=live is not None,
            rollout=self._rollout(live),
            wakes=gate is not None and (gate.ready or gate.problem is None),
            gate=gate,
        )

    async def apply(self, action: Action) -> None:
        """Do it. Raises WorkerUnreachable, ThreadsRefused, ApiFailure, Fenced."""
        match action:
            case TellGate():
                await self.gate.tell(action)
            case Route():
                wanted = manifests.service(self._pool, to_gate=action.to_gate)
                if await self._ensured_child(wanted, {}, new=False) is None:
                    self.gate.lead(to_gate=action.to_gate)
            case SetThreads():
                clients = self.clients()
                if action.pod not in clients:
                    raise WorkerUnreachable(f"{action.pod} is gone")
                await clients[action.pod].set_threads(action.generation, action.threads)
                self._states.changed(action.pod)
            case SetReplicas():
                live = self._live()
                if live is None:
                    raise ApiFailure(404, "there is no Deployment of ours: the next turn makes it")
                if action.victims:
                    await self._mark(frozenset(action.victims))
                refused = self._refusals.standing(self._what, self._pool.metadata.generation)
                if refused or self._access.rollouts.waits(self._key):
                    await self._scale(action.replicas, live)
                else:
                    await self._apply(action.replicas, live)

    async def _ensure_child(
        self, wanted: Manifest, written: Written, *, new: bool = False
    ) -> Problem | None:
        try:
            return await self._ensured_child(wanted, written, new=new)
        except ApiFailure as failure:
            if not is_refusal(failure):
                raise
            kind, meta = wanted["kind"], wanted["metadata"]
            return told(failure, f"{kind} {meta['name']}", first=kind not in written)

    async def _ensured_child(
        self, wanted: Manifest, written: Written, *, new: bool
    ) -> Problem | None:
        kind, meta = wanted["kind"], wanted["metadata"]
        made = await self._access.api.make(wanted, whole=False) if new else None
        if made is None:
            look = self._access.api.metadata if kind in _APART else self._access.api.get
            live = await look(kind, meta["namespace"], meta["name"])
            if live is not None and not self._ours(live):
                return _taken(kind, meta["name"])
            await self._access.others.check(live if kind in _APART else None)
            if live is not None and self._as_wanted(wanted, live, written):
                written.setdefault(kind, _as_written(wanted, live))
                return None
            # A claim is taken on the condition that nobody else takes it.
            version = str(live["metadata"]["resourceVersion"]) if live and kind in _APART else None
            made = await self._access.api.apply(wanted, version=version, whole=False)
        written[kind] = _as_written(wanted, made)
        return None

    def _as_wanted(self, wanted: Manifest, live: Manifest, written: Written) -> bool:
        """Of what can't be read: whether nobody wrote it since we wrote the same."""
        if wanted["kind"] not in _APART:
            return agrees(wanted, live)
        return written.get(wanted["kind"]) == _as_written(wanted, live)

    def _ours(self, live: Manifest) -> bool:
        """Whether it is this pool's, or was one's of its name that left it behind on purpose."""
        meta = self._pool.metadata
        return owned_by(live, meta.uid) or manifests.left_behind(live, meta.name)

    def _digest(self) -> str:
        """Of all that the Deployment is asked to be but for its replicas."""
        return _digest_of(self._wanted(0))

    def _asked_for(self) -> bool:
        """Whether somebody changed the pool since it was last what its spec asks for."""
        status, meta = self._pool.status, self._pool.metadata
        return status is not None and status.observed_generation not in (0, meta.generation)

    def _rollout(self, live: Manifest | None) -> str:
        """What a change of the pods waits for; the one who waited for it makes room."""
        left = "" if live is None else pod_facts.rollout(live)
        rollouts = self._access.rollouts
        if not left and not (left := rollouts.waits(self._key)):
            rollouts.ended(self._key)
        return left

    def _live(self) -> Manifest | None:
        """The Deployment, if it is this pool's."""
        live = self._access.store.deployment(self._key)
        return live if live is not None and owned_by(live, self._pool.metadata.uid) else None

    def clients(self, pods: tuple[Manifest, ...] | None = None) -> dict[str, WorkerClient]:
        """Of those ``pods`` that have an address, by name; None: of all."""
        pods = self._access.store.pods(self._key) if pods is None else pods
        token = self._around.control_token
        return {
            pod_facts.name_of(pod): self._access.worker(address, token)
            for pod in pods
            if (address := pod_facts.address(pod)) is not None
        }

    def _wanted(self, replicas: int) -> Manifest:
        return manifests.deployment(self._pool, self._around, replicas)

    def _first_replicas(self) -> int:
        """What a new Deployment asks for; one that was deleted gets back what it had."""
        scaling, status = self._pool.spec.scaling, self._pool.status
        if scaling.mode in (ScalingMode.FIXED, ScalingMode.EXTERNAL):
            return given_replicas(self._pool.spec)
        had = 0 if status is None else status.desired_replicas
        return min(max(had, scaling.min_replicas), scaling.max_replicas)

    async def _read(self) -> Manifest | None:
        found = await self._access.api.get("Deployment", self._key.namespace, self._key.name)
        if found is not None:
            self._access.store.seen("Deployment", found)
        return found

    async def _apply(self, replicas: int, live: Manifest | None) -> None:
        """Apply the Deployment on the condition that nobody changed its spec since ``live``."""
        for _ in range(CONFLICT_RETRIES):
            version = None if live is None else str(live["metadata"]["resourceVersion"])
            try:
                made = await self._access.api.apply(self._wanted(replicas), version=version)
            except ApiFailure as failure:
                if failure.code != 409 or live is None:
                    raise
                newer = await self._read()
                if (
                    newer is None
                    or newer["metadata"]["generation"] != live["metadata"]["generation"]
                ):
                    raise  # its spec changed: decide anew
                live = newer  # only its status moved
            else:
                self._access.store.seen("Deployment", made)
                return
        raise ApiFailure(409, f"Deployment {self._key.name} changed {CONFLICT_RETRIES} times")

    async def _scale(self, replicas: int, live: Manifest) -> None:
        """Replicas alone: the template that the pool asks for is refused, and the old one lives.

        Not an apply: what it leaves out would be taken away.
        """
        version = {"resourceVersion": str(live["metadata"]["resourceVersion"])}
        patch = {"metadata": version, "spec": {"replicas": replicas}}
        key = self._key
        made = await self._access.api.merge("Deployment", key.namespace, key.name, patch)
        self._access.store.seen("Deployment", made)

    async def _mark(self, victims: frozenset[str]) -> None:
        """Give the victims, and nobody else, a low deletion cost."""
        costs: dict[str, str | None] = {}
        for pod in self._access.store.pods(self._key):
            name = pod_facts.name_of(pod)
            wanted = VICTIM_COST if name in victims else None
            annotations = pod["metadata"].get("annotations") or {}
            if not pod_facts.is_going(pod) and annotations.get(manifests.DELETION_COST) != wanted:
                costs[name] = wanted
        marked = await asyncio.gather(
            *(self._set_cost(name, cost) for name, cost in costs.items()), return_exceptions=True
        )
        for outcome in marked:
            # A pod that is gone by now needs no mark.
            if isinstance(outcome, BaseException) and getattr(outcome, "code", 0) != 404:
                raise outcome

    async def _set_cost(self, name: str, cost: str | None) -> None:
        patch = {"metadata": {"annotations": {manifests.DELETION_COST: cost}}}
        self._access.store.seen(
            "Pod", await self._access.api.merge("Pod", self._key.namespace, name, patch)
        )


def _replicas(deployment: Manifest) -> int:
    """What it asks for; absent means 1, as everywhere in Kubernetes."""
    return int(deployment.get("spec", {}).get("replicas", 1))


def _as_written(wanted: Manifest, made: Manifest) -> tuple[str, str]:
    """What is kept of a child that came of ``wanted``."""
    digest = _digest_of(wanted) if wanted["kind"] in _APART else ""
    return str(made["metadata"]["resourceVersion"]), digest


def _digest_of(manifest: Manifest) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def _taken(kind: str, name: str) -> Problem:
    text = f"there is a {kind} {name} that is not this {KIND}'s: remove it, or rename the pool"
    return Problem("NameTaken", text, stalled=True, blocks=True)
