"""What `explain` and `top` show of pools, as rich renderables, from spec and status alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmtaskpool_operator.api.pool import LLMTaskPool
from llmtaskpool_operator.api.status import Condition, ConditionType, GpuStatus, LLMTaskPoolStatus

_GOOD = {
    ConditionType.READY.value: "True",
    ConditionType.METRICS_AVAILABLE.value: "True",
    ConditionType.SCALING_ACTIVE.value: "True",
    ConditionType.DEGRADED.value: "False",
    ConditionType.STALLED.value: "False",
    ConditionType.RECONCILING.value: "False",
    ConditionType.SCALING_CONFLICT.value: "False",
}
"""What a condition is while there is nothing to say about it."""


def explanation(pool: LLMTaskPool) -> RenderableType:
    """One screen: size, the law's reason, threads, what is in the way, the last decisions."""
    status = pool.status
    name = Text(f"{pool.metadata.namespace}/{pool.metadata.name}", style="bold")
    if not _seen(status):
        return Text.assemble(name, ": no operator has looked at it yet")
    parts: list[RenderableType] = [Text.assemble(name, ": ", _size(status)), _why(pool, status)]
    parts += [_remark(c) for c in status.conditions if c.status != _GOOD.get(c.type, c.status)]
    if status.observed_generation < pool.metadata.generation:
        parts.append(Text("The spec has changed since: the operator has not seen it yet."))
    parts.append(_threads(status))
    if status.gpu is not None:
        parts.append(Text(_gpu_words(status.gpu)))
    if status.last_decisions:
        parts.append(_decisions(status))
    return Group(*parts)


def overview(pools: Sequence[LLMTaskPool]) -> Table:
    """A line for each pool."""
    table = Table(box=None, pad_edge=False)
    for title in ("NAMESPACE", "POOL"):
        table.add_column(title, no_wrap=True)
    # Where no pool has a GPU the column would take room from the others.
    gpus = any(pool.status is not None and pool.status.gpu is not None for pool in pools)
    numbers = ("DESIRED", "READY", "THREADS", "ACTIVE", "QUEUE", "UTILIZATION")
    for title in (*numbers, *(("GPU",) if gpus else ())):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("STATUS", no_wrap=True)
    # rich narrows columns that may wrap before those that may not: this one, whose text then
    # ends in an ellipsis, and not the numbers.
    table.add_column("LAST DECISION")
    for pool in pools:
        table.add_row(pool.metadata.namespace, pool.metadata.name, *_row(pool.status, gpus=gpus))
    return table


def _seen(status: LLMTaskPoolStatus | None) -> TypeGuard[LLMTaskPoolStatus]:
    """Whether an operator wrote it; else it is the CRD's default, at most."""
    return status is not None and status.observed_generation > 0


def _row(status: LLMTaskPoolStatus | None, *, gpus: bool) -> tuple[str | Text, ...]:
    if not _seen(status):
        return ("-",) * (7 if gpus else 6) + ("not seen yet", "")
    lanes = status.threads
    ready = next((c for c in status.conditions if c.type == ConditionType.READY.value), None)
    word = ready.reason if ready else "not seen yet"
    good = ready is not None and ready.status == "True"
    last = status.last_decisions[0] if status.last_decisions else None
    return (
        str(status.desired_replicas),
        str(status.ready_replicas),
        str(sum(lane.observed for lane in lanes)),
        str(sum(lane.active for lane in lanes)),
        str(status.queued),
        "-" if status.utilization is None else f"{status.utilization:.2f}",
        *(("-" if status.gpu is None else _gpu_cell(status.gpu),) if gpus else ()),
        Text(word, style="green" if good else "yellow"),
        Text(
            f"{last.what} {last.before} -> {last.after}: {last.reason}" if last else "",
            no_wrap=True,
            overflow="ellipsis",
        ),
    )


def _size(status: LLMTaskPoolStatus) -> Text:
    draining = f", {status.draining_replicas} draining" if status.draining_replicas else ""
    complete = status.ready_replicas >= status.desired_replicas
    return Text(
        f"{status.ready_replicas} of {status.desired_replicas} replicas ready{draining}",
        style="green" if complete else "yellow",
    )


def _why(pool: LLMTaskPool, status: LLMTaskPoolStatus) -> Text:
    limited = next(
        (c for c in status.conditions if c.type == ConditionType.SCALING_LIMITED.value), None
    )
    mode = pool.spec.scaling.mode
    if limited is None:
        return Text(f"Replicas are as spec.replicas says: scaling.mode is {mode}.")
    return Text(f"Why: {limited.message}.")


def _remark(condition: Condition) -> Text:
    return Text(
        f"{condition.type} is {condition.status} since {condition.last_transition_time}: "
        f"{condition.message or condition.reason}",
        style="yellow",
    )


def _gpu_words(gpu: GpuStatus) -> str:
    activity = (
        ""
        if gpu.sm_activity is None
        else f"; SM activity {_share(gpu.sm_activity)} on average, "
        f"{_share(gpu.highest_sm_activity)} at most"
    )
    """Mean and worst pod, in a line."""
    return (
        f"GPUs of {gpu.pods} pods: utilization {_share(gpu.utilization)} on average, "
        f"{_share(gpu.highest_utilization)} in {gpu.busiest_pod}; memory {_share(gpu.memory)} on "
        f"average, {_share(gpu.highest_memory)} at most{activity}"
    )


def _gpu_cell(gpu: GpuStatus) -> str:
    """Utilization of the mean and of the busiest pod, and the fullest pod's memory."""
    busy = f"{_share(gpu.utilization)}..{_share(gpu.highest_utilization)}"
    active = "" if gpu.sm_activity is None else f" SM {_share(gpu.sm_activity)}"
    return f"{busy}{active} mem {_share(gpu.highest_memory)}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _threads(status: LLMTaskPoolStatus) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("LANE")
    for title in ("DESIRED", "OBSERVED", "ACTIVE", "QUEUED"):
        table.add_column(title, justify="right")
    for lane in status.threads:
        numbers = (lane.desired, lane.observed, lane.active, lane.queued)
        table.add_row(lane.lane, *map(str, numbers))
    return table


def _decisions(status: LLMTaskPoolStatus) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("WHEN", "WHAT", "CHANGE", "WHY"):
        table.add_column(title)
    for made in status.last_decisions:
        # As Text: a bracket in a reason is no markup.
        table.add_row(made.time, made.what, f"{made.before} -> {made.after}", Text(made.reason))
    return table
