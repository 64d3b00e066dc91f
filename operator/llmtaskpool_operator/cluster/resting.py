"""What is kept of a pool at rest, to see that it still rests: a look at each pod, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import is_

from llmtaskpool_worker.contract import WorkerReport

from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.autoscaler.decide import PoolMemory, replica_policy
from llmtaskpool_operator.autoscaler.law import Policy
from llmtaskpool_operator.autoscaler.rest import rested, unmoved
from llmtaskpool_operator.cluster.manifests import Manifest
from llmtaskpool_operator.workers.client import WorkerClient
from llmtaskpool_operator.workers.states import FRESH_SECONDS, Answer

_NONE = Answer()


@dataclass(frozen=True, slots=True)
class Resting:
    """A pool as the last whole turn saw it.

    ``objects`` are all of its that the store had; ``clients`` and ``states`` of its pods, by name.
    From ``until`` on, in seconds since the epoch, its children are to be looked at again.
    """

    spec: LLMTaskPoolSpec
    policy: Policy
    objects: tuple[Manifest, ...]
    clients: Mapping[str, WorkerClient]
    states: Mapping[str, WorkerReport]
    until: float

    def sees(self, objects: tuple[Manifest, ...]) -> bool:
        """Whether the store has the very same still."""
        return len(objects) == len(self.objects) and all(map(is_, objects, self.objects))

    def lasts(self, now: float) -> bool:
        """Whether time alone asks for nothing yet."""
        if now > self.until:
            return False
        return not self.spec.scaling.schedules or replica_policy(self.spec, now) == self.policy

    def hears(self, answers: Mapping[str, Answer], now: float) -> Resting | None:
        """The pool with what its pods have answered since ``now`` or just before, where each has
        said the same as before; else None.

        What they said before is let go: it would be all there, kept twice.
        """
        states = {}
        for name, before in self.states.items():
            answer = answers.get(name, _NONE)
            if answer.state is None or answer.error is not None:
                return None
            if answer.at <= now - FRESH_SECONDS or not unmoved(before, answer.state):
                return None
            states[name] = answer.state
        return replace(self, states=states)

    def remembered(self, memory: PoolMemory, now: float) -> PoolMemory:
        """What a whole turn would leave to the next one."""
        return rested(self.spec, self.policy, memory, now)
