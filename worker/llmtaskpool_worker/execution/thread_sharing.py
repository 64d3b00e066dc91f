"""Which models and handlers share a lane's threads just now, and what room each has of its part."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from llmtaskpool_worker.brokers.protocol import Broker
from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.execution.engine_slots import EngineSlots, model_of
from llmtaskpool_worker.execution.lanes import Lane
from llmtaskpool_worker.scheduling.thread_shares import guaranteed

HANDLERS = ""
"""All kinds that are no model's: they run in one process."""

Free = Callable[[str | None], int]
"""How many more of a group may start."""


class ThreadSharing:
    """Of one worker. Only where engines are: a thread of the other lane is a place to wait in."""

    def __init__(
        self,
        broker: Broker,
        slots: Mapping[str, EngineSlots],
        free: Free,
        groups: Callable[[Lane], Collection[str]],
    ) -> None:
        self._broker, self._slots, self._free, self._groups = broker, slots, free, groups

    def holder_of(self, group: str | None) -> str:
        """Who holds the threads of a group's tasks."""
        model = model_of(group)
        return model if model in self._slots else HANDLERS

    def guaranteed(self, lane: Lane) -> Mapping[str, int]:
        """G of each holder that has work; nothing where there is nothing to share.

        Of a shared broker's line as it was last seen: who is taken for waiting and isn't takes
        nothing, so the others have it.
        """
        if lane.name is not LaneName.COMPUTE:
            return {}
        waiting = self._broker.waiting_weights(
            lane.name, self._groups(lane) if self._broker.shared else ()
        )
        if len(lane.held):
            waiting = [*waiting, *lane.held.weights()]
        if not waiting or (len(waiting) == 1 and lane.holders.keys() <= {waiting[0][0]}):
            return {}
        weights: dict[str, float] = {}
        for group, weight in waiting:
            if self._free(group) > 0:
                holder = self.holder_of(group)
                weights[holder] = max(weight, weights.get(holder, 0.0))
        if not weights:
            return {}
        for holder, has in lane.holders.items():
            weights.setdefault(holder, has.weight)
        return guaranteed(lane.threads, weights) if len(weights) > 1 else {}

    def room(self, lane: Lane, has: Mapping[str, int]) -> Free:
        """How many more of a group may start within what its holder ``has``, now."""

        def free(group: str | None) -> int:
            holder = self.holder_of(group)
            taken = lane.holders.get(holder)
            left = has.get(holder, 0) - (0 if taken is None else taken.count)
            return min(self._free(group), left) if left > 0 else 0

        return free
