"""What engines are told beside their work, and what only time tells of them."""

from __future__ import annotations

import logging

from llmtaskpool_worker.engines.protocol import Ping, SetThreads, Stop, Trim
from llmtaskpool_worker.execution.engine_slots import EngineSlots
from llmtaskpool_worker.scheduling.climb import most_tried
from llmtaskpool_worker.scheduling.limits import Limits
from llmtaskpool_worker.scheduling.reserve import beyond

log = logging.getLogger("llmtaskpool.worker")


def tell_threads(threads: int, *told: EngineSlots) -> None:
    """N, and at a server what may go beyond it; an engine that loads is told later."""
    for slots in told:
        if slots.ready is not None:
            more = 0 if slots.seats is None else beyond(threads) + most_tried(threads)
            slots.engine.send(SetThreads(threads + more))


def watch_engine(slots: EngineSlots, now: float, limits: Limits) -> None:
    """Tell, ask, kill or trim it, as its clocks say."""
    problem = slots.problem(now, limits.stall_seconds)
    stalled = problem is not None and problem.code == "stalled"
    if stalled and not slots.stall_told:
        seconds = round(slots.stalled_for(now), 1)
        told = {"model": slots.name, "seconds": seconds, "in_flight": len(slots.in_flight)}
        log.warning("engine stalled", extra=told)
    slots.stall_told = stalled
    if slots.is_due(now, limits.ping_seconds):
        slots.asked_at = now
        slots.engine.send(Ping())
    silent = slots.silent_for(now)
    if silent >= limits.load_silent_seconds:
        told = {"model": slots.name, "seconds": round(silent, 1)}
        log.warning("engine silent while it loads", extra=told)
        slots.heard_at = now
        slots.engine.kill()
    if slots.seats is None and slots.stalled_for(now) >= limits.stall_kill_seconds:
        slots.engine.kill()
    _watch_memory(slots, now)
    idle = slots.idle_since
    if slots.ready and idle is not None and now - idle >= limits.trim_idle_seconds:
        slots.engine.send(Trim())
        slots.idle_since = None


def _watch_memory(slots: EngineSlots, now: float) -> None:
    memory = slots.memory
    match memory.look(now, len(slots.in_flight)):
        case "trim":
            slots.engine.send(Trim())
        case "leave":
            told = {"model": slots.name, "own_bytes": memory.own_bytes}
            told |= {"budget_bytes": memory.budget_bytes, "in_flight": len(slots.in_flight)}
            log.warning("engine leaks memory: it begins anew when what runs has ended", extra=told)
        case "stop":
            slots.engine.send(Stop())
