"""What ``/metrics`` shows: counters and gauges read from the pool at scrape time, and histograms.

Labels are bounded: lanes and outcomes are enums, kinds beyond KINDS_MAX are counted as "other".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from llmtaskpool_worker import contract
from llmtaskpool_worker.contract import LaneState, Phase, WorkerState
from llmtaskpool_worker.http_api.engine_metrics import memory, upstreams
from llmtaskpool_worker.http_api.queue_metrics import gate_metrics, queue_metrics, tenant_metrics
from llmtaskpool_worker.scheduling.task import (
    Embedded,
    Evaluated,
    Forwarded,
    Generated,
    TaskView,
)

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

KINDS_MAX = 64
OTHER_KIND = "other"
CONTENT_TYPE = CONTENT_TYPE_LATEST
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

_LAG_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class _StateCollector:
    """Turns one WorkerState into samples, at each scrape."""

    def __init__(self, state: Callable[[], WorkerState]) -> None:
        self._state = state

    def describe(self) -> list[Metric]:
        """Nothing to check for duplicates without asking the pool."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All samples of the state now."""
        state = self._state()
        yield from _lanes(state)
        yield from _work(state)
        yield from _vllm(state)
        totals = CounterMetricFamily(
            "llmtaskpool_tasks", "Tasks by how they were answered or ended", labels=["outcome"]
        )
        for outcome, count in state.totals:
            totals.add_metric([outcome], count)
        yield totals
        phase = GaugeMetricFamily(
            "llmtaskpool_phase", "1 for the phase the worker is in", labels=["phase"]
        )
        for one in Phase:
            phase.add_metric([one.value], float(one is state.phase))
        yield phase
        yield CounterMetricFamily(
            "llmtaskpool_steps", "Steps of all engines", value=state.steps_total
        )
        yield GaugeMetricFamily(
            "llmtaskpool_threads_generation",
            "Generation of the threads in force",
            value=state.threads_generation,
        )
        yield from _gpus(state)
        yield from _kinds(state)
        yield from upstreams(state)
        yield from memory(state)
        yield from queue_metrics(state)
        yield from tenant_metrics(state)
        yield from gate_metrics(state)
        problems = GaugeMetricFamily(
            "llmtaskpool_model_problem",
            "1 for a model that takes nothing now, and why",
            labels=["model", "problem"],
        )
        for model, problem in state.model_problems.items():
            problems.add_metric([model, problem.code], 1.0)
        yield problems


_LANE_GAUGES: tuple[tuple[str, str, Callable[[LaneState], float]], ...] = (
    (contract.METRIC_THREADS, "Threads (N) in force", lambda lane: lane.threads),
    (
        "llmtaskpool_threads_cap",
        "The most threads that the worker finds useful",
        lambda lane: lane.threads_cap,
    ),
    (contract.METRIC_TASKS_ACTIVE, "Tasks that run", lambda lane: lane.active),
    (contract.METRIC_TASKS_QUEUED, "Tasks that wait", lambda lane: lane.queued),
    ("llmtaskpool_queue_limit", "Tasks that may wait", lambda lane: lane.queue_limit),
    (
        "llmtaskpool_oldest_wait_seconds",
        "How long the oldest waiting task has waited",
        lambda lane: lane.oldest_wait_seconds,
    ),
)


def _lanes(state: WorkerState) -> Iterator[Metric]:
    for name, text, read in _LANE_GAUGES:
        family = GaugeMetricFamily(name, text, labels=["lane"])
        for lane, lane_state in state.lanes.items():
            family.add_metric([lane.value], read(lane_state))
        yield family


def _work(state: WorkerState) -> Iterator[Metric]:
    yield CounterMetricFamily(
        contract.METRIC_WORK_ARRIVED.removesuffix("_total"),
        "Offered work in pod-seconds, rejected tasks included",
        value=state.work.arrived_seconds_total,
    )
    yield CounterMetricFamily(
        contract.METRIC_WORK_DONE.removesuffix("_total"),
        "Work done in pod-seconds",
        value=state.work.done_seconds_total,
    )
    yield GaugeMetricFamily(
        contract.METRIC_WORK_WAITING,
        "Work that waits, in pod-seconds",
        value=state.work.waiting_seconds,
    )


def _vllm(state: WorkerState) -> Iterator[Metric]:
    """vLLM's names and meanings, for gateways and dashboards that know those; compute lane."""
    lane = state.lanes.get(contract.LaneName.COMPUTE)
    values = (
        (contract.METRIC_VLLM_RUNNING, "Requests that run", lane.active if lane else 0),
        (contract.METRIC_VLLM_WAITING, "Requests that wait", lane.queued if lane else 0),
        (
            contract.METRIC_VLLM_KV_USAGE,
            "KV cache in use, 1 is all of it",
            state.kv_cache_usage or 0.0,
        ),
    )
    for name, text, value in values:
        family = GaugeMetricFamily(name, text, labels=["model_name", "engine"])
        family.add_metric([",".join(state.models), "0"], value)
        yield family


def _gpus(state: WorkerState) -> Iterator[Metric]:
    """Only what the driver gave: a reading that is missing is absent, and never 0."""
    used = GaugeMetricFamily("llmtaskpool_gpu_memory_used_bytes", "Device memory", labels=["gpu"])
    busy = GaugeMetricFamily(
        "llmtaskpool_gpu_utilization", "Share of time in which any kernel ran", labels=["gpu"]
    )
    active = GaugeMetricFamily(
        "llmtaskpool_gpu_sm_activity",
        "Share of the multiprocessors that worked since the reading before",
        labels=["gpu"],
    )
    for gpu in state.gpus:
        if gpu.sm_activity is not None:
            active.add_metric([str(gpu.index)], gpu.sm_activity)
        if gpu.memory_used_bytes is not None:
            used.add_metric([str(gpu.index)], gpu.memory_used_bytes)
        if gpu.utilization is not None:
            busy.add_metric([str(gpu.index)], gpu.utilization)
    yield used
    yield busy
    yield active


def _kinds(state: WorkerState) -> Iterator[Metric]:
    """Where each registered kind runs, and what spoke for it."""
    share = GaugeMetricFamily(
        "llmtaskpool_kind_compute_share",
        "Share of its time that a kind of task computes; lane is where it runs for that",
        labels=["kind", "lane"],
    )
    for kind, seen in state.kinds.items():
        if total := seen.compute_seconds + seen.waiting_seconds:
            share.add_metric([kind, seen.lane.value], seen.compute_seconds / total)
    yield share


class Metrics:
    """The worker's own registry. ``task_ended`` is called with every task that ends."""

    def __init__(self, state: Callable[[], WorkerState]) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_StateCollector(state))
        ProcessCollector(registry=self.registry)
        labels = ("kind", "lane")
        self._waited = Histogram(
            "llmtaskpool_task_wait_seconds",
            "Time from acceptance to the start, or to the end of what never started",
            labels,
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._ran = Histogram(
            "llmtaskpool_task_run_seconds",
            "Time from the start to the end",
            labels,
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._tokens = Counter(
            "llmtaskpool_tokens",
            "Tokens of tasks that succeeded",
            ("direction",),
            registry=self.registry,
        )
        self._reused = Counter(
            "llmtaskpool_prompt_tokens_reused",
            "Prompt tokens of tasks that succeeded which were kept from others, not computed",
            registry=self.registry,
        )
        self._loop_lag = Histogram(
            "llmtaskpool_loop_lag_seconds",
            "How late the event loop was for a turn that was due, asked for every 10 ms",
            buckets=_LAG_BUCKETS,
            registry=self.registry,
        )
        self._batch_lines = Counter(
            "llmtaskpool_batch_lines",
            "Lines of batches whose end this worker has written",
            ("outcome",),
            registry=self.registry,
        )
        self._batches = Gauge(
            "llmtaskpool_batches_open",
            "Batches that have not ended, of all workers with the same queue",
            registry=self.registry,
        )
        self._file_store = Gauge(
            "llmtaskpool_file_store_bytes",
            "Bytes that files and batches hold, of all workers with the same queue",
            registry=self.registry,
        )
        self._kinds: set[str] = set()

    def lines_ended(self, outcome: str, lines: int) -> None:
        """Count lines of batches: completed, failed."""
        self._batch_lines.labels(outcome).inc(lines)

    def follow_batches(self, opened: Callable[[], float], held: Callable[[], float]) -> None:
        """Read at each scrape how many are open, and the bytes of the store."""
        self._batches.set_function(opened)
        self._file_store.set_function(held)

    def loop_was_late(self, seconds: float) -> None:
        """Count one tick of ``watch_loop``."""
        self._loop_lag.observe(seconds)

    def task_ended(self, view: TaskView) -> None:
        """Count one task in the histograms and its tokens."""
        if view.ended_at is None:
            return
        kind = self._bounded(view.kind)
        started = view.started_at
        waited_until = view.ended_at if started is None else started
        self._waited.labels(kind, view.lane.value).observe(
            max(0.0, waited_until - view.submitted_at)
        )
        if started is not None:
            self._ran.labels(kind, view.lane.value).observe(max(0.0, view.ended_at - started))
        result = view.result
        if isinstance(result, (Generated, Embedded, Evaluated, Forwarded)):
            self._tokens.labels("prompt").inc(result.prompt_tokens)
        if isinstance(result, (Generated, Forwarded)):
            self._reused.inc(result.cached_tokens)
        if isinstance(result, Generated):
            self._tokens.labels("generated").inc(len(result.tokens))
        if isinstance(result, Forwarded):
            self._tokens.labels("generated").inc(result.completion_tokens)

    def _bounded(self, kind: str) -> str:
        if kind not in self._kinds:
            if len(self._kinds) >= KINDS_MAX:
                return OTHER_KIND
            self._kinds.add(kind)
        return kind

    def text(self) -> bytes:
        """The exposition, as ``/metrics`` answers it."""
        return generate_latest(self.registry)
