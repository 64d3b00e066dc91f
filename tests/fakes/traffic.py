"""Synthetic traffic and settings for the simulator's tests."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.simulation.laws import Ours
from llmtaskpool_operator.simulation.service import LLAMA2_70B
from llmtaskpool_operator.simulation.simulator import Outcome, Setting, simulate
from llmtaskpool_operator.simulation.trace import Trace, of_rows

PROMPT, OUTPUT = 1000, 200
WORK = 0.037 + 0.25 + 0.002 + OUTPUT * LLAMA2_70B.seconds_per_token(0.4)
"""Pod-seconds of one such request."""


def steady(seconds: float, pods: float, start: float = 0.0) -> list[float]:
    """Evenly spaced arrivals of ``pods`` pods of work."""
    count = round(seconds * pods / WORK)
    return [start + seconds * (i + 0.5) / count for i in range(count)] if count else []


def trace_of(arrivals: list[float]) -> Trace:
    return of_rows((at, PROMPT, OUTPUT, PROMPT) for at in arrivals)


def levels(*parts: tuple[float, float]) -> Trace:
    """(seconds, pods of work) one after the other."""
    arrivals: list[float] = []
    at = 0.0
    for seconds, pods in parts:
        arrivals += steady(seconds, pods, at)
        at += seconds
    return trace_of(arrivals)


def ramp(seconds: int, first: float, last: float) -> Trace:
    """Load that changes evenly, second by second."""
    rates = np.linspace(first, last, seconds) / WORK
    reached = np.concatenate([[0.0], np.cumsum(rates)])
    return trace_of(
        np.interp(np.arange(1, int(reached[-1])), reached, np.arange(seconds + 1)).tolist()
    )


def setting(
    *,
    start_up: float = 60.0,
    lag: int = 5,
    low: int = 1,
    high: int = 40,
    initial: int = 2,
    **scaling: object,
) -> Setting:
    spec = LLMTaskPoolSpec.model_validate(
        {
            "scaling": {"minReplicas": low, "maxReplicas": high, **scaling},
            "threads": {"compute": {"initial": 48, "min": 4}},
            # So lax that the latency guard leaves the pods the capacity that their unit says.
            "slo": {"ttftSeconds": 10, "tpotSeconds": 0.4},
        }
    )
    return Setting(
        spec, LLAMA2_70B.with_start_up(start_up), lag_seconds=lag, initial_replicas=initial
    )


def ours(trace: Trace, of: Setting) -> Outcome:
    return simulate(trace, of, Ours(of.spec))


def reversals(outcome: Outcome, begin: float, end: float) -> int:
    """Changes of direction within a span."""
    signs = [step > 0 for at, step in outcome.changes if begin <= at < end]
    return sum(a != b for a, b in pairwise(signs))


def asked_at(outcome: Outcome, at: float) -> int:
    """Replicas asked for at a moment."""
    return [m.asked for m in outcome.moments if m.at <= at][-1]
