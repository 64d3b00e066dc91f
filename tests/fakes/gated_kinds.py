"""A pool without models whose kinds add, fail and wait for a gate."""

from __future__ import annotations

import threading

from llmtaskpool_worker.execution.dispatcher import Dispatcher
from llmtaskpool_worker.kinds.registry import CallContext, HandlerError, Kind, Kinds
from llmtaskpool_worker.scheduling.limits import LaneLimits, Limits


class Work:
    """Kinds that add, fail and wait for a gate, and the order in which they ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.gate = threading.Event()

    def pool(self, clock) -> Dispatcher:
        kinds = Kinds()

        def add(arguments: dict, _: CallContext) -> object:
            self.ran.append(arguments.get("name", ""))
            return sum(arguments["numbers"])

        def fail(_: dict, __: CallContext) -> object:
            raise HandlerError("broken", "it broke")

        def gated(arguments: dict, _: CallContext) -> object:
            self.gate.wait(30)
            return arguments

        for name, handler in (("add", add), ("fail", fail), ("gated", gated)):
            kinds.register(Kind(name, handler, "io"))
        limits = Limits(io=LaneLimits(8, 8, queue_tasks=30))
        return Dispatcher(kinds=kinds, clock=clock, limits=limits)
