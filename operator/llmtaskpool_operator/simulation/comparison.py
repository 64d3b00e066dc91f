"""Laws side by side on one trace, each with the pods as it would find them. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from llmtaskpool_operator.simulation.laws import Ours, ReplicaLaw
from llmtaskpool_operator.simulation.peer_laws import PEERS
from llmtaskpool_operator.simulation.simulator import Outcome, Setting, simulate
from llmtaskpool_operator.simulation.trace import Trace

OURS = "ours"
LAWS: tuple[str, ...] = (OURS, *PEERS)


def law_named(name: str, setting: Setting, target: float | None = None) -> ReplicaLaw:
    """A new law. ``target`` None: ours by the pool's spec, a peer at its default."""
    if name != OURS:
        return PEERS[name](target)
    spec = setting.spec
    if target is not None:
        scaling = spec.scaling.model_copy(update={"target_utilization": target})
        spec = spec.model_copy(update={"scaling": scaling})
    return Ours(spec)


def setting_for(name: str, setting: Setting) -> Setting:
    """Ours tunes threads and orders the queue; peers get the best fixed N and first come first.

    The best fixed N is the batch that the worker's cost model finds efficient: most of the
    throughput of the knee, with room to the time-per-token objective.
    """
    if name == OURS:
        return setting
    batch = setting.model.efficient_batch(setting.spec.slo.tpot_seconds)
    return replace(setting, fixed_threads=batch, first_come=True)


def run(
    name: str, trace: Trace, setting: Setting, target: float | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> Outcome:  # fmt: skip
    """One law over the trace."""
    replica_law = law_named(name, setting, target)
    return simulate(trace, setting_for(name, setting), replica_law, progress)
