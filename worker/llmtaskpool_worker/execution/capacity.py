"""How many threads a lane can use at most, found at run time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.execution.engine_slots import EngineSlots
from llmtaskpool_worker.execution.lanes import Lane
from llmtaskpool_worker.scheduling.cost import CostModel
from llmtaskpool_worker.scheduling.latency_guard import LatencyGuard


class Capacity:
    """Bounds a lane by its limit, its engines' memory, and the latency guard."""

    def __init__(
        self,
        slots: Mapping[str, EngineSlots],
        lanes: Mapping[LaneName, Lane],
        cost: CostModel,
        clock: Callable[[], float],
    ) -> None:
        self._slots = slots
        self._lanes = lanes
        self._cost = cost
        self._clock = clock

    def of(self, name: LaneName) -> int:
        """The most threads that the lane can use; at least 1."""
        cap = self._lanes[name].limits.threads_max
        if name is not LaneName.COMPUTE:
            return cap
        ready = self._ready()
        if ready:
            cap = min(cap, sum(s.holds for s in ready))
        guarded = [self._guarded(s, s.guard) for s in ready if s.guard is not None]
        return max(1, min([cap, *guarded]))

    def look(self) -> None:
        """Settle anew what servers behind models can hold, and what is tried at them."""
        now, lane, ready = self._clock(), self._lanes[LaneName.COMPUTE], self._ready()
        for slots in self._slots.values():
            slots.bound(now)
        # Who gives a lane fewer threads than its engines hold does not want more to be tried.
        full = lane.threads >= min(lane.limits.threads_max, sum(s.holds for s in ready))
        most = lane.limits.threads_max - lane.threads
        lane.tries = max(0, min(most, sum(s.tries for s in ready))) if full else 0

    def _ready(self) -> list[EngineSlots]:
        return [slots for slots in self._slots.values() if slots.ready is not None]

    def _guarded(self, slots: EngineSlots, guard: LatencyGuard) -> int:
        knee = self._cost.model(slots.name).knee(guard.slo_seconds)
        return guard.adjust(len(slots.in_flight), knee, self._clock())
