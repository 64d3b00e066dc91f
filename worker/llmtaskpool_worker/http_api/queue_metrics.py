"""What the metrics page tells of the queue, of who waits in it, and of a gate that holds them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from llmtaskpool_worker.contract import TenantState, WorkerState

TENANTS_MAX = 64
OTHER_TENANTS = "key-others"


def queue_metrics(state: WorkerState) -> Iterator[Metric]:
    """What lies in the queue and is not in line; of a shared one every worker tells the same."""
    tasks = GaugeMetricFamily(
        "llmtaskpool_queue_tasks",
        "Tasks that are in no line: blocked, delayed, dead, quarantined",
        labels=["state"],
    )
    error = GaugeMetricFamily(
        "llmtaskpool_queue_error", "1 while the queue can't be reached or written", labels=["queue"]
    )
    if (queue := state.queue) is not None:
        for name in ("blocked", "delayed", "dead", "quarantined"):
            tasks.add_metric([name], getattr(queue, name))
        error.add_metric([queue.durability], float(queue.error is not None))
    yield from (tasks, error)


def tenant_metrics(state: WorkerState) -> Iterator[Metric]:
    """Of each whose key was shown, never the key; those beyond TENANTS_MAX together."""
    tasks = GaugeMetricFamily(
        "llmtaskpool_tenant_tasks", "Tasks of a tenant that wait or run", labels=["tenant", "state"]
    )
    started = CounterMetricFamily(
        "llmtaskpool_tenant_started_seconds",
        "Thread-seconds (T) of a tenant's tasks that were started here",
        labels=["tenant"],
    )
    refused = CounterMetricFamily(
        "llmtaskpool_tenant_refused", "Tasks of a tenant that were turned away", labels=["tenant"]
    )
    shown = dict(list(state.tenants.items())[:TENANTS_MAX])
    if rest := [one for name, one in state.tenants.items() if name not in shown]:
        shown[OTHER_TENANTS] = TenantState(
            waiting=sum(one.waiting for one in rest),
            running=sum(one.running for one in rest),
            started_seconds_total=sum(one.started_seconds_total for one in rest),
            refused_total=sum(one.refused_total for one in rest),
        )
    for name, one in shown.items():
        tasks.add_metric([name, "waiting"], one.waiting)
        tasks.add_metric([name, "running"], one.running)
        started.add_metric([name], one.started_seconds_total)
        refused.add_metric([name], one.refused_total)
    yield from (tasks, started, refused)


def gate_metrics(state: WorkerState) -> Iterator[Metric]:
    """Of a gate alone."""
    if (gate := state.gate) is None:
        return
    yield GaugeMetricFamily(
        "llmtaskpool_gate_held_requests", "Requests that wait for a worker", value=gate.held
    )
    yield GaugeMetricFamily(
        "llmtaskpool_gate_passed_requests", "Requests that workers are at", value=gate.forwarding
    )
    yield CounterMetricFamily(
        "llmtaskpool_gate_requests",
        "Requests that asked for a worker",
        value=gate.arrived_total,
    )
