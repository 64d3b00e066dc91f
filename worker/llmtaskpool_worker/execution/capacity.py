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
        ready = [s for s in self._slots.values() if s.ready is not None]
        if ready:
            cap = min(cap, sum(s.holds for s in ready))
        guarded = [self._guarded(s, s.guard) for s in ready if s.guard is not None]
        return max(1, min([cap, *guarded]))

    def look(self) -> None:
        """Settle anew what servers behind models can hold."""
        now = self._clock()
        for slots in self._slots.values():
            if slots.seats is not None:
                slots.bound(self._cost.steps(slots.name), now)
            if slots.ramp is not None:
                slots.ramp.look(len(slots.in_flight), now)

    def _guarded(self, slots: EngineSlots, guard: LatencyGuard) -> int:
        knee = self._cost.model(slots.name).knee(guard.slo_seconds)
        return guard.adjust(len(slots.in_flight), knee, self._clock())
