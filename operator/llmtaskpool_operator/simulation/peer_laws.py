"""How other autoscalers size a pool, written from their public documentation alone.

Each law is one class and each object serves one run: time comes from the sample, and what a law
averages or waits for it keeps itself. ``PEERS`` makes them by the names of ``--law``.

``default_target`` is not the documented default (each docstring names that, if there is one) but
the one setting that did best over the six short scenarios of ``benchmarks/control_scenarios.py``,
so that no peer looks bad for want of tuning. Best: the lowest mean of pod-hours over the
clairvoyant's + 10 x what the share within the objectives lacks of 99 %.

All of them hold when there is no sample to go by, and none goes below 1 or the pool's minimum.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, floor, isfinite
from typing import ClassVar

from llmtaskpool_operator.simulation.hpa import HpaBehavior, Window, hpa_from_pods, hpa_from_total
from llmtaskpool_operator.simulation.laws import PodSample, PoolSample, ReplicaLaw

STALE_SECONDS = 300.0
"""Prometheus answers a query with a sample of up to 5 minutes, and with none after that
(https://prometheus.io/docs/prometheus/latest/querying/basics/#staleness)."""
_EPSILON = 1e-9


class Literal:
    """The article's equation to the letter: ``N_new = ceil(N + alpha (U - U_target))``.

    ``U = sum of W_i / (N T_max)`` counts the tasks that run and wait over what N pods hold at
    once (T_max: a pod's threads). N is a whole number, so with alpha 0.1 any U over the target
    adds one pod and no U under it takes one away: control.md calls it a ratchet.

    Source: the article "thread management for LLMs in multi-task AI systems" (docs/law.md works
    its example; its target is 0.5). It gives no period; 15 s is HPA's.
    """

    name = "literal"
    period_seconds = 15.0
    default_target = 0.6

    def __init__(self, target: float | None = None, alpha: float = 0.1) -> None:
        self.target = _target(self.name, target, self.default_target)
        self.alpha = alpha

    def decide(self, sample: PoolSample) -> int:
        """One step of the equation."""
        if _lost(sample) or not sample.threads:
            return _bounded(sample, sample.replicas)
        room = sample.replicas * sample.threads / sample.ready
        utilization = sample.concurrency / room if room else 1.0
        exact = sample.replicas + self.alpha * (utilization - self.target)
        return _bounded(sample, ceil(exact - _EPSILON))


class _HpaOnPods:
    """HPA on a metric that every pod has."""

    name: ClassVar[str]
    default_target: ClassVar[float]
    period_seconds = 15.0

    def __init__(self, target: float | None = None) -> None:
        self.target = _target(self.name, target, self.default_target)
        self._behavior = HpaBehavior()

    def decide(self, sample: PoolSample) -> int:
        """``hpa_from_pods`` of the last scrape, then the default behaviour."""
        pods = [pod for pod in sample.pods if not pod.draining]
        known = [self._metric(pod) for pod in pods if pod.ready]
        values = [value for value in known if value is not None]
        if _lost(sample) or not values:
            return _bounded(sample, sample.replicas)
        wanted = hpa_from_pods(
            sample.replicas,
            values,
            self.target,
            missing=len(known) - len(values),
            unready=len(pods) - len(known),
        )
        return _bounded(sample, self._behavior.applied(sample.now, sample.replicas, wanted))

    def _metric(self, pod: PodSample) -> float | None:
        raise NotImplementedError


class HpaOnGpuBusy(_HpaOnPods):
    """Stock HPA on GPU busy time: ``ceil(N * mean / target)``, every 15 s.

    The metric is NVML's utilization, the share of time in which any kernel ran
    (https://docs.nvidia.com/deploy/nvml-api/structnvmlUtilization__t.html), which is what most
    GPU dashboards and HPA recipes show. See ``hpa_from_pods`` and ``HpaBehavior``.

    https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/
    """

    name = "hpa-gpu"
    default_target = 0.9

    def _metric(self, pod: PodSample) -> float | None:
        return pod.gpu_busy


class HpaOnSmActivity(_HpaOnPods):
    """Stock HPA on SM activity: ``ceil(N * mean / target)``, every 15 s.

    The metric is DCGM's profiling field 1002, the share of time in which a warp was active on
    an SM (https://docs.nvidia.com/datacenter/dcgm/latest/user-guide/feature-overview.html).
    See ``hpa_from_pods`` and ``HpaBehavior``.

    https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/
    """

    name = "hpa-sm"
    default_target = 0.8

    def _metric(self, pod: PodSample) -> float | None:
        return pod.sm_activity


class _Keda:
    """KEDA from 1 to n replicas: an external metric with an AverageValue, scaled by HPA.

    KEDA's own polling and cool-down only decide between 0 and 1
    (https://keda.sh/docs/latest/reference/scaledobject-spec/).
    """

    name: ClassVar[str]
    default_target: ClassVar[float]
    period_seconds = 15.0

    def __init__(self, target: float | None = None) -> None:
        self.target = _target(self.name, target, self.default_target)
        self._behavior = HpaBehavior()

    def decide(self, sample: PoolSample) -> int:
        """``hpa_from_total`` of the last scrape, then the default behaviour."""
        if _lost(sample):
            return _bounded(sample, sample.replicas)
        wanted = hpa_from_total(sample.replicas, self._total(sample), self.target)
        return _bounded(sample, self._behavior.applied(sample.now, sample.replicas, wanted))

    def _total(self, sample: PoolSample) -> float:
        raise NotImplementedError


class KedaOnQueue(_Keda):
    """KEDA on queue length: ``ceil(tasks that wait / target)``.

    The documented default of such scalers is 5 messages for each pod.

    https://keda.sh/docs/latest/scalers/azure-storage-queue/
    """

    name = "keda-queue"
    default_target = 10.0

    def _total(self, sample: PoolSample) -> float:
        return float(sample.queued)


class KedaOnConcurrency(_Keda):
    """KEDA on concurrency: ``ceil(tasks that run or wait / target)``.

    As the prometheus scaler does it on a query that counts requests in flight; the threshold
    has no default there.

    https://keda.sh/docs/latest/scalers/prometheus/
    """

    name = "keda-concurrency"
    default_target = 16.0

    def _total(self, sample: PoolSample) -> float:
        return float(sample.concurrency)


class Kpa:
    """Knative's pod autoscaler on concurrency, every 2 s: ``want = concurrency / target``.

    Stable: the mean of 60 s. Panic: the mean of 6 s, from when it asks for 2 x the ready pods
    until it has not for 60 s; meanwhile replicas only grow. One decision stays between
    ready / 2 and ready x 1000. An autoscaler that starts over more than one ready pod starts in
    panic, for want of a history. ``target`` is what is steered for, that is the documented
    default of 100 x 70 % = 70, more than an LLM pod has threads.

    https://knative.dev/docs/serving/autoscaling/kpa-specific/,
    https://knative.dev/docs/serving/autoscaling/concurrency/,
    https://github.com/knative/serving/blob/main/docs/scaling/SYSTEM.md
    """

    name = "kpa"
    period_seconds = 2.0
    default_target = 12.0
    stable_seconds: ClassVar[float] = 60.0
    panic_seconds: ClassVar[float] = 6.0
    panic_threshold: ClassVar[float] = 2.0
    max_scale_up_rate: ClassVar[float] = 1000.0
    max_scale_down_rate: ClassVar[float] = 2.0

    def __init__(self, target: float | None = None) -> None:
        self.target = _target(self.name, target, self.default_target)
        self._seen = Window(self.stable_seconds)
        self._started = False
        self._panic_at: float | None = None
        self._panic_pods = 0

    def decide(self, sample: PoolSample) -> int:
        """The stable value, or in panic the highest of both since the panic began."""
        now, ready = sample.now, max(1, sample.ready)
        if _lost(sample, self.stable_seconds):
            return _bounded(sample, sample.replicas)
        if not self._started:
            self._started = True
            if ready > 1:
                self._panic_at, self._panic_pods = now, ready
        self._seen.add(now, sample.concurrency)
        stable = self._pods_for(self._seen.mean(now, self.stable_seconds))
        panic = self._pods_for(self._seen.mean(now, self.panic_seconds))
        if panic / ready >= self.panic_threshold:
            self._panic_at = now
        elif self._panic_at is not None and now - self._panic_at > self.stable_seconds:
            self._panic_at, self._panic_pods = None, 0
        wanted = self._limited(stable, ready)
        if self._panic_at is not None:
            self._panic_pods = max(self._panic_pods, wanted, self._limited(panic, ready))
            wanted = self._panic_pods
        return _bounded(sample, wanted)

    def _pods_for(self, concurrency: float) -> int:
        return ceil(concurrency / self.target - _EPSILON)

    def _limited(self, pods: int, ready: int) -> int:
        least = floor(ready / self.max_scale_down_rate)
        return min(max(pods, least), ceil(ready * self.max_scale_up_rate))


class RayServe:
    """Ray Serve: ``desired = ceil(N + factor (ongoing / target - N))``.

    ``ongoing`` are the requests that run or wait, reported every 10 s and averaged over a look-
    back of 30 s. More replicas once more were wanted for ``upscale_delay`` 30 s without a break,
    fewer once fewer were for ``downscale_delay`` 600 s; then to what is wanted now. Both factors
    (formerly smoothing factors) are 1 by default, and a factor under 1 still takes one replica
    away. Serve's own loop runs every 0.1 s but decides anew only with new reports: hence 10 s.
    The documented default target is 2, for a model that runs one request at a time.

    https://docs.ray.io/en/latest/serve/advanced-guides/advanced-autoscaling.html
    """

    name = "ray-serve"
    period_seconds = 10.0
    default_target = 12.0
    look_back_seconds: ClassVar[float] = 30.0
    upscale_delay_seconds: ClassVar[float] = 30.0
    downscale_delay_seconds: ClassVar[float] = 600.0

    def __init__(
        self,
        target: float | None = None,
        upscaling_factor: float = 1.0,
        downscaling_factor: float = 1.0,
    ) -> None:
        self.target = _target(self.name, target, self.default_target)
        self._factors = {1: upscaling_factor, -1: downscaling_factor}
        self._seen = Window(self.look_back_seconds)
        self._wants = 0
        self._wants_since = 0.0

    def decide(self, sample: PoolSample) -> int:
        """What is wanted now, once its direction has been wanted for the delay."""
        now, current = sample.now, sample.replicas
        if _lost(sample):
            self._wants = 0
            return _bounded(sample, current)
        self._seen.add(now, sample.concurrency)
        desired = self._desired(sample, self._seen.mean(now, self.look_back_seconds))
        wants = (desired > current) - (desired < current)
        if wants != self._wants:
            self._wants, self._wants_since = wants, now
        delay = self.upscale_delay_seconds if wants > 0 else self.downscale_delay_seconds
        if not wants or now - self._wants_since < delay - _EPSILON:
            return _bounded(sample, current)
        self._wants = 0
        return desired

    def _desired(self, sample: PoolSample, ongoing: float) -> int:
        current, exact = sample.replicas, ongoing / self.target
        way = 1 if exact > current else -1
        desired = ceil(current + self._factors[way] * (exact - current) - _EPSILON)
        if desired == current and ceil(exact - _EPSILON) < current:
            desired -= 1
        return _bounded(sample, desired)


PEERS: dict[str, Callable[[float | None], ReplicaLaw]] = {
    law.name: law
    for law in (
        Literal,
        HpaOnGpuBusy,
        HpaOnSmActivity,
        KedaOnQueue,
        KedaOnConcurrency,
        Kpa,
        RayServe,
    )
}
"""By the name of ``--law``: a maker that takes the target, None for the law's default."""


def _lost(sample: PoolSample, stale_seconds: float = STALE_SECONDS) -> bool:
    return not sample.pods or not sample.age_seconds <= stale_seconds


def _bounded(sample: PoolSample, replicas: int) -> int:
    least = max(1, sample.minimum)
    return min(max(replicas, least), max(sample.maximum, least))


def _target(law: str, target: float | None, default: float) -> float:
    value = default if target is None else target
    if not (isfinite(value) and value > 0):
        raise ValueError(f"target of {law} is {value:g}: give a number above 0")
    return value
