"""The pool on this machine as the loop sees it: worker processes in the place of pods."""

from __future__ import annotations

from llmtaskpool_operator.autoscaler.observation import PodObservation, PoolObservation
from llmtaskpool_operator.autoscaler.plan import Action, SetReplicas, SetThreads
from llmtaskpool_operator.local.fleet import Fleet
from llmtaskpool_operator.local.worker_process import LocalWorker
from llmtaskpool_operator.workers.client import WorkerUnreachable


class LocalBackend:
    """Implements reconcile.Backend over a Fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def observe(self, now: float) -> PoolObservation:
        """Start what is missing, then ask every worker. Raises Unstartable."""
        await self._fleet.tend()
        await self._fleet.observe(now)
        return PoolObservation(
            replicas=self._fleet.wanted,
            pods=tuple(_pod(worker, now) for worker in self._fleet.workers.values()),
        )

    async def apply(self, action: Action) -> None:
        """Do it. Raises WorkerUnreachable, ThreadsRefused, Unstartable."""
        match action:
            case SetReplicas():
                await self._fleet.scale(action.replicas, action.victims)
            case SetThreads():
                worker = self._fleet.workers.get(action.pod)
                if worker is None:
                    raise WorkerUnreachable(f"{action.pod} is gone")
                await worker.client().set_threads(action.generation, action.threads)


def _pod(worker: LocalWorker, now: float) -> PodObservation:
    return PodObservation(
        name=worker.id,
        ready=worker.ready,
        draining=worker.retiring,
        state=worker.state,
        age_seconds=max(0.0, now - worker.state_at),
    )
