"""The gate of one pool on Kubernetes: who holds requests while no worker is there.

The operator tells it which workers are ready: it needs no rights of its own, no second Service
and no name that a resolver keeps for longer than a pod lives. The pool's Service leads to the
gate or to the workers, by its selector, in one write: while workers are there the gate is in
nobody's way, and no pod has to look unready for that.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmtaskpool_worker.contract import DATA_PORT

from llmtaskpool_operator.api.names import KIND
from llmtaskpool_operator.api.pool import LLMTaskPool
from llmtaskpool_operator.autoscaler.observation import GateObservation, Problem
from llmtaskpool_operator.autoscaler.plan import TellGate
from llmtaskpool_operator.cluster import manifests, pod_facts, pod_problems
from llmtaskpool_operator.cluster.access import ClusterAccess
from llmtaskpool_operator.cluster.api_client import ApiFailure
from llmtaskpool_operator.cluster.differences import agrees, owned_by
from llmtaskpool_operator.cluster.identity import gate_labels, gate_name
from llmtaskpool_operator.cluster.manifests import Manifest, Surroundings
from llmtaskpool_operator.cluster.observed_pods import observed
from llmtaskpool_operator.cluster.refusals import Refusals
from llmtaskpool_operator.cluster.store import PoolKey
from llmtaskpool_operator.workers.client import WorkerClient, WorkerUnreachable
from llmtaskpool_operator.workers.states import PodStates


@dataclass(slots=True)
class GateMemory:
    """What one turn leaves to the next. ``routed`` None: nobody has looked at the Service yet.

    ``ensured``: the Deployment's generation when it was as it should be, and the mark of that.
    """

    states: PodStates
    routed: bool | None = None
    ensured: tuple[int, str] | None = None


class PoolGate:
    """The gate's Deployment, its pods, and whether the pool's Service leads to it."""

    def __init__(
        self,
        pool: LLMTaskPool,
        around: Surroundings,
        access: ClusterAccess,
        memory: GateMemory,
        refusals: Refusals,
    ) -> None:
        self._pool, self._around, self._access = pool, around, access
        self._memory, self._refusals = memory, refusals
        self._key = PoolKey(pool.metadata.namespace, pool.metadata.name)
        self._name = gate_name(pool)

    @property
    def stands(self) -> bool:
        """Whether the pool is to have one."""
        return self._pool.spec.scaling.may_sleep

    async def routed(self) -> bool:
        """Whether the Service is to stay led to the gate. Raises ApiFailure."""
        if not self.stands and self._live() is None:
            return False
        if self._memory.routed is None:
            found = await self._access.api.get("Service", self._key.namespace, self._key.name)
            led = ((found or {}).get("spec") or {}).get("selector")
            self._memory.routed = led == gate_labels(self._key.name)
        return self._memory.routed

    def lead(self, *, to_gate: bool) -> None:
        """The Service leads there now."""
        self._memory.routed = to_gate

    async def ensure(self) -> tuple[Problem, ...]:
        """Make or mend its Deployment. Raises ApiFailure, Fenced.

        The operator deletes nothing: of a pool that is not to have one any more it is asked for no
        pods, once a worker is ready.
        """
        live = self._live()
        if not self.stands and live is None:
            return ()
        pods = self._access.store.pods(self._key)
        needed = self.stands or not any(pod_facts.is_ready(pod) for pod in pods)
        wanted = manifests.gate(self._pool, self._around, int(needed))
        mark = str(wanted["metadata"]["annotations"][manifests.APPLIED])
        if live is not None and self._memory.ensured == (_generation(live), mark):
            return ()
        what, generation = f"Deployment {self._name}", self._pool.metadata.generation
        if (standing := self._refusals.standing(what, generation)) is not None:
            return (standing,)
        try:
            found = await self._access.api.get("Deployment", self._key.namespace, self._name)
            if found is not None and not self._ours(found):
                text = f"there is a Deployment {self._name} that is not this {KIND}'s: remove it, "
                text += "or rename the pool"
                return (Problem("NameTaken", text, stalled=True),)
            if found is None or not agrees(wanted, found):
                found = await self._access.api.apply(wanted)
        except ApiFailure as failure:
            return (self._refusals.refused(what, generation, failure, first=live is None),)
        self._refusals.taken(what)
        self._access.store.seen("Deployment", found)
        self._memory.ensured = (_generation(found), mark)
        return ()

    async def observe(self, now: float) -> GateObservation | None:
        """What its pods hold; None when there is none, and is to be none."""
        live, every = self._live(), self._access.store.gate_pods(self._key)
        pods = tuple(pod for pod in every if not pod_facts.is_over(pod))
        if not self.stands and not pods:
            return None
        answers = await self._memory.states.read(self._clients(pods))
        found = pod_problems.problems(live, pods, now=now)
        return GateObservation(
            pods=tuple(observed(pod, answers.get(pod_facts.name_of(pod)), now) for pod in pods),
            routed=bool(self._memory.routed),
            stands=self.stands,
            problem=found[0].message if found else None,
        )

    async def tell(self, action: TellGate) -> None:
        """Say which workers are ready. Raises WorkerUnreachable."""
        clients = self._clients(self._access.store.gate_pods(self._key))
        if action.pod not in clients:
            raise WorkerUnreachable(f"{action.pod} is gone")
        await clients[action.pod].set_workers(action.workers)
        self._memory.states.changed(action.pod)

    def _live(self) -> Manifest | None:
        live = self._access.store.gate(self._key, self._name)
        return live if live is not None and self._ours(live) else None

    def _ours(self, live: Manifest) -> bool:
        meta = self._pool.metadata
        return owned_by(live, meta.uid) or manifests.left_behind(live, meta.name)

    def _clients(self, pods: tuple[Manifest, ...]) -> dict[str, WorkerClient]:
        token = self._around.control_token
        return {
            pod_facts.name_of(pod): self._access.worker(address, token)
            for pod in pods
            if (address := pod_facts.address(pod)) is not None
        }


def served_at(pod: Manifest) -> str | None:
    """Host and port at which a worker's pod serves."""
    address = pod_facts.address(pod)
    return None if address is None else f"{address}:{DATA_PORT}"


def _generation(deployment: Manifest) -> int:
    return int(deployment["metadata"].get("generation") or 0)
