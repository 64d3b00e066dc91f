"""What ``/metrics`` shows of engines and of the servers behind models, read at scrape time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from llmtaskpool_worker.contract import WorkerState

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


def upstreams(state: WorkerState) -> Iterator[Metric]:
    """The servers behind models; what a server doesn't tell is absent, and never 0."""
    requests = GaugeMetricFamily(
        "llmtaskpool_upstream_requests",
        "Requests at the server behind a model: in flight by our count, running and waiting by its",
        labels=["model", "state"],
    )
    limit = GaugeMetricFamily(
        "llmtaskpool_upstream_limit", "The most that may be in flight there now", labels=["model"]
    )
    away = CounterMetricFamily(
        "llmtaskpool_upstream_turned_away", "Requests that it did not take", labels=["model"]
    )
    cache = GaugeMetricFamily(
        "llmtaskpool_upstream_cache_usage", "Its cache in use, 1 is all of it", labels=["model"]
    )
    preempted = CounterMetricFamily(
        "llmtaskpool_upstream_preemptions", "Requests that it put aside", labels=["model"]
    )
    for model, seen in state.upstreams.items():
        counts = {"in_flight": seen.in_flight, "running": seen.running, "waiting": seen.waiting}
        for name, count in counts.items():
            if count is not None:
                requests.add_metric([model, name], count)
        limit.add_metric([model], seen.limit)
        away.add_metric([model], seen.turned_away_total)
        if seen.cache_usage is not None:
            cache.add_metric([model], seen.cache_usage)
        if seen.preemptions_total is not None:
            preempted.add_metric([model], seen.preemptions_total)
    yield from (requests, limit, away, cache, preempted)


def memory(state: WorkerState) -> Iterator[Metric]:
    """Of engines that have a process of their own."""
    held = GaugeMetricFamily(
        "llmtaskpool_engine_memory_bytes",
        "What an engine's process holds of memory that is no copy of a file",
        labels=["model"],
    )
    budget = GaugeMetricFamily(
        "llmtaskpool_engine_memory_budget_bytes", "What it should hold at most", labels=["model"]
    )
    back = CounterMetricFamily(
        "llmtaskpool_engine_memory_given_back_bytes", "What it gave back at rest", labels=["model"]
    )
    recycled = CounterMetricFamily(
        "llmtaskpool_engine_recycled", "Begun anew because it leaked", labels=["model"]
    )
    for model, seen in state.model_memory.items():
        if seen.own_bytes is not None:
            held.add_metric([model], seen.own_bytes)
        if seen.budget_bytes is not None:
            budget.add_metric([model], seen.budget_bytes)
        back.add_metric([model], seen.given_back_bytes_total)
        recycled.add_metric([model], seen.recycled_total)
    yield from (held, budget, back, recycled)
