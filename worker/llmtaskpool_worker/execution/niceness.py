"""Engines on the same processors are told how nice to be to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmtaskpool_worker.engines.protocol import SetNiceness
from llmtaskpool_worker.execution.engine_slots import EngineSlots
from llmtaskpool_worker.execution.lanes import Lane
from llmtaskpool_worker.scheduling.niceness import Lately, niceness


class Niceness:
    """Of the engines of one lane."""

    def __init__(
        self, lane: Lane, slots: Mapping[str, EngineSlots], clock: Callable[[], float]
    ) -> None:
        self._lane, self._clock = lane, clock
        self._slots = slots if len(slots) > 1 else {}
        self._lately = {name: Lately() for name in self._slots}

    def look(self) -> None:
        """Who runs has changed: tell those for whom it means something else than before."""
        holders = self._lane.holders
        if not self._slots or not holders:
            return
        now = self._clock()
        most = max(has.heaviest for has in holders.values())
        for name, has in holders.items():
            slots = self._slots.get(name)
            if slots is None or slots.device() != "cpu":
                continue  # handlers, accelerators and servers of others
            n = niceness(self._lately[name].seen(has.heaviest, now), most)
            if n != slots.niceness:
                slots.niceness = n
                slots.engine.send(SetNiceness(n))
