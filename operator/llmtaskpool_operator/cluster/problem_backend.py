"""A pool's backend with what stands in its way beside what its pods say."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmtaskpool_operator.api.pool import LLMTaskPool
from llmtaskpool_operator.api.scaling import ScalingMode
from llmtaskpool_operator.autoscaler.observation import PoolObservation, Problem
from llmtaskpool_operator.autoscaler.plan import Action, SetReplicas
from llmtaskpool_operator.autoscaler.reconcile import ReconcileResult
from llmtaskpool_operator.cluster.api_client import ApiFailure
from llmtaskpool_operator.cluster.backend import KubernetesBackend
from llmtaskpool_operator.cluster.refusals import Refusals


class ReplicasRefused(Exception):
    """The server refused another number of replicas; ``Refusals`` has its words."""


@dataclass(frozen=True, slots=True)
class BackendWithProblems:
    """A backend whose observation has also what stood in the way of children and replicas."""

    backend: KubernetesBackend
    problems: tuple[Problem, ...]
    refusals: Refusals
    pool: LLMTaskPool

    async def observe(self, now: float) -> PoolObservation:
        """The backend's, with what children and replicas are refused for."""
        seen = await self.backend.observe(now)
        held = self.refusals.last(self._replicas, self.pool.metadata.generation)
        problems = self.problems if held is None else (*self.problems, held)
        return replace(seen, problems=problems + seen.problems)

    async def apply(self, action: Action) -> None:
        """Raises also ReplicasRefused: the next turns tell of that, and this one goes on."""
        if not isinstance(action, SetReplicas):
            await self.backend.apply(action)
            return
        generation = self.pool.metadata.generation
        if self.refusals.standing(self._replicas, generation) is not None:
            raise ReplicasRefused
        try:
            await self.backend.apply(action)
        except ApiFailure as failure:
            self.refusals.refused(self._replicas, generation, failure, first=False)
            raise ReplicasRefused from failure
        self.refusals.taken(self._replicas)

    def settle(self, result: ReconcileResult) -> None:
        """Another number that was refused and that nobody wants any more is no problem."""
        mode = self.pool.spec.scaling.mode
        decided = result.decisions.replicas is not None or mode is not ScalingMode.AUTO
        if decided and not any(isinstance(action, SetReplicas) for action in result.plan):
            self.refusals.taken(self._replicas)

    @property
    def _replicas(self) -> str:
        return f"the number of replicas of Deployment {self.pool.metadata.name}"
